"""Activity: what this rank is doing, for its log, for the other ranks and for crash reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from distributed_ignn.cli import LOG_ONLY

logger = logging.getLogger(__name__)

_STARTING = "starting"


class Activity:
    """The phase that a rank is in; written by the rank itself, read by any of its threads.

    ``epoch`` is the one being worked on, counted from 1; 0 before the first.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.failed_in: str | None = None
        self._phases = [_STARTING]
        self._since = time.monotonic()

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
