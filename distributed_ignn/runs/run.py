"""One rank's whole run, from its settings to its summary; the same under torchrun and Ray Train.

Output folder: config.yaml, metrics.jsonl, summary.json, memory.json, checkpoints/,
solver.safetensors, shards/, shards.json, logs/ and TensorBoard events; crash/ after a failure.
Rank 0 writes; every rank fails together when one of them cannot go on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from distributed_ignn.cli import LOG_ONLY, hushed
from distributed_ignn.comm.apart import apart
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, said_of_features, what_was_decided
from distributed_ignn.config.dataset import IN_MEMORY
from distributed_ignn.errors import Stopped, UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.models.kinds import KINDS
from distributed_ignn.propagation.kernels import choose_kernel
from distributed_ignn.runs.checkpoints.checkpoint import Snapshot, load_checkpoint, load_newest
from distributed_ignn.runs.checkpoints.snapshot import restore
from distributed_ignn.runs.epochs import EpochHook, PreparedRun, RunSession
from distributed_ignn.runs.layout import CHECKPOINTS
from distributed_ignn.runs.memory import machine as memory
from distributed_ignn.runs.memory.budget_check import check_budget
from distributed_ignn.runs.output.crash import crash_reports
from distributed_ignn.runs.output.folder import changed_settings, claimed, leave, open_records
from distributed_ignn.runs.output.loggers import check_loggers
from distributed_ignn.runs.output.progress import Progress
from distributed_ignn.runs.output.rank_log import rank_log
from distributed_ignn.runs.shards import find_shards, read_own_shard, store_graph, stored_graph
from distributed_ignn.runs.spool.attempt import Attempt, attempted, fetched
from distributed_ignn.runs.spool.places import Places, renamed_log
from distributed_ignn.runs.stopping import StopPoll, StopRequest
from distributed_ignn.runs.summary import standing
from distributed_ignn.training.recorded import refuse_captures
from distributed_ignn.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a run behaves in its process.

    Args:
        shows: whether rank 0 shows progress and the table at the end.
        owns_process: whether the process is there for the run alone. The run then sets its number
            of threads, its peak of memory counts from the start of the run, and a second signal
            ends it; in a user's own process none of that is done.
        more_follows: whether other runs come after it in the process. A signal in the last epoch or
            after it, which has nothing of this run to stop, then ends those.
    """

    shows: bool = True
    owns_process: bool = True
    more_follows: bool = False


_COMMAND = Conduct()


def run_training(
    config: RunConfig,
    comm: Communicator,
    hook: EpochHook | None = None,
    stop: StopPoll | None = None,
    *,
    graph: Callable[[], GraphData] | None = None,
    conduct: Conduct = _COMMAND,
    until: int | None = None,
) -> dict[str, Any]:
    """Prepare shards, train, evaluate once on the test nodes, and write everything down.

    SIGTERM, SIGINT and SIGHUP end the run after the epoch in which any rank gets one, with a
    checkpoint.

    Args:
        config: the run.
        comm: this rank's communicator.
        hook: told every epoch, or None.
        stop: asked after every epoch whether this rank is to stop, besides the signals it gets.
        graph: makes the graph where it is in memory; called by the first rank of a machine.
        conduct: towards the process.
        until: the epoch at which to pause with a checkpoint, so that a later call goes on from it
            (``resume: auto``); nothing is evaluated on the test nodes then, also after the last
            epoch, and there is no summary.json.

    Returns:
        The summary, on every rank; with ``until``, how far the run has come (``standing``).

    Raises:
        UserError: the same line on every rank.
        Stopped: some rank was asked to stop.
        JobError: another rank was lost.
    """
    started = time.perf_counter()
    comm.together(lambda: _check_machine(config, comm))
    _set_threads(config, conduct)
    request = StopRequest(
        config.train.grace_seconds,
        comm.activity,
        announce=conduct.shows and comm.is_main,
        may_exit=conduct.owns_process,
    )
    with (
        memory.returning_freed_memory(),
        request.listening(),
        hushed(config.quiet),
        attempted(config, comm) as attempt,
        claimed(attempt.config, comm, attempt) as config,
        rank_log(config.output, comm, config.train.log_level),
        renamed_log(attempt.places),
        crash_reports(config, comm, attempt.output),
    ):
        if conduct.owns_process:
            memory.forget_peak(comm.device)  # of a run before, as studies have them
        shows = conduct.shows and comm.is_main
        progress = Progress(config.train.epochs, enabled=shows, quiet=config.quiet)
        try:
            if graph is not None:
                _store(config, comm, graph)
            run = _prepare(config, comm, progress, started, attempt)
        except (UserError, Stopped):
            leave(config, comm)
            raise
        of_run = run.shards, run.trainer.epoch, run.budget, attempt
        recorder = open_records(config, comm, *of_run, to_come=not run.trainer.finished)
        session = RunSession(run, recorder, progress, hook, until)
        try:
            with request.deferred():
                with comm.activity.phase("between epochs"):
                    session.fit([request, *([stop] if stop else [])])
                    result = session.finish() if until is None else standing(run.trainer)
                    late = _signal(request, comm) if conduct.more_follows else 0
                if until is None:  # in no phase: the other ranks may have left by now
                    session.show(result)
                if late:
                    raise Stopped(late, f"stopped by {Stopped.name(late)}; this run has ended")
                return result
        finally:
            session.close()


def _signal(request: StopRequest, comm: Communicator) -> int:
    """The signal that some rank has got by now, or 0."""
    return int(comm.max(torch.tensor([request() or 0])).item())


def _check_machine(config: RunConfig, comm: Communicator) -> None:
    """Refuse what this rank's machine has not got, before data is read."""
    choose_kernel(config.train.kernel, getattr(torch, config.train.dtype), comm.device)
    if comm.is_main:  # the others tell no logger anything
        check_loggers(config.train.loggers)


def _store(config: RunConfig, comm: Communicator, graph: Callable[[], GraphData]) -> None:
    first = comm.local_rank == 0
    with comm.activity.phase("loading"):
        apart(comm, lambda: store_graph(config, comm.world_size, graph), works=first)


def _prepare(
    config: RunConfig, comm: Communicator, progress: Progress, started: float, attempt: Attempt
) -> PreparedRun:
    phase, places = comm.activity.phase, attempt.places
    comm.together(lambda: refuse_captures(config, comm))
    with phase("finding shards"):
        shards = find_shards(config, comm, lambda: _load(config, comm, progress, places), places)
    memory.return_freed_memory()  # what loading and partitioning have left
    before = memory.resident(comm.device)
    with phase("reading shards"):
        shard = read_own_shard(shards, config.output, comm, places)
    budget = check_budget(config, shard, comm, before)
    progress.budget(budget)
    progress.status("building the model")
    with phase("building the model"):
        trainer = Trainer(config, shard, comm, started)
    _log_choices(config, trainer)
    _warn_of_weights(trainer)
    _warn_of_exchanges(config, comm)
    _warn_of_features(config, trainer)
    if budget.keeps_freed:
        memory.keep_freed_memory()
    else:
        memory.return_freed_memory()
    with phase("reading a checkpoint"):
        _resume(config, trainer, progress, places)
    _say_untrained(trainer)
    return PreparedRun(trainer, shards, budget, attempt)


def _log_choices(config: RunConfig, trainer: Trainer) -> None:
    """Write down what the settings left open; rank 0 says it, too."""
    shard, shown = trainer.shard, None if trainer.comm.is_main else LOG_ONLY
    chosen = what_was_decided(config, shard.split_sizes[0], shard.num_classes)
    if chosen is not None:
        logger.info("%s", chosen, extra=shown)
    plan = trainer.local_plan
    if plan.automatic:
        line = "local steps: auto is %d an epoch, at learning rate %g"
        logger.info(line, plan.steps, plan.lr, extra=LOG_ONLY)


def _warn_of_weights(trainer: Trainer) -> None:
    """Say so where edges have weights and the model reads none."""
    weighted = any(channel.weighted for channel in trainer.shard.channels)
    if weighted and not trainer.model.reads_weights:
        logger.warning(
            "the edges have weights and model.kind = %s reads none: every edge counts 1; set "
            "data.edge_weights = ignore, or take one of %s",
            trainer.config.model.kind,
            ", ".join(name for name, kind in KINDS.items() if kind.reads_weights),
            extra=None if trainer.comm.is_main else LOG_ONLY,
        )


def _warn_of_exchanges(config: RunConfig, comm: Communicator) -> None:
    """Say so where settings are of exchanges and a lone rank has none.

    They are not refused: a file that is meant for several ranks may be tried with one.
    """
    asked = config.comm
    idle = {
        "comm.halo": asked.halo if asked.halo not in ("auto", "fp32") else None,
        "comm.stale": "true" if asked.stale else None,
        "comm.shared_memory": None if asked.shared_memory else "false",
    }
    told = [f"{name} = {value}" for name, value in idle.items() if value is not None]
    if told and comm.world_size == 1:
        logger.warning(
            "no effect with one rank, which exchanges no rows: %s; drop this, or train with more",
            ", ".join(told),
        )


def _warn_of_features(config: RunConfig, trainer: Trainer) -> None:
    """Say so where settings are of features and there are none; the defaults are passed over."""
    said = {} if trainer.shard.num_features else said_of_features(config)
    if said:
        logger.warning(
            "the graph has no features, and the embedding of its nodes is b itself: no effect of "
            "%s; drop %s",
            ", ".join(f"{name} = {value}" for name, value in said.items()),
            "it" if len(said) == 1 else "them",
            extra=None if trainer.comm.is_main else LOG_ONLY,
        )


def _say_untrained(trainer: Trainer) -> None:
    """Say so where the run ends before the learned solver is trained."""
    schedule = trainer.schedule
    if schedule.active and not schedule.trains:
        logger.info(
            "the solver is not trained in %d epochs, since its first phase comes after %d: solves "
            "are Anderson's; lower --schedule.warmup-epochs, or train longer",
            *(schedule.epochs, schedule.config.warmup_epochs),
            extra=None if trainer.comm.is_main else LOG_ONLY,
        )


def _load(config: RunConfig, comm: Communicator, progress: Progress, places: Places) -> GraphData:
    progress.status(f"loading {config.dataset}")
    with comm.activity.phase("loading"):
        if config.dataset == IN_MEMORY:
            data = stored_graph(config)
        else:
            data = load_dataset(config.dataset, config.data_root, fetched(config.data, places))
    progress.status("partitioning")
    return data


def _set_threads(config: RunConfig, conduct: Conduct) -> None:
    """Share the cores among the ranks of this machine unless a number is given.

    OMP_NUM_THREADS is one; but the 1 of several ranks is torchrun's, who sets it where nobody has.
    """
    if not (conduct.owns_process or config.train.threads):
        return
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if not config.train.threads and asked and not (asked == "1" and local_ranks > 1):
        return
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.train.threads or max(1, cores // local_ranks))


def _resume(config: RunConfig, trainer: Trainer, progress: Progress, places: Places) -> None:
    """Load the newest sound checkpoint (``auto``) or the named one, if the run asks for it."""
    comm, nodes, named = trainer.comm, trainer.shard.owned_nodes, config.resume
    if named is None:
        return
    if named == "auto":
        found = load_newest(config.output / CHECKPOINTS, comm, nodes, places)
        if found is None:
            return
    else:
        found = places.wait(lambda: load_checkpoint(named, comm, nodes, places.fetch))
    snapshot = cast(Snapshot, found)
    comm.together(lambda: restore(trainer, snapshot))
    logger.info("resumed after epoch %d", trainer.epoch, extra=LOG_ONLY)
    progress.resumed(trainer.epoch)
    changed = changed_settings(config) if comm.is_main else []
    if changed:
        logger.info("from here on with other settings: %s", ", ".join(changed))
