"""Watchdog: notices a rank that stops answering or a network that goes silent, and names it.

A collective waits for a stopped process or a dead link for as long as its own limit, half an hour
by default, and cannot tell for whom. So each rank has a heartbeat: a thread writes a count and what
the rank is doing to the store where the ranks met, and reads those of the others. A second thread
only looks at the clock, because the first may itself be waiting for a network that is gone. Both
count turns in which this process was running, not seconds on the wall: a process that was suspended
and wakes up does not accuse the others.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist

from distributed_ignn.comm.activity import Activity
from distributed_ignn.errors import JobError

_INTERVAL_SECONDS = 0.5
_RANKS_PER_SECOND = 64  # a store answers everybody's questions about everybody; go easy on it
_MISSED = 3  # beats without which a rank counts as gone once a connection has broken
_NAMING_SECONDS = 5.0
_ALIVE, _ENDED = "alive", "ended"
TALKS = "watchdog talks"
"""Name of the thread that talks."""


@dataclass(slots=True)
class Pulse:
    """What is known of another rank.

    Args:
        beat: its count.
        state: ``alive``, or ``ended`` once it has left by itself.
        doing: its activity.
        unchanged: turns of this rank since the count last rose.
    """

    beat: int = -1
    state: str = _ALIVE
    doing: str = "starting"
    unchanged: int = 0


class Watchdog:
    """Watches the other ranks of a job.

    Args:
        rank, world_size: position of this rank.
        activity: what this rank is doing.
        seconds: a rank that has not answered for so long is lost.
        connect: opens a connection of its own to the ranks' store.
        place: where the store is, for messages.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        activity: Activity,
        seconds: float,
        connect: Callable[[], dist.Store],
        place: str,
    ) -> None:
        self._rank = rank
        self._activity = activity
        self._place = place
        self._interval = min(max(_INTERVAL_SECONDS, world_size / _RANKS_PER_SECOND), seconds / 4)
        self._turns_allowed = max(int(seconds / self._interval), _MISSED)
        self._seconds = seconds
        self._connect = connect
        self.pulses = {other: Pulse() for other in range(world_size) if other != rank}
        self._beat, self._state = 0, _ALIVE
        self._turns_without_store = 0
        self._store: dist.Store | None = None
        self._wake, self._closed = threading.Event(), threading.Event()
        self._turned = threading.Condition()
        self.before_exit: list[Callable[[str], None]] = []
        self._threads = [
            threading.Thread(target=target, daemon=True, name=name)
            for name, target in ((TALKS, self._exchange), ("watchdog judges", self._judge))
        ]

    def start(self) -> None:
        """Begin to watch; the others may start later."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Tell the others that this rank leaves by itself."""
        self._state = _ENDED
        self._wake.set()

    def close(self) -> None:
        """Stop watching. A thread that waits for a dead network is left, see ``cli.leave``."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(_NAMING_SECONDS)

    def first_to_tell(self) -> bool:
        """Whether no other rank has told the user yet; True where nobody can be asked."""
        if self._store is None or self._turns_without_store > _MISSED:
            return True
        try:
            return self._store.add("told", 1) == 1
        except RuntimeError:
            return True

    def lost(self) -> list[int]:
        """Ranks whose heart has stopped without having ended; waits until that is clear."""
        self.end()
        deadline = time.monotonic() + max(_NAMING_SECONDS, 2 * _MISSED * self._interval)
        with self._turned:
            while time.monotonic() < deadline and not self._clear():
                self._turned.wait(self._interval)
        return [rank for rank, pulse in self.pulses.items() if self._silent(pulse, _MISSED)]

    def _clear(self) -> bool:
        """Whether some rank is silent and every other one is either silent or has ended."""
        silent = [self._silent(pulse, _MISSED) for pulse in self.pulses.values()]
        ended = [pulse.state == _ENDED for pulse in self.pulses.values()]
        every = all(quiet or left for quiet, left in zip(silent, ended, strict=True))
        return self._turns_without_store > _MISSED or (every and any(silent))

    @staticmethod
    def _silent(pulse: Pulse, turns: int) -> bool:
        return pulse.state == _ALIVE and pulse.unchanged >= turns

    def _exchange(self) -> None:
        """The thread that talks."""
        try:
            self._store = self._connect()
            while True:
                closing = self._closed.is_set()
                self._tell(self._store)  # also where all is over: others wait for the first word
                if closing:
                    return
                self._ask(self._store)
                self._wake.wait(self._interval)
                self._wake.clear()
        except RuntimeError:  # of the store: the other thread notices that no turn comes any more
            return

    def _tell(self, store: dist.Store) -> None:
        self._beat += 1
        store.set(_key(self._rank), json.dumps([self._beat, self._state, str(self._activity)]))

    def _ask(self, store: dist.Store) -> None:
        keys = [_key(other) for other in self.pulses]
        found = store.multi_get(keys)  # waits for ranks that have not begun yet
        with self._turned:
            for pulse, text in zip(self.pulses.values(), found, strict=True):
                beat, pulse.state, pulse.doing = json.loads(text)
                pulse.unchanged = 0 if beat != pulse.beat else pulse.unchanged + 1
                pulse.beat = beat
            self._turns_without_store = 0
            self._turned.notify_all()

    def _judge(self) -> None:
        """The thread that looks at the clock."""
        while not self._closed.wait(self._interval):
            self._turns_without_store += 1
            problem = self._problem()
            if problem is not None and not self._closed.is_set():
                self._leave(problem)

    def _problem(self) -> str | None:
        if self._state != _ALIVE:
            return None  # the rank is on its way out
        if self._turns_without_store > self._turns_allowed:
            return (
                f"no answer for {self._seconds:g} s from {self._place}, where rank 0 keeps the "
                f"ranks together; rank {self._rank} was in {self._activity}"
            )
        silent = [
            f"rank {rank} (last seen in {pulse.doing})"
            for rank, pulse in self.pulses.items()
            if self._silent(pulse, self._turns_allowed)
        ]
        if not silent:
            return None
        return (
            f"no answer for {self._seconds:g} s from {' and '.join(silent)}; rank {self._rank} was "
            f"in {self._activity}"
        )

    def _leave(self, problem: str) -> None:
        """End this process: its main thread is waiting and cannot be woken."""
        line = f"{problem}; {WAY_OUT} (comm.hang_seconds is the limit)"
        for action in self.before_exit:
            with suppress(Exception):  # the process has to end whatever they meet
                action(line)
        if self._rank == min({self._rank, *self._answering()}):
            print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(JobError.EXIT_CODE)

    def _answering(self) -> list[int]:
        if self._turns_without_store > self._turns_allowed:
            return []
        return [r for r, pulse in self.pulses.items() if not self._silent(pulse, _MISSED)]


WAY_OUT = (
    "a process was stopped or lost, or a machine or the network is down; if nobody starts the "
    "ranks again, go on from the last checkpoint with --resume auto"
)


def _key(rank: int) -> str:
    return f"beat/{rank}"
