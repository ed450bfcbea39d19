"""Where the time of an evaluation goes: packing, waiting, multiplying, reducing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

Marks = tuple[torch.cuda.Event, torch.cuda.Event]


class Clock:
    """Seconds by name, as long as somebody has it run (``running``).

    On a GPU they are read off events in its queue, so nothing is held up. Two events are kept for
    every measurement until it is read, hence none outside of ``running``: a training run makes
    hundreds of thousands of measurements and reads none.

    Names in use: ``pack`` and ``unpack`` (halo codecs), ``exposed`` (waiting for halo rows),
    ``product`` (sparse products), ``reduce`` (all-reduces, waiting for other ranks included).

    Args:
        device: whose time is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._runs = False
        self._seconds: dict[str, float] = {}
        self._marks: list[tuple[str, Marks]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have measurements inside counted; may be entered again inside."""
        before, self._runs = self._runs, True
        try:
            yield
        finally:
            self._runs = before

    def measure(self, name: str) -> AbstractContextManager[None]:
        """Count the time spent inside under ``name``; nothing while the clock does not run."""
        if not self._runs:
            return _UNMEASURED
        return self._in_queue(name) if self._on_gpu else self._on_cpu(name)

    @contextmanager
    def _in_queue(self, name: str) -> Iterator[None]:
        marks = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        marks[0].record()
        yield
        marks[1].record()
        self._marks.append((name, marks))

    @contextmanager
    def _on_cpu(self, name: str) -> Iterator[None]:
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


_UNMEASURED = nullcontext()
