"""A search from its request to its files, whoever trains its trials.

``Search`` is asked for the next step and told what became of it. Who asks is one of three: the
ranks of this job, which train one trial after the other (``search_here``); this process, which lets
processes of this machine train several at a time (``search_locally``); or Ray Tune
(``ray_search.py``).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, absolute_paths
from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.graph.storage.manifest import Manifest
from distributed_ignn.graph.storage.shard_store import read_manifest
from distributed_ignn.lab.studies.search.board import Board
from distributed_ignn.lab.studies.search.halving import (
    FINALISTS,
    Budget,
    Halving,
    Job,
    Plan,
    Reached,
    Trial,
    rungs_of,
)
from distributed_ignn.lab.studies.search.ledger import Ledger, read_record, search_identity
from distributed_ignn.lab.studies.search.rung import Rung, train_rung
from distributed_ignn.lab.studies.search.space import Settings, Space, restricted
from distributed_ignn.lab.studies.shared_shards import shard_folder, shards_for_all
from distributed_ignn.lab.studies.study_runs import with_settings
from distributed_ignn.launchers.local import run_local
from distributed_ignn.runs.layout import SHARDS

TRIALS = 24
"""So many, where neither a number nor a budget of time is given."""

_RUNS = "runs"
_LONGEST_NAME = 100
_UNSAFE = re.compile(r"[^\w.=+-]")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is searched, and how long.

    Args:
        config: settings as the search is given them; the first trial has them.
        grid: values by dotted name that take the place of those of the space.
        pinned: settings that no trial changes.
        seeds: the first one for the comparison, the others for the best trials.
        out: folder of the search, an absolute path.
        trials: how many at most; None for a number that follows from the rest.
        budget: seconds; infinity for no limit.
        ranks: of each trial.
        slots: trials at a time.
    """

    config: RunConfig
    grid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pinned: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    out: Path = Path("runs/search")
    trials: int | None = None
    budget: float = float("inf")
    ranks: int = 1
    slots: int = 1

    @property
    def is_exhaustive(self) -> bool:
        """Whether all combinations of the grid are trained, with all seeds, and nothing else."""
        return bool(self.grid) and self.trials is None and self.budget == float("inf")

    def combinations(self) -> list[Settings]:
        """Those of the grid, the last name varying fastest.

        Raises:
            UserError: one is not allowed.
        """
        found: list[Settings] = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        for settings in found:
            with_settings(self.config, settings)
        return found


class Search:
    """Decides, writes down and shows; one process of a search has it.

    Args:
        request: what to search.
        manifest: of what is trained on.
        budget: of time; it may have begun earlier.
        enabled: whether to show anything.

    Raises:
        UserError: the folder holds another search; or see ``Request.combinations``.
    """

    def __init__(
        self, request: Request, manifest: Manifest, budget: Budget, *, enabled: bool = True
    ) -> None:
        self.request = request
        axes = restricted(request.grid, request.pinned)
        exhaustive = request.is_exhaustive
        self._configs: dict[tuple[tuple[str, str], ...], RunConfig] = {}
        self._space = Space(request.config, axes, manifest.whole, request.seeds[0], request.pinned)
        epochs = request.config.train.epochs
        rungs = (epochs,) if exhaustive else rungs_of(epochs)
        name = search_identity(request.config, rungs)
        record = read_record(request.out, name, manifest.fingerprint)
        budget.before = record.seconds
        trials = self._begun(record.trials)
        limit = request.trials
        if limit is None and budget.seconds == float("inf"):
            limit = len(trials) if exhaustive else TRIALS
        finalists = None if exhaustive else FINALISTS
        plan = Plan(rungs, request.seeds, limit, finalists, request.slots)
        self.halving = Halving(plan, trials, budget, self._draw)
        used = axes[: len(request.grid)] if exhaustive else axes
        self.ledger = Ledger(request.out, request.config, used, self.halving, record)
        self.board = Board(self.halving, enabled=enabled)

    def _begun(self, trials: list[Trial]) -> list[Trial]:
        """The trials of an earlier call, and those that every search begins with."""
        if self.request.is_exhaustive:
            wanted = [("grid", settings) for settings in self.request.combinations()]
            kept = [self._config(settings) for _, settings in wanted]
            trials = [t for t in trials if self._config(t.settings) in kept]
        else:
            known = self._space.known.items()
            wanted = [("default", {}), *known]
            wanted = wanted[: self.request.trials]
        for origin, settings in wanted:
            if not _is_among(self._config(settings), trials, self._config):
                number = max((trial.number for trial in trials), default=0) + 1
                trials.append(Trial(number=number, settings=dict(settings), origin=origin))
        return trials

    def _config(self, settings: Settings) -> RunConfig:
        key = tuple(sorted(settings.items()))
        if key not in self._configs:
            self._configs[key] = with_settings(self.request.config, settings)
        return self._configs[key]

    def _draw(self, number: int, best: Any) -> Settings | None:
        trials = self.halving.trials
        return self._space.draw(
            number, best, lambda config: _is_among(config, trials, self._config)
        )

    def next(self) -> Job | None:
        """What to train now; None if there is nothing, at least until something ends."""
        job = self.halving.next()
        if job is not None:
            self.board.started(job)
        return job

    def rung(self, job: Job) -> Rung:
        """The run of a job, in its folder."""
        trial = self.halving.trial(job.trial)
        changes = {**trial.settings, "seed": job.seed}
        folder = self.request.out / _RUNS / _name(trial, job.seed)
        run = absolute_paths(with_settings(self.request.config, {**changes, "output": folder}))
        return Rung(run, job.until, job.limit)

    def told(self, job: Job, found: Mapping[str, Any]) -> None:
        """Take what ``train_rung`` returned, write it down and show it.

        Raises:
            UserError: the folder cannot be written.
        """
        outcome: Reached | str = found.get("failure") or ""
        if not outcome:
            before = self.halving.trial(job.trial).last(job.seed)
            self.ledger.metric = found["metric"]
            outcome = Reached(
                epochs=found["epochs"],
                validation=found["best_val"],
                best_epoch=found["best_epoch"],
                confirmed=found["confirmed"],
                seconds=found["seconds"] + (before.seconds if before else 0.0),
                over=found["finished"],
            )
        trial = self.halving.told(job, outcome)
        with writing_to(self.request.out):
            self.ledger.write()
        self.board.ended(job, trial)

    def conclude(self) -> Trial:
        """Write best.yaml and the last state of search.json; the chosen trial.

        Raises:
            UserError: every trial failed, or the folder cannot be written.
        """
        chosen = self.halving.chosen()
        if chosen is None:
            failed = [trial.failure for trial in self.halving.trials if trial.failure]
            first = failed[0] if failed else "no time was left for any"
            raise UserError(f"all {len(failed)} trials failed; the first: {first}")
        with writing_to(self.request.out):
            self.ledger.write()
            self.ledger.write_best(chosen)
        return chosen


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Say what cannot be written.

    Raises:
        UserError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write to --out {out}: {reason}; the same command goes on once that is mended, "
            "or choose another --out"
        ) from error


def search_here(
    request: Request, comm: Communicator, *, shows: bool = True, owns_process: bool = True
) -> Search | None:
    """Let the ranks of this job train one trial after the other; every rank calls it.

    Args:
        request: what to search.
        comm: this rank's communicator.
        shows: whether the first rank shows how it goes.
        owns_process: whether the process is there for the search alone, see ``Conduct``.

    Returns:
        On the first rank the search, which is over; None on the others.

    Raises:
        UserError: see ``Search``, or the data cannot be read (on every rank).
        Stopped: some rank was asked to stop; the same call goes on.
    """
    budget, request = Budget(request.budget), replace(request, ranks=comm.world_size)
    manifest = read_manifest(shards_for_all(request.config, request.out, comm))

    def begin() -> Search | None:
        return Search(request, manifest, budget, enabled=shows) if comm.is_main else None

    search = comm.together(begin)
    with search.board.shown() if search else nullcontext(), _told_how_to_go_on():
        while (step := _next_for_all(search, comm)) is not None:
            rung, job = step
            found = _train_with_all(request, rung, comm, owns_process)
            comm.together(partial(search.told, job, found) if search and job else _nothing)
    return search


def _nothing() -> None:
    """What the other ranks do while the first one writes."""


def _next_for_all(search: Search | None, comm: Communicator) -> tuple[Rung, Job | None] | None:
    """What all ranks train next, and on the first rank the job that it is; None at the end."""
    job = comm.together(lambda: search.next() if search else None)
    told = search.rung(job).as_json() if search and job else None
    found = comm.gather_json(told)[0]
    return None if found is None else (Rung.from_json(found), job)


def _train_with_all(request: Request, rung: Rung, comm: Communicator, owns: bool) -> dict[str, Any]:
    try:
        folder = shards_for_all(rung.run, request.out, comm)
    except UserError as error:  # of this trial's data settings; on every rank alike
        return {"failure": str(error)}
    return train_rung(comm, _on(rung, folder), owns)


def _on(rung: Rung, shards: Path) -> Rung:
    return replace(rung, run=with_settings(rung.run, {"partition.dir": shards}))


@contextmanager
def _told_how_to_go_on() -> Iterator[None]:
    """Say what a search does after a signal, in the place of what its trial says."""
    try:
        yield
    except Stopped as stopped:
        name = Stopped.name(stopped.signum)
        raise Stopped(
            stopped.signum, f"stopped by {name}; the same command goes on from here"
        ) from stopped


class Driver:
    """A search whose trials are trained by other processes than the one that decides.

    Args:
        request: what to search.

    Raises:
        UserError: see ``Search``, or the data cannot be read.
    """

    def __init__(self, request: Request) -> None:
        budget = Budget(request.budget)
        self._request = request
        shards = self._shards(absolute_paths(request.config))
        self.search = Search(request, read_manifest(shards), budget)

    def _shards(self, config: RunConfig) -> Path:
        with writing_to(self._request.out):
            return shard_folder(config, self._request.ranks, self._request.out / SHARDS)

    def next(self) -> tuple[Job, Rung] | None:
        """As ``Search.next``, with the run, whose shards are there."""
        while (job := self.search.next()) is not None:
            rung = self.search.rung(job)
            try:
                return job, _on(rung, self._shards(rung.run))
            except UserError as error:  # of this trial's data settings
                self.search.told(job, {"failure": str(error)})
        return None


def search_locally(request: Request) -> Search:
    """Let processes of this machine train several trials at a time, or one on several ranks.

    Returns:
        The search, which is over.

    Raises:
        UserError: see ``Search``, or the data cannot be read.
    """
    driver = Driver(request)
    ended: SimpleQueue[tuple[Job, dict[str, Any] | BaseException]] = SimpleQueue()
    with driver.search.board.shown():
        busy = 0
        while True:
            while busy < request.slots and (step := driver.next()) is not None:
                # a thread that dies with this process, and its ranks with it
                Thread(target=_train_apart, args=(request, *step, ended), daemon=True).start()
                busy += 1
            if busy == 0:
                return driver.search
            job, found = ended.get()
            busy -= 1
            if isinstance(found, BaseException):
                raise found
            driver.search.told(job, found)


def _train_apart(
    request: Request,
    job: Job,
    rung: Rung,
    ended: SimpleQueue[tuple[Job, dict[str, Any] | BaseException]],
) -> None:
    """Train a trial on processes of its own, and say what became of it."""
    config = rung.run
    cores = len(os.sched_getaffinity(0)) // (request.slots * request.ranks)
    threads = config.train.threads or max(1, cores)
    where: dict[str, Any] = {"device": config.device, "comm": config.comm, "threads": threads}
    try:
        found: Any = run_local(train_rung, request.ranks, rung, **where)[0]
    except (JobError, UserError) as error:  # as when memory runs out
        found = {"failure": str(error)}
    except BaseException as error:
        found = error
    ended.put((job, found))


def _is_among(
    config: RunConfig, trials: Sequence[Trial], make: Callable[[Settings], RunConfig]
) -> bool:
    """Whether one of the trials has these settings, however they are written."""
    return any(make(trial.settings) == config for trial in trials)


def _name(trial: Trial, seed: int) -> str:
    """Of the folder of a trial's run: its settings, or a number that stands for them."""
    plain = _UNSAFE.sub("-", "+".join(f"{k}={v}" for k, v in trial.settings.items()))
    if len(plain) > _LONGEST_NAME:
        plain = f"{hashlib.sha256(plain.encode()).hexdigest()[:12]}"
    return f"{plain or 'default'}+seed={seed}"
