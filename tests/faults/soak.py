"""A soak: train on two ranks for a while and watch memory, file handles and threads of each.

After the first epochs nothing may grow: ``python -m tests.faults.soak --minutes 30``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.victim import torchrun
from tests.jobs import Job, records

_WARM_SHARE = 0.3
_MOST_GROWTH = 0.02  # of resident memory, between the two halves of what is left


@dataclass(slots=True)
class Watched:
    """Of one process, a value per sample."""

    resident: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def look(self, pid: int) -> None:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        self.resident.append(int(status["VmRSS"].split()[0]) / 1024)
        self.threads.append(int(status["Threads"]))
        self.handles.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))

    def settled(self) -> Watched:
        """Without the samples of the first epochs."""
        skip = int(len(self.resident) * _WARM_SHARE)
        return Watched(self.resident[skip:], self.handles[skip:], self.threads[skip:])

    def growth(self) -> float:
        """Of the median resident memory, from one half of the samples to the other."""
        first, second = _halves(self.resident)
        return second / first - 1.0

    def flat(self) -> bool:
        """Whether nothing grew from one half of the samples to the other, nor at the end."""
        return self.growth() < _MOST_GROWTH and not any(map(_rises, (self.handles, self.threads)))


def _halves(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and the second half."""
    half = len(values) // 2
    return statistics.median(values[:half]), statistics.median(values[half:])


def _rises(counts: Sequence[int]) -> bool:
    """Whether there are more in the second half, or at the end more than ever in the first."""
    first, second = _halves(counts)
    end = statistics.median(counts[-max(len(counts) // 10, 5) :])
    return second > first or end > max(counts[: len(counts) // 2])


def watch(minutes: float, folder: Path, extra: list[str]) -> tuple[dict[int, Watched], int]:
    """Samples of each rank, and the number of epochs."""
    output = folder / "run"
    arguments = ["--train.epochs", "10000000", "--output", str(output), *extra]
    job = Job(torchrun(2, *arguments), folder)
    try:
        job.reach(10, output)
        found = {pid: Watched() for pid in job.ranks()}
        deadline = time.monotonic() + 60 * minutes
        while time.monotonic() < deadline:
            time.sleep(max(0.25, minutes / 10))
            assert job.running, job.text[-3000:]
            for pid, watched in found.items():
                watched.look(pid)
        return found, len(records(output))
    finally:
        job.kill_all()


def main() -> int:
    """Exit code 0 if nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    options, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found, epochs = watch(options.minutes, Path(folder), extra)
    table = Table(title=f"soak: {options.minutes:g} minutes, {epochs} epochs, two ranks")
    for name in ("process", "MiB first", "MiB last", "growth", "handles", "threads", "flat"):
        table.add_column(name, justify="right")
    for pid, watched in found.items():
        rest = watched.settled()
        table.add_row(
            str(pid),
            f"{rest.resident[0]:.1f}",
            f"{rest.resident[-1]:.1f}",
            f"{rest.growth():+.2%}",
            f"{rest.handles[0]} to {rest.handles[-1]}",
            f"{rest.threads[0]} to {rest.threads[-1]}",
            "yes" if rest.flat() else "no",
        )
    Console().print(table)
    return 0 if all(watched.settled().flat() for watched in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
