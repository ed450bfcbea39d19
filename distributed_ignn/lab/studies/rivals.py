"""The rivals study: explicit networks (``models/kinds``) beside the implicit model, on any graph.

The implicit model has the settings that the study is given. Each rival has one setting for all
graphs, the one that its own paper or most of the literature takes, and reads the same nodes,
features and split, edges both ways. Validation chooses the epoch of each; test nodes are read once.

Letters: n nodes, F features, C classes, D width, E directed edges.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ExplicitConfig, ModelConfig, RunConfig
from distributed_ignn.distributed_graph import DistributedGraph
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shard
from distributed_ignn.lab.studies.outcome import Outcome, Request, spread
from distributed_ignn.lab.studies.study_runs import train_run, with_settings
from distributed_ignn.models.kinds import KINDS, ExplicitModel, Site
from distributed_ignn.training.losses.objective import Objective

IMPLICIT = "implicit"
WIDTH, DROPOUT = 64, 0.5
LR, WEIGHT_DECAY = 0.01, 5e-4
EPOCHS, PATIENCE = 300, 100

_PAPER = "No figure of its own: its Table 1 has other graphs, and settings of each."


RIVALS: Mapping[str, Mapping[str, Any]] = {
    "GCN": {"kind": "gcn"},
    "GAT": {"kind": "gat", "heads": 4},
    "GraphSAGE": {"kind": "graphsage"},
    "APPNP": {"kind": "appnp", "layers": 10, "teleport": 0.1},  # of the APPNP paper
    "GCNII": {"kind": "gcnii", "layers": 16, "teleport": 0.1, "identity": 0.5},
    "MLP": {"kind": "mlp"},
}
"""``model.kind`` and the settings of ``explicit``; two layers where they are silent."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """What a training came to, at the epoch that validation chose."""

    val: float
    test: float
    best_epoch: int
    epochs: int
    seconds: float

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> _Ended:
        return cls(
            val=summary["best_val"],
            test=summary["test_at_best_val"],
            best_epoch=summary["best_epoch"],
            epochs=summary["epochs"],
            seconds=summary["seconds_total"],
        )


def run(request: Request, comm: Communicator) -> Outcome:
    """Train every rival, and the implicit model, for every seed.

    Raises:
        UserError: a graph without features, or more than one rank.
    """
    if comm.world_size > 1:
        raise UserError(
            "rivals trains explicit networks on the whole graph; start it without torchrun"
        )
    console = Console(highlight=False)
    rows: list[dict[str, Any]] = []
    graph = _whole(request.config, comm)
    for name in RIVALS:
        for seed in request.seeds:
            ended = train_rival(name, graph, request.config, seed)
            rows.append(_row(name, seed, ended))
            console.print(f"{name}, seed {seed}: validation {ended.val:.4f}, {ended.seconds:.1f} s")
    for seed in request.seeds:
        found = train_run(request.config, request.out, f"seed{seed}", {"seed": seed}, comm)
        rows.append(_row(IMPLICIT, seed, _Ended.of(found.summary)))
    metric = str(found.summary["metric"])
    return Outcome(
        rows=rows,
        ours=_table(rows),
        caption=f"{metric} in per cent, mean ± std over seeds; seconds of a training",
        paper=_PAPER,
        differs=(
            f"Rivals with one setting each: width {WIDTH}, dropout {DROPOUT}, learning rate {LR}, "
            f"weight decay {WEIGHT_DECAY}, {EPOCHS} epochs at most, {PATIENCE} without a better "
            f"validation; two layers, APPNP with {RIVALS['APPNP']['layers']} steps, "
            f"GCNII with {RIVALS['GCNII']['layers']} layers, GAT with {RIVALS['GAT']['heads']} heads."
        ),
        figure=_draw(rows, request.config.dataset, metric),
    )


def _whole(config: RunConfig, comm: Communicator) -> DistributedGraph:
    """The graph in one part, with the features of the run and edges both ways."""
    config = with_settings(config, {"data.directions": "undirected", "data.knn": 0})
    data = load_dataset(config.dataset, config.data_root, config.data)
    if data.features is None:
        raise UserError(f"rivals needs features, and {config.dataset} has none; add x")
    plan = assign_parts(data.graphs, 1, config.partition).plan
    return DistributedGraph(build_shard(data, plan, 0), comm, torch.float32)


def _network(name: str, graph: DistributedGraph, seed: int) -> ExplicitModel:
    """A rival, untrained."""
    kind, *settings = RIVALS[name]
    model = ModelConfig(hidden=WIDTH, dropout=DROPOUT, input_dropout=DROPOUT)
    explicit = ExplicitConfig.model_validate({key: RIVALS[name][key] for key in settings})
    site = Site(graph.shard, graph.comm, model, explicit, torch.float32, seed)
    return KINDS[RIVALS[name][kind]](site)


def train_rival(name: str, graph: DistributedGraph, config: RunConfig, seed: int) -> _Ended:
    """Adam on the full graph, and the epoch that validates best.

    Args:
        name: a key of ``RIVALS``.
        graph: whole, in this process.
        config: whose loss and metric count.
        seed: of weights and dropout.
    """
    network = _network(name, graph, seed)
    optimiser = torch.optim.Adam(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
    train = config.train
    objective = Objective(graph.shard, graph.comm, train.loss, metric=train.metric)
    best, best_epoch, chosen = float("-inf"), 0, torch.empty(0)
    started, epoch = time.perf_counter(), 0
    while epoch < EPOCHS and epoch - best_epoch < PATIENCE:
        epoch += 1
        optimiser.zero_grad()
        objective.loss(network.read_out(network(epoch), epoch)).backward()
        optimiser.step()
        with torch.no_grad():
            logits = network.read_out(network(None))
        val = objective.metrics(logits, ("val",))["val"]
        if val > best:
            best, best_epoch, chosen = val, epoch, logits
    seconds = time.perf_counter() - started
    test = objective.metrics(chosen, ("test",))["test"]
    return _Ended(best, test, best_epoch, epoch, seconds)


def _row(model: str, seed: int, ended: _Ended) -> dict[str, Any]:
    return {
        "model": model,
        "seed": seed,
        "val": ended.val,
        "test": ended.test,
        "best_epoch": ended.best_epoch,
        "epochs": ended.epochs,
        "seconds": ended.seconds,
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    def cell(model: str, key: str, scale: float) -> str:
        found = [scale * float(row[key]) for row in rows if row["model"] == model]
        mean, deviation = spread(found)
        return f"{mean:.1f} ± {deviation:.1f}" if len(found) > 1 else f"{mean:.1f}"

    scales = {"val": 100.0, "test": 100.0, "seconds": 1.0}
    return {
        model: {key: cell(model, key, scale) for key, scale in scales.items()}
        for model in (*RIVALS, IMPLICIT)
    }


def _draw(rows: Sequence[Mapping[str, Any]], dataset: str, metric: str) -> Figure:
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for place, model in enumerate((*RIVALS, IMPLICIT)):
        mean, deviation = spread([100 * row["test"] for row in rows if row["model"] == model])
        axes.errorbar(place, mean, deviation, fmt="o", capsize=4)
    axes.set_xticks(range(len(RIVALS) + 1), [*RIVALS, IMPLICIT], rotation=20)
    axes.set_ylabel(f"test {metric}, per cent")
    axes.set_title(dataset)
    return figure
