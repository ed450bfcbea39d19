"""Work that one rank of a machine does for as long as it takes, while no rank is in a collective.

A collective has a limit (``comm.timeout_seconds``), and loading a large graph for the first time
has none: hours of download and of dividing are sound. So the ranks that have nothing to do ask the
store where the ranks met whether the others are through. A rank at work has a heartbeat there. Who
waits on the same machine also looks at its process: one that has ended is named within a second,
on this machine and, through the store, on all others. A rank that is alone on its machine is lost
when its heart is silent for ``_SILENT_SECONDS``. A process that is stopped but there is left to the
watchdog (``comm.hang_seconds``).
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from distributed_ignn.cli import LOG_ONLY
from distributed_ignn.comm.communicator import Communicator, attempt
from distributed_ignn.comm.processes import Process
from distributed_ignn.comm.watchdog import WAY_OUT
from distributed_ignn.errors import JobError, UserError

T = TypeVar("T")
logger = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
_POLL_SECONDS = 0.1
_RANKS_PER_SECOND = 640  # questions to the store, of all ranks together
_SILENT_SECONDS = 30.0
_TELL_SECONDS = 30.0
_HEARTS_SECONDS = 5.0  # between two looks at the hearts
_SIGNAL_SECONDS = 2.0  # a signal to the whole job may reach this rank later than another


def apart(
    comm: Communicator,
    action: Callable[[], T],
    *,
    works: bool,
    doing: str = "go on",
    way_out: str = "",
) -> T | None:
    """What ``action`` returns where this rank works; None where it waits. Every rank calls it.

    As ``Communicator.together``, without a limit on how long the work may take.

    Args:
        comm: this rank's communicator.
        action: the work, which must not talk to other ranks.
        works: whether this rank does it.
        doing, way_out: see ``Communicator.together``.

    Raises:
        UserError: the first failing rank's message, on every rank.
        JobError: a rank at work was lost, or ended otherwise.
    """
    if comm.world_size == 1:
        result, problem = attempt(action, doing, way_out) if works else (None, None)
        if problem is not None:
            raise UserError(problem)
        return result
    room = _Room(comm, works)
    result = None
    with comm.activity.without_limit():
        if works:
            with room.at_work():
                result, problem = attempt(action, doing, way_out)
            room.tell(problem)
        problems = room.problems()
    for problem in problems:
        if problem is not None:
            raise UserError(problem)
    return result


@dataclass(frozen=True, slots=True)
class _Worker:
    """A rank at work.

    Args:
        rank: of it.
        process: its own; None where it is on another machine.
    """

    rank: int
    process: Process | None

    def has_ended(self) -> bool:
        """Whether its process is gone, as far as this rank can see."""
        return self.process is not None and self.process.has_ended()


class _Room:
    """What the ranks of one call tell each other through the store."""

    def __init__(self, comm: Communicator, works: bool) -> None:
        own = Process.this()
        mine = [uuid.uuid4().hex, works, own]
        ranks = comm.gather_json(mine)
        self._comm = comm
        # keys of its own: the store may be that of several attempts
        self._store = dist.PrefixStore(f"ignn/apart/{ranks[0][0]}", _store())
        self._workers = [
            _Worker(rank, Process(*process) if process[0] == own.place else None)
            for rank, (_, at_work, process) in enumerate(ranks)
            if at_work
        ]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """This rank works inside; the others learn of it where it leaves by an exception."""
        over = threading.Event()
        heart = threading.Thread(target=self._beat, args=(over,), daemon=True, name="heart")
        heart.start()
        try:
            yield
        except BaseException as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            with suppress(RuntimeError):  # the store is gone, and the others know
                self._give_up(f"rank {self._comm.rank} gave up ({reason})")
            raise
        finally:
            over.set()
            heart.join()

    def _beat(self, over: threading.Event) -> None:
        count, comm = 0, self._comm
        with suppress(RuntimeError):  # the store is gone; the work may still be finished
            while True:
                count += 1
                self._store.set(_heart(comm.rank), json.dumps([count, str(comm.activity)]))
                if over.wait(_BEAT_SECONDS):
                    return

    def _give_up(self, line: str) -> None:
        self._store.set("lost", line)

    def tell(self, problem: str | None) -> None:
        """This rank is through with its work; ``problem`` is what a user has to know."""
        self._store.set(_told(self._comm.rank), json.dumps(problem))
        self._store.add("through", 1)

    def problems(self) -> list[str | None]:
        """What every rank at work has told, in their order, once all have.

        Raises:
            JobError: one was lost, or left without doing its work.
        """
        pause = max(_POLL_SECONDS, self._comm.world_size / _RANKS_PER_SECOND)
        watch = _Watch(self._comm, self._workers, self._store, pause)
        while not self._all_through():
            lost = watch.lost()
            if lost is not None:
                raise self._lost(lost)
            time.sleep(pause)
        return [json.loads(self._store.get(_told(worker.rank))) for worker in self._workers]

    def _all_through(self) -> bool:
        try:
            if self._store.add("through", 0) == len(self._workers):
                return True
            if not self._store.check(["lost"]):
                return False
            line = self._store.get("lost").decode()
        except RuntimeError:  # the process that kept the store may have been at work
            time.sleep(_POLL_SECONDS)
            gone = [worker for worker in self._workers if worker.has_ended()]
            if not gone:
                raise
            line = f"rank {gone[0].rank} was lost"
        if "gave up" in line:
            time.sleep(_SIGNAL_SECONDS)
        raise self._lost(line)

    def _lost(self, what: str) -> JobError:
        comm = self._comm
        told = False
        with suppress(RuntimeError):  # nobody can be asked
            self._give_up(what)
            told = self._store.add("heard", 1) > 1
        line = f"{what}; rank {comm.rank} waited for it in {comm.activity}; {WAY_OUT}"
        return JobError(line, told=told)


class _Watch:
    """Looks after ranks at work for one that waits, and says now and then for whom that is."""

    def __init__(
        self, comm: Communicator, workers: list[_Worker], store: dist.Store, pause: float
    ) -> None:
        self._comm, self._workers, self._store = comm, workers, store
        self._turns = max(1, round(_HEARTS_SECONDS / pause))
        self._limit = _SILENT_SECONDS / (self._turns * pause)
        self._turn = 0
        self._beats = dict.fromkeys([worker.rank for worker in workers], -1)
        self._doing = dict.fromkeys(self._beats, "starting")
        self._unchanged = dict.fromkeys(self._beats, 0)
        self._began = self._said = time.monotonic()

    def lost(self) -> str | None:
        """Name a rank at work that is lost."""
        for worker in self._workers:
            # the process first: it may tell and end
            if worker.has_ended() and not self._has_told(worker):
                self._listen([worker])
                return self._named(worker)
        # turns and not seconds: a process that was suspended itself accuses nobody
        self._turn += 1
        if self._turn % self._turns:
            return None
        left = [worker for worker in self._workers if not self._has_told(worker)]
        self._listen(left)
        self._say(left)
        silent = [
            worker
            for worker in left
            if worker.process is None and self._unchanged[worker.rank] > self._limit
        ]
        return self._named(silent[0]) if silent else None

    def _has_told(self, worker: _Worker) -> bool:
        return bool(self._store.check([_told(worker.rank)]))

    def _named(self, worker: _Worker) -> str:
        return f"rank {worker.rank} (last seen in {self._doing[worker.rank]}) was lost"

    def _listen(self, workers: list[_Worker]) -> None:
        for rank in [worker.rank for worker in workers]:
            beat, key = self._beats[rank], _heart(rank)
            if self._store.check([key]):
                beat, self._doing[rank] = json.loads(self._store.get(key))
            self._unchanged[rank] = 0 if beat != self._beats[rank] else self._unchanged[rank] + 1
            self._beats[rank] = beat

    def _say(self, left: list[_Worker]) -> None:
        now = time.monotonic()
        if not left or now < self._said + _TELL_SECONDS:
            return
        self._said = now
        names = " and ".join(f"rank {w.rank} ({self._doing[w.rank]})" for w in left)
        extra = None if self._comm.is_main else LOG_ONLY
        logger.info("waiting for %s, %.0f s", names, now - self._began, extra=extra)


def _store() -> dist.Store:
    """Where the ranks met, whoever has started the process group."""
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("several ranks have a process group")
    store: dist.Store = group.get_group_store()
    return store


def _told(rank: int) -> str:
    return f"told/{rank}"


def _heart(rank: int) -> str:
    return f"heart/{rank}"
