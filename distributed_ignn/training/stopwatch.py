"""Stopwatch: the seconds that a training has taken, in all attempts that led to its state."""

from __future__ import annotations

import time

from distributed_ignn.training.state import Seconds, State, Values


class _Taken(Values):
    total: Seconds = 0.0
    solver_training: Seconds


class Stopwatch:
    """Counts seconds since the start of a training, and those of them that trained the solver.

    Args:
        started: ``time.perf_counter()`` at the start; now by default.
    """

    def __init__(self, started: float | None = None) -> None:
        self._started = time.perf_counter() if started is None else started
        self._before = 0.0
        self.solver_training = 0.0

    @property
    def total(self) -> float:
        """Seconds since the start, with those of the attempts before."""
        return self._before + time.perf_counter() - self._started

    def state(self) -> State:
        """See ``Stateful``."""
        return State(_Taken(total=self.total, solver_training=self.solver_training).model_dump())

    def load_state(self, state: State) -> None:
        """See ``Stateful``; what this attempt has taken so far is added."""
        taken = _Taken.read(state)
        self._before, self.solver_training = taken.total, taken.solver_training
