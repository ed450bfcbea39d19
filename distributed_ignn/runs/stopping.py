"""Signals as requests: finish the step, write a checkpoint, leave; a second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from distributed_ignn.comm.activity import Activity
from distributed_ignn.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The last is that of a terminal that is gone; where it is ignored (nohup), the run goes on."""

# Ctrl-C in a terminal reaches a rank twice within moments: from the terminal, which signals the
# whole process group, and from torchrun, which passes on what it got itself.
_SAME_REQUEST_SECONDS = 2.0

StopPoll = Callable[[], int | None]
"""The number of the signal that has asked this rank to stop, or None; polled once an epoch."""


class StopRequest:
    """Whether this process was asked to stop, and by which signal.

    Outside ``deferred`` there is nothing to finish: a signal raises ``Stopped`` where the program
    stands, so that whatever is half done is tidied up. Inside, it is remembered until polled; so it
    is on the way out after a failure, when torchrun sends one to the ranks that are left. If the
    program is still there after the grace time, or is asked again, the process ends at once with
    code 128 + signal. A process that is not the run's own goes on: asked again, the run breaks off
    with ``Stopped``.

    Args:
        grace_seconds: from the first signal to the end, at most.
        activity: what this rank is doing.
        announce: whether this process says what it does about a signal.
        may_exit: whether the process may be ended.
    """

    def __init__(
        self, grace_seconds: float, activity: Activity, *, announce: bool, may_exit: bool = True
    ) -> None:
        self._may_exit = may_exit
        self._grace = grace_seconds
        self._activity = activity
        self._announce = announce
        self._deferred = False
        self._signum: int | None = None
        self._first = 0.0
        self._timer: threading.Timer | None = None

    def __call__(self) -> int | None:
        """See ``StopPoll``."""
        return self._signum

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle signals inside; does nothing outside the main thread, where none arrive."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        handled = [signum for signum in SIGNALS if not _is_ignored_hangup(signum)]
        before = {signum: signal.signal(signum, self._asked) for signum in handled}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            if self._timer is not None:
                self._timer.cancel()  # another run of the process may be under way by then

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Steps are taken inside, each of which is worth finishing."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _asked(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signum is not None:
            if now - self._first > _SAME_REQUEST_SECONDS:
                self._leave(signum)
            return
        self._signum, self._first = signum, now
        name = Stopped.name(signum)
        failing = self._activity.failed_in is not None
        if not self._deferred and not failing:
            raise Stopped(signum, f"stopped by {name} while {self._activity}; nothing is lost")
        if not failing:
            self._say(f"{name}: finishing this epoch and writing a checkpoint{self._limit()}")
        if self._may_exit:
            self._timer = threading.Timer(self._grace, self._overdue, (signum,))
            self._timer.daemon = True
            self._timer.start()

    def _limit(self) -> str:
        return f", within {self._grace:g} s; send it again to end at once" if self._may_exit else ""

    def _overdue(self, signum: int) -> None:
        self._say(
            f"the epoch did not end within {self._grace:g} s (train.grace_seconds); ending without "
            "a new checkpoint"
        )
        self._leave(signum)

    def _leave(self, signum: int) -> None:
        if self._may_exit:
            os._exit(128 + signum)
        raise Stopped(signum, f"stopped by {Stopped.name(signum)} without a new checkpoint")

    def _say(self, text: str) -> None:
        # not print, which must not be entered again by a handler that has interrupted it
        if self._announce:
            with suppress(OSError):
                os.write(2, f"{text}\n".encode())


def _is_ignored_hangup(signum: signal.Signals) -> bool:
    return signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN
