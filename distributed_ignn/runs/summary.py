"""The end of a run: the best weights, the test nodes, and the figures of the summary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.runs.kept_solver import save_solver
from distributed_ignn.runs.memory import machine as memory
from distributed_ignn.runs.output.records import METRICS, read_metrics
from distributed_ignn.solvers.base import Solution
from distributed_ignn.training.confirmation import Finding
from distributed_ignn.training.learned_solver import LearnedSolver
from distributed_ignn.training.trainer import Trainer


def summarise(trainer: Trainer) -> dict[str, Any]:
    """The figures of summary.json; test nodes are read here and nowhere else. Every rank calls it.

    Raises:
        UserError: the solver cannot be written (on every rank).
    """
    config, comm, shard = trainer.config, trainer.comm, trainer.shard
    seconds = trainer.stopwatch.total
    with trainer.average.in_use():
        last = trainer.evaluation.at_equilibrium(("test",))
    seconds += _keep_best(trainer)
    found, solution = trainer.evaluation.at_best(("val", "test"))
    best = found.metrics
    records = read_metrics(config.output / METRICS) if comm.is_main else []
    solves = _solve_figures(trainer, found, solution, records) if trainer.model.solves else {}
    peak = comm.max(torch.tensor([memory.peak(comm.device)], dtype=torch.int64))
    return {
        "dataset": config.dataset,
        "nodes": shard.num_nodes,
        "edges": _count_edges(shard, comm),
        "classes": shard.num_classes,
        **({"class_names": list(shard.class_names)} if shard.class_names else {}),
        "metric": trainer.objective.metric_name,
        "kind": config.model.kind,
        "world_size": comm.world_size,
        "device": comm.device.type,
        "seed": config.seed,
        "epochs": trainer.epoch,
        "best_epoch": trainer.best.epoch,
        "best_val": best["val"],
        "test_at_best_val": best.get("test"),
        **_usual_figures(trainer, solution.image),
        "test_last": last.get("test"),
        **solves,
        "seconds_total": seconds,
        "epochs_skipped": trainer.guard.tally.skipped,
        "rollbacks": trainer.guard.tally.rollbacks,
        "lr_last": config.train.lr * trainer.guard.tally.lr_scale,
        **_local_figures(trainer, records),
        "peak_memory_bytes": int(peak),
        "parameters": _parameters(trainer),
    }


def _solve_figures(
    trainer: Trainer, found: Finding, solution: Solution, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """What there is to say of a model whose states are equilibria.

    Args:
        trainer: with the best weights.
        found: what is known of their metrics.
        solution: the state that these were read from.
        records: of metrics.jsonl, on rank 0.
    """
    comm, config = trainer.comm, trainer.config
    at_zero = trainer.evaluation.at_zero(("val", "test")) or {}
    at_start = trainer.evaluation.at_initialiser(("val", "test")) or {}
    row = config.model.hidden * trainer.model.dtype.itemsize
    exchange = comm.sum(torch.tensor([trainer.shard.send_index.numel()]) * row)
    means = ("forward", "adjoint", "validation", "confirmation")
    return {
        "confirmed": found.holds,
        **_certified(trainer, solution.image),
        "val_at_f0": at_zero.get("val"),
        "test_at_f0": at_zero.get("test"),
        "val_at_initialiser": at_start.get("val"),
        "test_at_initialiser": at_start.get("test"),
        "spectral_radius": trainer.implicit.spectral_radius(),
        "contraction": trainer.implicit.cell_weights.contraction(),
        "seconds_solver_training": trainer.stopwatch.solver_training,
        **{f"evaluations_{name}_mean": _mean(records, f"evaluations_{name}") for name in means},
        "residual_last": solution.residual,
        "tolerance": found.tolerance,
        "converged": solution.residual <= found.tolerance,
        "epochs_unconverged": sum(r.get("converged") is False for r in records),
        "halo_bytes_per_exchange": int(exchange),
    }


def standing(trainer: Trainer) -> dict[str, Any]:
    """How far a run that pauses has come, by validation alone; nothing is evaluated."""
    return {
        "metric": trainer.objective.metric_name,
        "epochs": trainer.epoch,
        "best_epoch": trainer.best.epoch,
        "best_val": trainer.best.val_metric,
        "confirmed": trainer.best.confirmed,
        "finished": trainer.finished,
    }


def _local_figures(trainer: Trainer, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Local steps of the run, and how far from zero the exact gradient is at its end."""
    plan = trainer.local_plan
    chosen = {
        "local_steps_of_epoch": plan.steps,
        "local_lr": plan.lr,
        "local_steps_automatic": plan.automatic,
    }
    if trainer.local is None:
        return chosen if plan.automatic else {}
    kept = trainer.local.kept
    norms = [record.get("gradient_norm") for record in records]
    return chosen | {
        "local_steps": kept.taken,
        "local_steps_shrunk": kept.shrunk,
        "gradient_norm_last": norms[-1] if norms else None,
    }


def _keep_best(trainer: Trainer) -> float:
    """The best weights, a solver fitted to them and written down, and no warm start; its seconds.

    The predict command puts the same together, so it finds the same equilibrium.
    """
    trainer.best.use()
    _, seconds = trainer.tune_solver()
    trainer.planner.forget()
    if trainer.learned is not None:
        output, epoch = trainer.config.output, trainer.best.epoch
        save_solver(output, trainer.learned, epoch, trainer.comm)
    return seconds


def _usual_figures(trainer: Trainer, state: Tensor) -> dict[str, float]:
    """Accuracy, or micro-F1 of several labels, beside another metric that chose the epoch."""
    objective = trainer.objective
    if objective.unusual_metric is None:
        return {}
    found = objective.usual_metrics(
        lambda rows: trainer.model.read_out(state, rows=rows), ("val", "test")
    )
    name = "micro_f1" if objective.multilabel else "accuracy"
    return {f"{split}_{name}": value for split, value in found.items()}


def _certified(trainer: Trainer, state: Tensor) -> dict[str, float | None]:
    """How far the state that the metrics were read from is from the equilibrium; see certificate.

    Nulls where the map of these weights is no contraction.
    """
    certificate = trainer.confirmation.certificate(state)
    if certificate is None:
        return dict.fromkeys(("certified_distance", "certified_relative", "val_unsettled"))
    return {
        "certified_distance": certificate.distance,
        "certified_relative": certificate.relative,
        "val_unsettled": trainer.confirmation.unsettled(certificate, state),
    }


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
    # a resumed run may have records of a time when this was not counted
    values = [r[key] for r in records if r.get(key) is not None]
    return sum(values) / len(values) if values else 0.0
