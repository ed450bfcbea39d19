"""The rivals study: explicit networks of torch_geometric beside the implicit model, on any graph.

The implicit model has the settings that the study is given. Each rival has one setting for all
graphs, the one that its own paper or most of the literature takes, and reads the same nodes,
features and split, edges both ways. Validation chooses the epoch of each; test nodes are read once.

Letters: n nodes, F features, C classes, D width, E directed edges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.distributed_graph import DistributedGraph
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shard
from distributed_ignn.lab.studies.outcome import Outcome, Request, spread
from distributed_ignn.lab.studies.study_runs import train_run, with_settings
from distributed_ignn.training.losses.objective import Objective

# torch_geometric.nn is imported where it is used: it makes tensors, and then it is too late for a
# command to ask for huge pages (``use_huge_pages``)

IMPLICIT = "implicit"
WIDTH, DROPOUT = 64, 0.5
LR, WEIGHT_DECAY = 0.01, 5e-4
EPOCHS, PATIENCE = 300, 100
_LAYERS = 2
_TELEPORT, _STEPS = 0.1, 10  # of the APPNP paper
_DEPTH, _THETA = 16, 0.5  # GCNII

_PAPER = "No figure of its own: its Table 1 has other graphs, and settings of each."


class _Shallow(nn.Module):
    """A network of ``_LAYERS`` layers of torch_geometric, with dropout before each."""

    def __init__(self, network: str, features: int, classes: int) -> None:
        import torch_geometric.nn

        super().__init__()
        build: type[nn.Module] = getattr(torch_geometric.nn, network)
        self.network = build(features, WIDTH, _LAYERS, classes, DROPOUT)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C] from features [n, F] and edges [2, E]."""
        out: Tensor = self.network(functional.dropout(x, DROPOUT, self.training), edges)
        return out


class _Perceptron(nn.Module):
    """Two layers on a node's own features, with dropout before each."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        inner = nn.Linear(features, WIDTH), nn.ReLU()
        self.layers = nn.Sequential(
            nn.Dropout(DROPOUT), *inner, nn.Dropout(DROPOUT), nn.Linear(WIDTH, classes)
        )

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C] from features [n, F]; no edge is read."""
        out: Tensor = self.layers(x)
        return out


class _Personalised(nn.Module):
    """APPNP (Gasteiger et al. 2019): the perceptron's logits, propagated with a teleport."""

    def __init__(self, features: int, classes: int) -> None:
        from torch_geometric.nn import APPNP

        super().__init__()
        self.encode = _Perceptron(features, classes)
        self.propagate = APPNP(_STEPS, _TELEPORT, cached=True)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C] from features [n, F] and edges [2, E]."""
        out: Tensor = self.propagate(self.encode(x, edges), edges)
        return out


class _Deep(nn.Module):
    """GCNII (Chen et al. 2020), with dropout before each layer."""

    def __init__(self, features: int, classes: int) -> None:
        from torch_geometric.nn import GCN2Conv

        super().__init__()
        self.encode = nn.Linear(features, WIDTH)
        self.layers = nn.ModuleList(
            GCN2Conv(WIDTH, _TELEPORT, _THETA, layer, cached=True) for layer in range(1, _DEPTH + 1)
        )
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C] from features [n, F] and edges [2, E]."""
        drop = partial(functional.dropout, p=DROPOUT, training=self.training)
        first = torch.relu(self.encode(drop(x)))
        state = first
        for layer in self.layers:
            state = torch.relu(layer(drop(state), first, edges))
        out: Tensor = self.head(drop(state))
        return out


RIVALS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "GCN": partial(_Shallow, "GCN"),
    "GraphSAGE": partial(_Shallow, "GraphSAGE"),
    "APPNP": _Personalised,
    "GCNII": _Deep,
    "MLP": _Perceptron,
}
"""From F and C."""


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
            "rivals trains torch_geometric's layers on the whole graph; start it without torchrun"
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
            f"validation; two layers, APPNP with {_STEPS} steps, GCNII with {_DEPTH} layers."
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


def train_rival(name: str, graph: DistributedGraph, config: RunConfig, seed: int) -> _Ended:
    """Adam on the full graph, and the epoch that validates best.

    Args:
        name: a key of ``RIVALS``.
        graph: whole, in this process.
        config: whose loss and metric count.
        seed: of weights and dropout.
    """
    torch.manual_seed(seed)
    network = RIVALS[name](graph.num_features, graph.num_classes).to(graph.device)
    optimiser = torch.optim.Adam(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
    train = config.train
    objective = Objective(graph.shard, graph.comm, train.loss, metric=train.metric)
    best, best_epoch, chosen = float("-inf"), 0, torch.empty(0)
    started, epoch = time.perf_counter(), 0
    while epoch < EPOCHS and epoch - best_epoch < PATIENCE:
        epoch += 1
        network.train()
        optimiser.zero_grad()
        objective.loss(network(graph.x, graph.edge_index)).backward()
        optimiser.step()
        network.eval()
        with torch.no_grad():
            logits = network(graph.x, graph.edge_index)
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
