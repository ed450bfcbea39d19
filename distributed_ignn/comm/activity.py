"""Activity: what this rank is doing, for its log, for the other ranks and for crash reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed_ignn.cli import LOG_ONLY

logger = logging.getLogger(__name__)

_STARTING = "starting"


class Activity:
    """The phase that a rank is in; written by the rank itself, read by any of its threads.

    ``epoch`` is the one being worked on, counted from 1; 0 before the first. ``limited`` says
    whether what the rank does is bounded by the limit of a collective.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.failed_in: str | None = None
        self._phases = [_STARTING]
        self._since = time.monotonic()
        self.limited = True

    @contextmanager
    def without_limit(self) -> Iterator[None]:
        """Do what may take any time, outside of collectives; ``limited`` is False meanwhile."""
        before, self.limited = self.limited, False
        try:
            yield
        finally:
            self.limited = before

    @property
    def in_phase(self) -> bool:
        """Whether the rank is in a phase, and not before or after all of them."""
        return len(self._phases) > 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Be in a phase; what it is called when an exception leaves it is kept in ``failed_in``."""
        self._phases.append(name)
        self._since = time.monotonic()
        logger.debug("begins", extra=LOG_ONLY)
        try:
            yield
        except BaseException:
            self.failed_in = self.failed_in or str(self)
            raise
        finally:
            self._phases.pop()
            self._since = time.monotonic()

    @property
    def current(self) -> str:
        """Name of the innermost phase."""
        return self._phases[-1]

    @property
    def seconds(self) -> float:
        """For how long it has been so."""
        return time.monotonic() - self._since

    def __str__(self) -> str:
        return f"epoch {self.epoch}, {self.current}" if self.epoch else self.current


class Patience:
    """How long this rank may be in one collective, where its transport sets no limit.

    Args:
        seconds: the limit; ``comm.timeout_seconds``.
        calls: counts the collectives that this rank has called.
    """

    def __init__(self, seconds: float, calls: Callable[[], int]) -> None:
        self.seconds = seconds
        self._calls = calls
        self._known, self._waited = -1, 0.0

    def is_over(self, activity: Activity, turn_seconds: float) -> bool:
        """Whether no collective was called for longer, in work that such a limit is for.

        Asked once a turn of so many seconds; one in which the process is suspended is no longer.
        """
        calls = self._calls()
        waits = calls == self._known and activity.in_phase and activity.limited
        self._waited = self._waited + turn_seconds if waits else 0.0
        self._known = calls
        return self._waited > self.seconds
