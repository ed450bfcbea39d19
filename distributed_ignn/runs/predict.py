"""Predictions of a finished run, rebuilt from its folder alone.

Settings from config.yaml, the graph from the shards that shards.json names (merged and cut again
when the number of ranks differs), weights from the newest checkpoint, at the epoch that validation
chose, and the learned solver from solver.safetensors. Nothing is kept from the training solves: the
equilibrium is found from the initialiser. ``prediction_file.py`` writes what comes of it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from rich.console import Console
from rich.table import Table

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig, RunConfig, load_yaml
from distributed_ignn.config.paths import absolute
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import graph_to_predict
from distributed_ignn.graph.feature_scaling import FeatureScaling
from distributed_ignn.graph.node_ids import NodeIds
from distributed_ignn.graph.partitioning.partition import assign_clusters
from distributed_ignn.graph.partitioning.sharding import build_shard, plan_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.storage.manifest import DatasetSize
from distributed_ignn.graph.storage.shard_store import read_node_ids, read_part, read_shard
from distributed_ignn.long_steps import long_step
from distributed_ignn.models.kinds import KINDS
from distributed_ignn.propagation.kernels import KERNELS
from distributed_ignn.runs.checkpoints.checkpoint import checkpoint_names, load_newest
from distributed_ignn.runs.checkpoints.snapshot import restore, restore_best
from distributed_ignn.runs.kept_solver import load_solver
from distributed_ignn.runs.layout import CHECKPOINTS, SETTINGS
from distributed_ignn.runs.prediction import Prediction, SolveRequest, rows_of, solved_here
from distributed_ignn.runs.prediction_file import (
    push_predictions,
    write_embeddings,
    write_predictions,
)
from distributed_ignn.runs.shard_record import open_shards, url_of_shards
from distributed_ignn.runs.shards import fetch_node_ids, fetch_part
from distributed_ignn.runs.spool.places import Places, expect, opened
from distributed_ignn.runs.spool.run_place import fetch_run
from distributed_ignn.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What the user asked for.

    Args:
        run: output folder of a training run.
        out: file to write; its ending says which kind, see ``prediction_file.py``.
        tolerance: relative residual to solve to; None takes the run's own.
        steps: exactly so many evaluations instead, whatever the residual.
        require_converged: write nothing unless the tolerance is reached.
        data: another graph to predict on, see ``graph_to_predict``; None takes the run's own.
        nodes: table of the nodes of ``data``, where that holds edges alone.
        embeddings: file for the states that predictions are read from, of the same kinds as
            ``out``.
    """

    run: Path
    out: Path
    tolerance: float | None = None
    steps: int | None = None
    require_converged: bool = False
    data: Path | None = None
    nodes: Path | None = None
    embeddings: Path | None = None

    def resolved(self) -> Self:
        """The same for a process in another folder."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        paths: dict[str, Any] = {
            name: absolute(value) for name, value in values.items() if isinstance(value, Path)
        }
        return replace(self, **paths)


def load_run(
    run: Path, comm: Communicator, kept_solver: bool = True, places: Places | None = None
) -> Trainer:
    """The trainer of a finished run at its best epoch, without warm starts.

    Args:
        run: output folder.
        comm: this rank's communicator.
        kept_solver: whether to use the solver that the run keeps, if any; else that of the
            checkpoint.
        places: where ``run`` stands for a URL, or its shards lie at one.

    Raises:
        UserError: the folder holds no run, no checkpoint or no shards, or its solver is damaged
            (on every rank alike).
    """
    places = places or Places(comm)
    config = _with_kernel(comm.together(lambda: load_run_config(run)), comm)
    if not checkpoint_names(run / CHECKPOINTS, comm):
        raise _no_checkpoint(run)
    shard = cast(GraphShard, places.wait(lambda: load_run_shard(run, comm, places)))
    trainer = Trainer(config, shard, comm)
    snapshot = load_newest(run / CHECKPOINTS, comm, shard.owned_nodes, places)
    if snapshot is None:
        raise _no_checkpoint(run)
    comm.together(lambda: restore(trainer, snapshot))
    trainer.chooser.settle()  # a run that has not finished may have left a candidate
    trainer.best.use()
    _choose_any(trainer, run, trainer.epoch)
    if trainer.learned is not None and kept_solver:
        load_solver(run, trainer.learned, trainer.best.epoch, comm)
    trainer.planner.forget()
    return trainer


def _choose_any(trainer: Trainer, run: Path, epoch: int) -> None:
    """Use the newest weights, as validation would, where it has chosen none yet, and say so.

    Args:
        trainer: holds the chosen weights, or the newest.
        run: output folder, for the message.
        epoch: of the newest weights.
    """
    best = trainer.best
    if best.weights is not None:
        return
    with trainer.average.in_use():
        newest = trainer.weights.copy()
    best.take(epoch, best.val_metric, newest, confirmed=False, tolerance=None)
    best.use()
    if trainer.comm.is_main:
        text = "validation has chosen no epoch of %s yet; these are the weights of epoch %d"
        logger.warning(text, run, epoch)


def load_run_config(run: Path) -> RunConfig:
    """The settings of a run, with the plain engine on one device: nothing will be stepped."""
    if not (run / SETTINGS).is_file():
        raise UserError(
            f"{run} is not a run folder, it has no {SETTINGS}; name the --output of one"
        )
    config = load_yaml(run / SETTINGS)
    train = config.train.model_copy(update={"offload": False})  # which only a GPU can
    return config.model_copy(update={"engine": "torch", "deepspeed_config": None, "train": train})


def fetched_run_config(run: Path) -> RunConfig:
    """As ``load_run_config``, also of a run at a URL, for a process that is no rank of its own.

    Raises:
        UserError: there is no run.
        JobError: the place did not answer.
    """
    comm = Communicator()
    with opened(comm, expect(run)) as places:
        here = places.local(run)
        places.wait(lambda: places.fetch(here / SETTINGS))
        return comm.together(lambda: load_run_config(here))


def _with_kernel(config: RunConfig, comm: Communicator) -> RunConfig:
    """The settings with a sparse product that this device has: a run may be read on another."""
    kernel = KERNELS.get(config.train.kernel)
    if kernel is None or kernel.obstacle(getattr(torch, config.train.dtype), comm.device) is None:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"kernel": "auto"})})


def load_run_shard(run: Path, comm: Communicator, places: Places | None = None) -> GraphShard:
    """This rank's shard: one of those that the run read, or from all of them merged and cut again.

    Args:
        run: output folder.
        comm: this rank's communicator.
        places: see ``load_run``.

    Raises:
        UserError: the shards are gone, others have taken their place, or one is damaged.
    """
    folder, manifest = open_shards(run, places)
    if places is not None:
        same = manifest.parts == comm.world_size
        for part in [comm.rank] if same else range(manifest.parts):
            fetch_part(folder, part, places)
    return read_part(folder, comm.rank, comm.world_size)


def load_run_for(
    run: Path,
    source: object,
    comm: Communicator,
    nodes: Path | None = None,
    places: Places | None = None,
) -> tuple[Trainer, NodeIds | None]:
    """As ``load_run``, with another graph in the place of the one that was trained on.

    Every rank reads the whole graph and keeps an equal share of its nodes, in their order.

    Args:
        run: output folder.
        source: the graph, see ``graph_to_predict``.
        comm: this rank's communicator.
        nodes: table of the nodes, where ``source`` is a file that holds edges alone.
        places: see ``load_run``.

    Returns:
        The trainer, and what the nodes of the graph are called.

    Raises:
        UserError: see ``load_run`` and ``graph_to_predict``; or the model does not fit the graph
            (on every rank alike).
    """
    places = places or Places(comm)
    config = _with_kernel(comm.together(lambda: load_run_config(run)), comm)
    data = cast(GraphData, places.wait(lambda: _graph_for(run, config, source, nodes, places)))
    parts = comm.world_size
    owner = torch.arange(data.num_nodes) * parts // data.num_nodes
    shard = build_shard(data, plan_shards(data.graphs, owner, parts), comm.rank)
    trainer = Trainer(config, shard, comm)
    snapshot = load_newest(run / CHECKPOINTS, comm, torch.empty(0, dtype=torch.int64), places)
    if snapshot is None:
        raise _no_checkpoint(run)
    comm.together(lambda: restore_best(trainer, snapshot))
    _choose_any(trainer, run, snapshot.state["epoch"])
    if trainer.learned is not None:
        load_solver(run, trainer.learned, trainer.best.epoch, comm)
    return trainer, data.node_ids


def _graph_for(
    run: Path, config: RunConfig, source: object, nodes: Path | None, places: Places
) -> GraphData:
    """Another graph, prepared as the run's own was."""
    folder, manifest = open_shards(run, places)
    shape = manifest.whole
    if shape.num_features == 0:
        raise UserError(
            f"{run} has learned an embedding for each node of its own graph, which nodes of "
            "another do not have; train on a graph with features x"
        )
    # whatever auto has made of the other graph
    directions = "both" if shape.graph_channels > 1 else "undirected"
    changes = {"directions": directions, "nodes": nodes}
    if config.data.edge_weights == "use":
        changes["edge_weights"] = "auto"  # this graph may have none, which is told
    settings = config.data.model_copy(update=changes)
    of_model = shape.num_classes, shape.task, config.data_root, _scaling(config, folder, places)
    data = graph_to_predict(source, settings, *of_model)
    if data.num_features != shape.num_features:
        raise UserError(
            f"{data.name} has {data.num_features} feature columns and {run} was trained on "
            f"{shape.num_features}; give the same features in the same order"
        )
    _warn_of_weights(run, config.model, shape, data)
    data = replace(data, class_names=shape.class_names)
    if config.partition.clusters > 0:
        data = replace(data, clusters=assign_clusters(data.graphs, config.partition))
    return data


def _warn_of_weights(run: Path, model: ModelConfig, shape: DatasetSize, data: GraphData) -> None:
    """Say so where only one of the graph and the one that was trained on has weights of edges."""
    kind = KINDS.get(model.kind)
    if kind is not None and not kind.reads_weights:
        return
    then, now = any(shape.weighted), any(graph.value is not None for graph in data.graphs)
    if now and not then:
        text = "%s was trained without weights of edges, and those of %s count; leave them out"
        logger.warning(text, run, data.name)
    elif then and not now:
        text = "%s was trained with weights of edges, and %s has none: every edge counts 1"
        logger.warning(text, run, data.name)


def _scaling(config: RunConfig, folder: Path, places: Places) -> FeatureScaling | None:
    """What was done to the features of the run's graph, where the settings do not say it."""
    if config.data.feature_norm not in ("auto", "standard"):
        return None
    fetch_part(folder, 0, places)
    return read_shard(folder, 0).scaling


def _no_checkpoint(run: Path) -> UserError:
    return UserError(f"{run} holds no checkpoint; train it first with --output {run}")


def _here(options: PredictOptions, places: Places) -> PredictOptions:
    """The options with paths of this machine in the place of URLs."""
    out, embeddings = options.out, options.embeddings
    return replace(
        options,
        run=places.local(options.run),
        out=places.local_file(out),
        embeddings=None if embeddings is None else places.local_file(embeddings),
    )


def _opened(
    options: PredictOptions, comm: Communicator, places: Places
) -> tuple[Trainer, NodeIds | None]:
    """The run, with the graph that is predicted, and the ids of its nodes' own table."""
    if options.data is not None:
        return load_run_for(options.run, str(options.data), comm, options.nodes, places)
    trainer = load_run(options.run, comm, places=places)
    return trainer, places.wait(lambda: _own_ids(options.run, places), works=comm.is_main)


def _push(options: PredictOptions, places: Places) -> None:
    """Send what is written to the URLs that it is for."""
    for path in (options.embeddings, options.out):
        if path is not None:
            push_predictions(path, places)


def predict(options: PredictOptions, comm: Communicator) -> Prediction:
    """Solve, read out, and write one row per node; every rank calls it.

    Returns:
        What is predicted for the nodes of this rank: the whole table is nowhere but in the file.

    Raises:
        UserError: see ``load_run``, ``solved_here`` and ``write_predictions``.
    """
    started = time.perf_counter()
    named = (options.run, options.out, options.embeddings, url_of_shards(options.run, comm))
    urls = comm.together(lambda: expect(*named))
    with opened(comm, urls) as places:
        here = _here(options, places)
        with long_step(f"reading {options.run}"):
            places.wait(lambda: fetch_run(here.run, places), works=comm.local_rank == 0)
            trainer, ids = _opened(here, comm, places)
        request = SolveRequest(options.tolerance, options.steps, options.require_converged)
        with long_step(f"predicting {trainer.shard.num_nodes:,} nodes"):
            found, state = solved_here(trainer, here.run, request)
        rows = rows_of(trainer, found.logits)
        if here.embeddings is not None:
            kept = rows_of(trainer, trainer.model.embeddings(state))
            write_embeddings(here.embeddings, found, kept, ids)
        write_predictions(here.out, found, rows, ids)
        places.wait(lambda: _push(here, places), works=comm.is_main)
    if comm.is_main:
        size = rows.num_nodes, rows.num_columns
        _show(options, found, size, time.perf_counter() - started)
    return found


def _own_ids(run: Path, places: Places) -> NodeIds | None:
    """What the nodes of the run's own graph are called."""
    folder, manifest = open_shards(run, places)
    fetch_node_ids(folder, manifest, places)
    return read_node_ids(folder, manifest)


def _show(
    options: PredictOptions, found: Prediction, size: tuple[int, int], seconds: float
) -> None:
    quality, (nodes, classes) = found.quality(), size
    table = Table(title=f"predictions of {options.run}", show_header=False)
    table.add_row("nodes, classes", f"{nodes:,}, {classes}")
    for label, text in [*_solved(quality, nodes), *_scores(found)]:
        table.add_row(label, text)
    table.add_row("seconds", f"{seconds:.1f}")
    console = Console(highlight=False)
    console.print(table)
    for path in (options.out, options.embeddings):
        if path is not None:
            console.print(f"written: {path}", soft_wrap=True)


def _solved(quality: dict[str, Any], nodes: int) -> list[tuple[str, str]]:
    """How close the solve has come; nothing where there was none."""
    if "residual" not in quality:
        return []
    reached = "reached" if quality["converged"] else "NOT REACHED"
    return [
        ("map evaluations", str(quality["evaluations"])),
        ("relative residual", f"{quality['residual']:.1e}"),
        ("tolerance", f"{quality['tolerance']:g}, {reached}"),
        *_certified(quality, nodes),
    ]


def _scores(found: Prediction) -> list[tuple[str, str]]:
    """The metric on every split that has labels."""
    if not found.scores:
        return []
    figures = ", ".join(f"{split} {value:.4f}" for split, value in found.scores.items())
    return [(found.metric, figures)]


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
