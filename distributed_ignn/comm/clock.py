"""Where the time of an evaluation goes: packing, waiting, multiplying, reducing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Marks = tuple[torch.cuda.Event, torch.cuda.Event]


class Clock:
    """Seconds by name. On a GPU they are read off events in its queue, so nothing is held up.

    Names in use: ``pack`` and ``unpack`` (halo codecs), ``exposed`` (waiting for halo rows),
    ``product`` (sparse products), ``reduce`` (all-reduces, waiting for other ranks included).

    Args:
        device: whose time is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._marks: list[tuple[str, Marks]] = []

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the time spent inside under ``name``."""
        if self._on_gpu:
            marks = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            marks[0].record()
            yield
            marks[1].record()
            self._marks.append((name, marks))
            return
        started = time.perf_counter()
        yield
        self._add(name, time.perf_counter() - started)

    def read(self) -> dict[str, float]:
        """Seconds so far by name; waits for a GPU to get there."""
        for name, (begin, end) in self._marks:
            end.synchronize()
            self._add(name, begin.elapsed_time(end) / 1e3)
        self._marks.clear()
        return dict(self._seconds)

    def since(self, earlier: dict[str, float]) -> dict[str, float]:
        """What was added after ``earlier``, an answer of ``read``."""
        return {name: value - earlier.get(name, 0.0) for name, value in self.read().items()}

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
