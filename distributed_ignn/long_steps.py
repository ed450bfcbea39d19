"""Steps that may take hours, told in lines: which one it is, how much of how much, how fast.

Lines go to the log of the library, so that a terminal, a file and the log of a rank show the same.
A step that ends before the first line is due says nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.filesize import decimal

logger = logging.getLogger(__name__)

_FIRST_SECONDS, _SELDOM_SECONDS = 5.0, 30.0
_SHARE = 0.05  # of what a step has taken so far, between two lines

_innermost: ContextVar[LongStep | None] = ContextVar("innermost step of this thread", default=None)


class LongStep:
    """One step; see ``step``.

    Args:
        what: names it, such as ``downloading products.zip``.
        total: how much there is to do, if that is known.
        unit: what is counted.

    Attributes:
        done: how much of it is.
        paused: whether it is silent, while a step inside it speaks.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "bytes") -> None:
        self.total = total
        self.paused = False
        self._what, self._unit = what, unit
        self.done = 0
        self._began = time.monotonic()
        self._last = (self._began, 0)
        self._said = False
        self._over = threading.Event()

    def begin_at(self, done: int) -> None:
        """So much has been done before, which is no part of the rate."""
        self.done = done
        self._last = (time.monotonic(), done)

    def advance(self, amount: int) -> None:
        """So much more is done."""
        self.done += amount

    def line(self) -> str:
        """How it stands; the rate is that since the last line."""
        now = time.monotonic()
        before, done = self._last
        self._last = (now, self.done)
        parts = [f"{now - self._began:.0f} s"]
        if self.total is not None or self.done:
            parts.insert(0, self._amount())
        if self.done > done:
            rate = (self.done - done) / max(now - before, 1e-9)
            parts.append(f"{self._shown(int(rate))}/s" if self._unit == "bytes" else "")
            if self.total is not None and self.total >= self.done:
                parts.append(f"about {(self.total - self.done) / rate:.0f} s left")
        return f"{self._what}: {', '.join(filter(None, parts))}"

    def _amount(self) -> str:
        if not self.total:
            return self._shown(self.done)
        done = self._shown(self.done) if self._unit == "bytes" else f"{self.done:,}"
        return f"{done} of {self._shown(self.total)} ({self.done / self.total:.0%})"

    def _shown(self, amount: int) -> str:
        return decimal(amount) if self._unit == "bytes" else f"{amount:,} {self._unit}"

    def speak(self) -> None:
        """Say how it stands every few seconds, later less often, until ``end``."""
        while not self._over.wait(self._pause()):
            if not self.paused:
                self._said = True
                logger.info("%s", self.line())

    def _pause(self) -> float:
        so_far = time.monotonic() - self._began
        return min(max(_FIRST_SECONDS, _SHARE * so_far), _SELDOM_SECONDS)

    def end(self, thread: threading.Thread, *, well: bool) -> None:
        """Stop speaking, and say that it is done if anything has been said."""
        self._over.set()
        thread.join()
        if self._said and well:
            logger.info("%s: done in %.0f s", self._what, time.monotonic() - self._began)


@contextmanager
def long_step(what: str, total: int | None = None, unit: str = "bytes") -> Iterator[LongStep]:
    """Do a step inside, which is told every few seconds; of nested ones the innermost is.

    Args:
        what, total, unit: see ``LongStep``.
    """
    found, outer = LongStep(what, total, unit), _innermost.get()
    if outer is not None:
        outer.paused = True
    token = _innermost.set(found)
    thread = threading.Thread(target=found.speak, daemon=True, name=f"step {what}")
    thread.start()
    well = False
    try:
        yield found
        well = True
    finally:
        _innermost.reset(token)
        found.end(thread, well=well)
        if outer is not None:
            outer.paused = False
