"""Predictions of a finished run, rebuilt from its folder alone.

Settings from config.yaml, the graph from the shards that shards.json names (merged and cut again
when the number of ranks differs), weights from the newest checkpoint, at the epoch that validation
chose, and the learned solver from solver.safetensors. Nothing is kept from the training solves: the
equilibrium is found from the initialiser. How close it was found is written into the file, beside
the predictions, as JSON under the key ``distributed_ignn`` of the schema's metadata.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, load_yaml
from distributed_ignn.errors import UserError
from distributed_ignn.files import sync, temporary_sibling
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.storage.shard_store import read_part
from distributed_ignn.models.certificate import NORMS, Certificate, certify, settled_nodes
from distributed_ignn.runs.checkpoints.checkpoint import checkpoint_names, load_newest
from distributed_ignn.runs.checkpoints.snapshot import restore
from distributed_ignn.runs.kept_solver import load_solver
from distributed_ignn.runs.output.folder import CHECKPOINTS, SETTINGS
from distributed_ignn.runs.shards import open_shards
from distributed_ignn.solvers.base import Outcome, Solution
from distributed_ignn.training.trainer import Trainer

METADATA_KEY = "distributed_ignn"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What the user asked for.

    Args:
        run: output folder of a training run.
        out: parquet file to write.
        tolerance: relative residual to solve to; None takes the run's own.
        steps: exactly so many evaluations instead, whatever the residual.
        require_converged: write nothing unless the tolerance is reached.
    """

    run: Path
    out: Path
    tolerance: float | None = None
    steps: int | None = None
    require_converged: bool = False


def load_run(run: Path, comm: Communicator, kept_solver: bool = True) -> Trainer:
    """The trainer of a finished run at its best epoch, without warm starts.

    Args:
        run: output folder.
        comm: this rank's communicator.
        kept_solver: whether to use the solver that the run keeps, if any; else that of the
            checkpoint.

    Raises:
        UserError: the folder holds no run, no checkpoint or no shards, or its solver is damaged
            (on every rank alike).
    """
    config = comm.together(lambda: load_run_config(run))
    none = UserError(f"{run} holds no checkpoint; train it first with --output {run}")
    if not checkpoint_names(run / CHECKPOINTS, comm):
        raise none
    shard = comm.together(lambda: load_run_shard(run, comm))
    trainer = Trainer(config, shard, comm)
    snapshot = load_newest(run / CHECKPOINTS, comm, shard.owned_nodes)
    if snapshot is None:
        raise none
    comm.together(lambda: restore(trainer, snapshot))
    trainer.use_best_weights()
    if trainer.learned is not None and kept_solver:
        load_solver(run, trainer.learned, trainer.best.epoch, comm)
    trainer.planner.states.clear()
    return trainer


def load_run_config(run: Path) -> RunConfig:
    """The settings of a run, with the plain engine: nothing will be stepped."""
    if not (run / SETTINGS).is_file():
        raise UserError(
            f"{run} is not a run folder, it has no {SETTINGS}; name the --output of one"
        )
    config = load_yaml(run / SETTINGS)
    return config.model_copy(update={"engine": "torch", "deepspeed_config": None})


def load_run_shard(run: Path, comm: Communicator) -> GraphShard:
    """This rank's shard: one of those that the run read, or from all of them merged and cut again.

    Raises:
        UserError: the shards are gone, others have taken their place, or one is damaged.
    """
    folder, _ = open_shards(run)
    return read_part(folder, comm.rank, comm.world_size)


@torch.no_grad()
def predict(options: PredictOptions, comm: Communicator) -> Solution:
    """Solve, read out, and write one row per node; every rank calls it.

    Raises:
        UserError: see ``load_run``; the solve diverges, or does not reach a tolerance that is
            required; or the file cannot be written.
    """
    started = time.perf_counter()
    trainer = load_run(options.run, comm)
    trainer.model.eval()
    tolerance = 0.0 if options.steps is not None else options.tolerance
    solution = trainer.model.solve(trainer.planner.evaluate(tolerance, options.steps))
    quality = _judge(options, trainer, solution)
    logits = trainer.model.read_out(solution.image)
    multilabel = trainer.shard.task == "multilabel"
    probability = torch.sigmoid(logits) if multilabel else torch.softmax(logits, dim=1)
    whole = _gather_nodes(trainer.shard, probability, comm)
    comm.together(
        lambda: _write(options.out, whole, multilabel, quality) if comm.is_main else None,
        doing=f"write {options.out}",
    )
    if comm.is_main:
        _show(options, quality, whole, time.perf_counter() - started)
    return solution


def _judge(options: PredictOptions, trainer: Trainer, solution: Solution) -> dict[str, Any]:
    """How close the solve has come, as JSON values; every rank calls it.

    Raises:
        UserError: it has diverged, or has not converged as it must.
    """
    comm, forward = trainer.comm, trainer.config.forward
    if solution.outcome is Outcome.DIVERGED:
        raise UserError(
            f"the solve of {options.run} diverges (map evaluations {solution.steps}), there is "
            "nothing to predict from; train with model.constraint projection"
        )
    tolerance = forward.tolerance if options.tolerance is None else options.tolerance
    found = {
        "epoch": trainer.best.epoch,
        "evaluations": solution.steps,
        "residual": solution.residual,
        "tolerance": tolerance,
        "converged": solution.residual <= tolerance,
    }
    if not found["converged"]:
        what = (
            f"relative residual {solution.residual:.1e} above {tolerance:g}, map evaluations "
            f"{solution.steps}"
        )
        if options.require_converged:
            raise UserError(
                f"the solve of {options.run} has not converged ({what}) and --require-converged "
                "is set; give it more with --steps N, or a looser --tolerance"
            )
        if comm.is_main:
            logger.warning(
                "the predictions come from a solve that did not reach its tolerance: %s; give it "
                "more with --steps N",
                what,
            )
    certificate = certify(trainer.model, trainer.shard, comm, solution.image)
    return found | _describe(certificate, trainer, solution.image)


def _describe(certificate: Certificate | None, trainer: Trainer, state: Tensor) -> dict[str, Any]:
    """The certificate as JSON values, None where there is none."""
    if certificate is None:
        names = "certified_distance", "certified_relative", "norm", "contraction", "settled_nodes"
        return dict.fromkeys(names)
    multilabel = trainer.shard.task == "multilabel"
    settled = settled_nodes(trainer.model, certificate, state, multilabel).sum().cpu().reshape(1)
    return {
        "certified_distance": certificate.distance,
        "certified_relative": certificate.relative,
        "norm": NORMS[certificate.norm],
        "contraction": certificate.contraction,
        "settled_nodes": int(trainer.comm.sum(settled)),
    }


def _gather_nodes(shard: GraphShard, rows: Tensor, comm: Communicator) -> Tensor:
    """Rows of all ranks at their global ids, [n, C] float32 on the CPU."""
    whole = torch.zeros(shard.num_nodes, rows.shape[1])
    whole[shard.owned_nodes] = rows.detach().float().cpu()
    return comm.sum(whole)


def _write(path: Path, probability: Tensor, multilabel: bool, quality: dict[str, Any]) -> None:
    nodes, classes = probability.shape
    flat = pa.array(probability.reshape(-1).numpy())
    columns = {
        "node": pa.array(range(nodes), pa.int64()),
        "prediction": _labels(probability, multilabel),
        "probabilities": pa.FixedSizeListArray.from_arrays(flat, classes),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        metadata = {METADATA_KEY: json.dumps(quality)}
        pq.write_table(pa.table(columns, metadata=metadata), temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _labels(probability: Tensor, multilabel: bool) -> pa.Array:
    """The likeliest class, or the list of classes above one half."""
    if not multilabel:
        return pa.array(probability.argmax(dim=1).numpy())
    chosen = [row.nonzero()[:, 0].tolist() for row in probability > 0.5]
    return pa.array(chosen, pa.list_(pa.int64()))


def _show(options: PredictOptions, quality: dict[str, Any], whole: Tensor, seconds: float) -> None:
    table = Table(title=f"predictions of {options.run}", show_header=False)
    table.add_row("nodes, classes", f"{whole.shape[0]:,}, {whole.shape[1]}")
    table.add_row("map evaluations", str(quality["evaluations"]))
    reached = "reached" if quality["converged"] else "NOT REACHED"
    table.add_row("relative residual", f"{quality['residual']:.1e}")
    table.add_row("tolerance", f"{quality['tolerance']:g}, {reached}")
    for label, text in _certified(quality, whole.shape[0]):
        table.add_row(label, text)
    table.add_row("seconds", f"{seconds:.1f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"written: {options.out}", soft_wrap=True)


def _certified(quality: dict[str, Any], nodes: int) -> list[tuple[str, str]]:
    distance = quality["certified_distance"]
    if distance is None:
        return [("certified distance to Z*", "none: these weights are no contraction")]
    return [
        (
            "certified distance to Z*",
            f"{distance:.1e}, {quality['certified_relative']:.1e} of the state",
        ),
        ("its norm", quality["norm"]),
        ("contraction of the weights", f"{quality['contraction']:.3f}"),
        ("labels certain to be those of Z*", f"{quality['settled_nodes']:,} of {nodes:,}"),
    ]
