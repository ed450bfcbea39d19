"""Watchdog: notices a rank that stops answering or a network that goes silent, and names it.

A collective waits for a stopped process or a dead link for as long as its own limit, half an hour
by default, and cannot tell for whom. So each rank has a heartbeat: a thread writes a count and what
the rank is doing to the store where the ranks met, and reads those of the others. A second thread
only looks at the clock, because the first may itself be waiting for a network that is gone. Both
count turns in which this process was running, not seconds on the wall: a process that was suspended
and wakes up does not accuse the others.

A transport that notices a lost rank says so at once, and the rank that trains ends by itself (gloo
does; see ``lost_ranks.explained``). NCCL inside a machine waits for ever. So after a few seconds in
which nothing of the kind has happened, the watchdog also ends this process where another rank has
died (the ranks of its machine see that, and tell the others), has left by an exception, or has left
in peace while this rank is still in a phase.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist

from distributed_ignn.comm.activity import Activity, Patience
from distributed_ignn.comm.processes import Process
from distributed_ignn.errors import JobError

_INTERVAL_SECONDS = 0.5
_RANKS_PER_SECOND = 64  # a store answers everybody's questions about everybody; go easy on it
_MISSED = 3  # beats without which a rank counts as gone once a connection has broken
_NAMING_SECONDS = 5.0
_LEAVING_SECONDS = 10.0  # after its last meeting with the others, a rank is out of its phase sooner
_ALIVE, _ENDED, _FAILED = "alive", "ended", "failed"
TALKS = "watchdog talks"
"""Name of the thread that talks."""


@dataclass(slots=True)
class Pulse:
    """What is known of another rank.

    Args:
        beat: its count.
        state: ``alive``; once it has left by itself, ``ended``, or ``failed`` if by an exception.
        doing: its activity.
        unchanged: turns of this rank since the count last rose.
        gone: whether its process is, without having said that it leaves.
    """

    beat: int = -1
    state: str = _ALIVE
    doing: str = "starting"
    unchanged: int = 0
    gone: bool = False


class Watchdog:
    """Watches the other ranks of a job.

    Args:
        rank, world_size: position of this rank.
        activity: what this rank is doing.
        seconds: a rank that has not answered for so long is lost.
        connect: opens a connection of its own to the ranks' store.
        place: where the store is, for messages.
        processes: of other ranks; those of other machines may be among them.
        patience: of a transport that gives up on nobody, NCCL: how long this rank may be in one
            collective.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        activity: Activity,
        seconds: float,
        connect: Callable[[], dist.Store],
        place: str,
        processes: Mapping[int, Process] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._rank = rank
        self._activity = activity
        self._place = place
        self._interval = min(max(_INTERVAL_SECONDS, world_size / _RANKS_PER_SECOND), seconds / 4)
        self._turns_allowed = max(int(seconds / self._interval), _MISSED)
        self._seconds = seconds
        self._connect = connect
        self._processes = processes or {}
        self._patience = patience
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

    def end(self, *, failed: bool = False) -> None:
        """Tell the others that this rank leaves by itself.

        Args:
            failed: whether by an exception of its own, so that they must not wait for it.
        """
        if self._state == _ALIVE:
            self._state = _FAILED if failed else _ENDED
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
        """Ranks that are gone without having ended in peace; waits until that is clear."""
        self.end()
        deadline = time.monotonic() + max(_NAMING_SECONDS, 2 * _MISSED * self._interval)
        with self._turned:
            while time.monotonic() < deadline and not self._clear():
                self._turned.wait(self._interval)
        return [rank for rank, pulse in self.pulses.items() if self._missing(pulse)]

    def see_off(self) -> None:
        """Wait, but not for long, until every other rank has ended or is lost.

        For the rank that tells of a mistake that all have met: torchrun ends the others as soon as
        it has left, and they are not to meet that on their own way out.
        """
        self.end()
        deadline = time.monotonic() + _NAMING_SECONDS
        with self._turned:
            while time.monotonic() < deadline and any(
                pulse.state == _ALIVE and not self._missing(pulse) for pulse in self.pulses.values()
            ):
                self._turned.wait(self._interval)

    def _clear(self) -> bool:
        """Whether some rank is missing and every other one is either missing or has ended."""
        missing = [self._missing(pulse) for pulse in self.pulses.values()]
        ended = [pulse.state == _ENDED for pulse in self.pulses.values()]
        every = all(lost or left for lost, left in zip(missing, ended, strict=True))
        return self._turns_without_store > _MISSED or (every and any(missing))

    def _missing(self, pulse: Pulse) -> bool:
        return pulse.gone or pulse.state == _FAILED or self._silent(pulse, _MISSED)

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
        gone = [rank for rank, pulse in self.pulses.items() if pulse.gone]
        failed_in = self._activity.failed_in if self._state == _FAILED else None
        words = [self._beat, self._state, failed_in or str(self._activity), gone]
        store.set(_key(self._rank), json.dumps(words))

    def _ask(self, store: dist.Store) -> None:
        # the processes first: one may say that it leaves, and then end
        ended = {rank for rank, process in self._processes.items() if process.has_ended()}
        keys = [_key(other) for other in self.pulses]
        found = store.multi_get(keys)  # waits for ranks that have not begun yet
        with self._turned:
            for pulse, text in zip(self.pulses.values(), found, strict=True):
                beat, pulse.state, pulse.doing, told = json.loads(text)
                pulse.unchanged = 0 if beat != pulse.beat else pulse.unchanged + 1
                pulse.beat = beat
                ended |= set(told)
            for rank in ended & self.pulses.keys():
                self.pulses[rank].gone |= self.pulses[rank].state == _ALIVE
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
        lost = self._names(self._is_lost) or self._gone_with_the_store()
        if lost:
            return f"{lost} was lost; rank {self._rank} was in {self._activity}"
        left = self._names(self._has_left)
        if left:
            return f"{left} has ended, and rank {self._rank} still waits in {self._activity}"
        if self._turns_without_store > self._turns_allowed:
            return (
                f"no answer for {self._seconds:g} s from {self._place}, where rank 0 keeps the "
                f"ranks together; rank {self._rank} was in {self._activity}"
            )
        silent = self._names(lambda pulse: self._silent(pulse, self._turns_allowed))
        if silent:
            return (
                f"no answer for {self._seconds:g} s from {silent}; rank {self._rank} was in "
                f"{self._activity}"
            )
        patience = self._patience
        if patience is None or not patience.is_over(self._activity, self._interval):
            return None
        return (
            f"rank {self._rank} waited {patience.seconds:g} s for the others in {self._activity}, "
            "and all of them answer; where they are only slower, raise comm.timeout_seconds"
        )

    def _gone_with_the_store(self) -> str:
        """Ranks of this machine whose processes are gone where nobody can be asked about them."""
        late = self._turns_without_store > self._turns(_LEAVING_SECONDS)
        if not (late and self._activity.in_phase):
            return ""  # the store's own may have left in peace, without a chance to say so
        for rank, process in self._processes.items():
            self.pulses[rank].gone |= self.pulses[rank].state == _ALIVE and process.has_ended()
        return self._names(lambda pulse: pulse.gone)

    def _names(self, chosen: Callable[[Pulse], bool]) -> str:
        """The ranks that are meant, as a message has them; empty for none."""
        return " and ".join(
            f"rank {rank} (last seen in {pulse.doing})"
            for rank, pulse in self.pulses.items()
            if chosen(pulse)
        )

    def _is_lost(self, pulse: Pulse) -> bool:
        """Whether a rank has died or failed, and this one has not noticed by itself."""
        missing = pulse.gone or pulse.state == _FAILED
        return missing and pulse.unchanged > self._turns(_NAMING_SECONDS)

    def _has_left(self, pulse: Pulse) -> bool:
        """Whether a rank has ended in peace while this one is in a phase, which takes it."""
        activity = self._activity
        waits = pulse.state == _ENDED and activity.in_phase and activity.limited
        return waits and pulse.unchanged > self._turns(_LEAVING_SECONDS)

    def _turns(self, seconds: float) -> int:
        return math.ceil(seconds / self._interval)

    def _leave(self, problem: str) -> None:
        """End this process: its main thread is waiting and cannot be woken."""
        tells = self._rank == min({self._rank, *self._answering()})
        self._state = _ENDED  # whoever has not noticed yet need not say it again
        self._wake.set()
        line = f"{problem}; {WAY_OUT}"
        if "no answer" in problem:
            line += " (comm.hang_seconds is the limit)"
        for action in self.before_exit:
            with suppress(Exception):  # the process has to end whatever they meet
                action(line)
        if tells:
            print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(JobError.EXIT_CODE)

    def _answering(self) -> list[int]:
        if self._turns_without_store > self._turns_allowed:
            return []
        return [
            rank
            for rank, pulse in self.pulses.items()
            if not (self._missing(pulse) or self._has_left(pulse))
        ]


WAY_OUT = (
    "a process was stopped or lost, or a machine or the network is down; if nothing starts the "
    "ranks again, start them yourself; a training goes on with --resume auto"
)


def _key(rank: int) -> str:
    return f"beat/{rank}"
