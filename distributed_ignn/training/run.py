"""One rank's whole run, from its settings to its summary; the same under torchrun and Ray Train.

Output folder: config.yaml, metrics.jsonl, summary.json, memory.json, checkpoints/,
solver.safetensors, shards/, shards.json and TensorBoard events. Rank 0 writes; every rank fails
together when one of them cannot go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, dump_yaml
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.shard_store import read_shard
from distributed_ignn.training import memory
from distributed_ignn.training.checkpoint import CheckpointStore, load_checkpoint, newest_checkpoint
from distributed_ignn.training.fit_check import BudgetReport, check_budget
from distributed_ignn.training.kept_solver import save_solver
from distributed_ignn.training.plans import LearnedSolver
from distributed_ignn.training.progress import Progress
from distributed_ignn.training.records import EpochRecord, RunRecorder, read_metrics
from distributed_ignn.training.shards import ShardRecord, find_shards, write_record
from distributed_ignn.training.trainer import Trainer

CHECKPOINTS = "checkpoints"
SETTINGS = "config.yaml"
BUDGET = "memory.json"

EpochHook = Callable[[EpochRecord, Path | None], None]
"""Told each epoch's record and the checkpoint just written, if one was; called on every rank."""


def run_training(
    config: RunConfig, comm: Communicator, hook: EpochHook | None = None
) -> dict[str, Any]:
    """Prepare shards, train, evaluate once on the test nodes, and write everything down.

    Args:
        config: the run.
        comm: this rank's communicator.
        hook: told every epoch, or None.

    Returns:
        The summary, on every rank.

    Raises:
        UserError: the same line on every rank.
    """
    started = time.perf_counter()
    _set_threads(config)
    memory.return_freed_memory()
    writing = f"write to output = {config.output}"
    comm.together(lambda: claim_output(config) if comm.is_main else None, doing=writing)
    progress = Progress(config.train.epochs, enabled=comm.is_main)
    try:
        shards = find_shards(config, comm, lambda: _load(config, progress))
        memory.return_freed_memory()  # what loading and partitioning have left
        before = memory.resident(comm.device)
        shard = comm.together(lambda: read_shard(shards.path(config.output), comm.rank))
        budget = check_budget(config, shard, comm, before)
        progress.budget(budget)
        progress.status("building the model")
        trainer = Trainer(config, shard, comm, started)
        memory.return_freed_memory()
        _resume(config, trainer, comm, progress)
    except UserError:
        _leave_output(config, comm)
        raise
    recorder = comm.together(
        lambda: _open_records(config, comm, shards, trainer.epoch, budget), doing=writing
    )
    store = CheckpointStore(config.output / CHECKPOINTS, comm, config.train.keep_checkpoints)

    def on_epoch(record: EpochRecord) -> None:
        if recorder is not None:
            recorder.epoch(record)
        progress.epoch(record)
        due = trainer.finished or record.epoch % config.train.checkpoint_every == 0
        path = None
        if due:
            path = store.save(record.epoch, trainer.snapshot(), shard.owned_nodes)
            # a run resumed from here begins like this too
            trainer.model.propagation.reset_links()
        if hook is not None:
            hook(record, path)

    try:
        trainer.fit(on_epoch)
        summary = _summarise(trainer) | {
            "memory_budget_bytes": budget.total,
            "memory_bound_bytes": budget.bound,
        }
        if recorder is not None:
            recorder.summary(summary)
    finally:
        progress.close()
        if recorder is not None:
            recorder.close()
    progress.table(summary, config.output)
    return summary


def _load(config: RunConfig, progress: Progress) -> Any:
    progress.status(f"loading {config.dataset}")
    data = load_dataset(config.dataset, config.data_root, config.data)
    progress.status("partitioning")
    return data


def _set_threads(config: RunConfig) -> None:
    """Share the cores among the ranks of this machine unless a number is given."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.train.threads or max(1, cores // local_ranks))


def claim_output(config: RunConfig) -> None:
    """Create the output folder, or refuse one that holds another run.

    Raises:
        UserError: the folder holds a run that is not to be resumed.
        OSError: it cannot be created.
    """
    if (config.output / SETTINGS).exists() and config.resume is None:
        raise UserError(
            f"output = {config.output} already holds a run; choose another --output, or continue "
            "it with --resume auto"
        )
    config.output.mkdir(parents=True, exist_ok=True)


def _leave_output(config: RunConfig, comm: Communicator) -> None:
    """Remove the output folder if nothing was put into it, so that the next try finds it free."""
    if comm.is_main:
        with suppress(OSError):  # not empty: an earlier run, or shards that are still of use
            config.output.rmdir()


def _open_records(
    config: RunConfig,
    comm: Communicator,
    shards: ShardRecord,
    epoch: int,
    budget: BudgetReport,
) -> RunRecorder | None:
    """From here on the folder holds a run; a resumed one with the settings that now apply."""
    if not comm.is_main:
        return None
    write_record(config.output, shards)
    atomic_write_json(config.output / BUDGET, budget.as_json())
    atomic_write_text(config.output / SETTINGS, dump_yaml(config))
    return RunRecorder(config.output, epoch)


def _resume(config: RunConfig, trainer: Trainer, comm: Communicator, progress: Progress) -> None:
    """Load the newest checkpoint (``auto``) or the named one, if the run asks for it."""
    if config.resume is None:
        return
    named = config.resume
    path = newest_checkpoint(config.output / CHECKPOINTS, comm) if named == "auto" else named
    if path is None:
        return
    comm.together(lambda: trainer.restore(load_checkpoint(path, comm, trainer.shard.owned_nodes)))
    progress.resumed(trainer.epoch)


def _summarise(trainer: Trainer) -> dict[str, Any]:
    """The contract's keys; test nodes are read here and nowhere else."""
    config, comm, shard = trainer.config, trainer.comm, trainer.shard
    seconds = trainer.seconds_total
    with trainer.average.in_use():
        last = trainer.evaluate(("test",))
    seconds += _keep_best(trainer)
    best = trainer.evaluate(("val", "test"))
    residual = trainer.planner.log.residual("evaluate")
    at_zero = trainer.evaluate_at_zero(("val", "test"))
    at_start = trainer.evaluate_at_initialiser(("val", "test")) or {}
    records = read_metrics(config.output / "metrics.jsonl") if comm.is_main else []
    width, item = config.model.hidden, trainer.model.head.weight.element_size()
    exchange = comm.sum(torch.tensor([shard.send_index.numel()]) * width * item)
    peak = comm.max(torch.tensor([memory.peak(comm.device)], dtype=torch.int64))
    return {
        "dataset": config.dataset,
        "nodes": shard.num_nodes,
        "edges": _count_edges(shard, comm),
        "classes": shard.num_classes,
        "metric": trainer.objective.metric_name,
        "world_size": comm.world_size,
        "device": comm.device.type,
        "seed": config.seed,
        "epochs": trainer.epoch,
        "best_epoch": trainer.best.epoch,
        "best_val": best["val"],
        "test_at_best_val": best["test"],
        "test_last": last["test"],
        "val_at_f0": at_zero["val"],
        "test_at_f0": at_zero["test"],
        "val_at_initialiser": at_start.get("val"),
        "test_at_initialiser": at_start.get("test"),
        "spectral_radius": trainer.model.spectral_radius(),
        "contraction": trainer.model.cell_weights.contraction(),
        "seconds_total": seconds,
        "seconds_solver_training": trainer.seconds_solver_training,
        "evaluations_forward_mean": _mean(records, "evaluations_forward"),
        "evaluations_adjoint_mean": _mean(records, "evaluations_adjoint"),
        "evaluations_validation_mean": _mean(records, "evaluations_validation"),
        "residual_last": residual,
        "halo_bytes_per_exchange": int(exchange),
        "peak_memory_bytes": int(peak),
        "parameters": _parameters(trainer),
    }


def _keep_best(trainer: Trainer) -> float:
    """The best weights, a solver fitted to them and written down, and no warm start; its seconds.

    The predict command puts the same together, so it finds the same equilibrium.
    """
    trainer.use_best_weights()
    _, seconds = trainer.tune_solver()
    trainer.planner.states.clear()
    if trainer.learned is not None:
        output, epoch = trainer.config.output, trainer.best.epoch
        save_solver(output, trainer.learned, epoch, trainer.comm)
    return seconds


def _count_edges(shard: GraphShard, comm: Communicator) -> int:
    """Undirected edges of the dataset's own graph (its entries, if it is directed)."""
    channel = shard.channels[0]
    entries = channel.owned.num_entries - shard.num_owned + channel.boundary.num_entries
    total = int(comm.sum(torch.tensor([entries])))
    return total // 2 if channel.symmetric else total


def _parameters(trainer: Trainer) -> dict[str, int]:
    """Numbers of parameters; an embedding counts the rows of all ranks."""
    sharded = trainer.model.sharded_names()
    counts = torch.zeros(2, dtype=torch.int64)
    for name, parameter in trainer.model.named_parameters():
        counts[int(name in sharded)] += parameter.numel()
    rows = int(trainer.comm.sum(counts[1:].clone()))
    learned = trainer.learned
    return {
        "model": int(counts[0]) + rows,
        "solver": _count(learned, ("estimator", "adjoint", "predictor")),
        "initialiser": _count(learned, ("initialiser",)),
    }


def _count(learned: LearnedSolver | None, names: tuple[str, ...]) -> int:
    parts = learned.modules() if learned is not None else {}
    return sum(p.numel() for name in names if name in parts for p in parts[name].parameters())


def _mean(records: list[dict[str, Any]], key: str) -> float:
    values = [r[key] for r in records if r[key] is not None]
    return sum(values) / len(values) if values else 0.0
