"""What a program makes a GPU and its host do, counted by source line."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

_HERE = str(Path(__file__).parent)

# What is counted. A launch is estimated from the operation; of an exchange or a reduction it is
# none, since NCCL's kernels are counted as calls.
LAUNCH = "launches"
CAPTURED = "captured launches"  # into a graph, which takes one launch however many they are
SYNC = "syncs"  # the host waits for the device
UPLOAD = "host to device"  # copies
NCCL = "NCCL calls"
PASSES = "passes"  # reads and writes of arrays as large as the state, see Counts.state_entries
FAULT = "faults"


class Counts:
    """Counts by kind, source line and operation.

    Args:
        package: part of the names of the files whose lines are named.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.state_entries: int | None = None
        self._found: dict[str, dict[tuple[str, str], float]] = defaultdict(
            lambda: defaultdict(float)
        )
        self._lock = threading.Lock()

    def add(self, kind: str, amount: float = 1, operation: str = "") -> None:
        """Count something at the line of the package that is running."""
        key = self.place(), operation
        with self._lock:
            self._found[kind][key] += amount

    def total(self, kind: str) -> float:
        return sum(self._found[kind].values())

    def totals(self) -> dict[str, float]:
        """Of every kind."""
        with self._lock:
            return {kind: sum(found.values()) for kind, found in self._found.items()}

    def lines(self, kind: str) -> dict[str, float]:
        """Of one kind, by source line, the most first."""
        found: dict[str, float] = defaultdict(float)
        with self._lock:
            for (place, _), amount in self._found[kind].items():
                found[place] += amount
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def operations(self, kind: str, place: str) -> dict[str, float]:
        """Of one kind at one line, by operation."""
        return {o: n for (at, o), n in self._found[kind].items() if at == place}

    def clear(self) -> None:
        with self._lock:
            self._found.clear()

    def as_json(self) -> dict[str, Any]:
        """Totals and lines of every kind."""
        return {
            kind: {
                "total": self.total(kind),
                "lines": {
                    line: {"count": count, "operations": self.operations(kind, line)}
                    for line, count in self.lines(kind).items()
                },
            }
            for kind in sorted(self._found)
        }

    def place(self) -> str:
        """The innermost line of the package, whoever it has called."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if self.package in name and not (name.startswith(_HERE) or "site-packages" in name):
                return f"{name[name.rindex(self.package) :]}:{frame.f_lineno}"
            frame = frame.f_back
        main = threading.current_thread() is threading.main_thread()
        return "outside" if main else "autograd"
