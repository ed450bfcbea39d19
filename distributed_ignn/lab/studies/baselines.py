"""Explicit graph networks of torch_geometric, to compare the implicit model with.

A layer, or a propagation step, reaches one edge further, so the depth is the receptive field.
Letters: n nodes, F features, D width, C classes, E directed edges.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from distributed_ignn.config import ModelConfig, TrainConfig
from distributed_ignn.graph.data import CSRMatrix, GraphData

# torch_geometric.nn is imported where it is used: it makes tensors, and then it is too late for a
# command to ask for huge pages (``use_huge_pages``)
_CLASSICAL_ALPHA = 0.1  # of the APPNP and GCNII papers
_GCNII_THETA = 0.5  # of the GCNII paper
MORE_EPOCHS = 2
_PROGRESS = 0.999  # a smaller change of the training loss does not count as one


class GCN(nn.Module):
    """Kipf & Welling (2017): ``depth`` layers relu(A_hat H W) and a linear readout."""

    def __init__(self, features: int, width: int, classes: int, depth: int) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        sizes = itertools.pairwise([features, *[width] * depth])
        self.layers = nn.ModuleList(GCNConv(a, b, cached=True) for a, b in sizes)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C] from features [n, F] and edges [2, E]."""
        for layer in self.layers:
            x = torch.relu(layer(x, edges))
        out: Tensor = self.head(x)
        return out


class SGC(nn.Module):
    """Wu et al. (2019): a linear model on A_hat^depth X, which is computed once."""

    def __init__(self, features: int, classes: int, depth: int) -> None:
        from torch_geometric.nn import SGConv

        super().__init__()
        self.layer = SGConv(features, classes, K=depth, cached=True)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C] from features [n, F] and edges [2, E]."""
        out: Tensor = self.layer(x, edges)
        return out


class PersonalisedPropagation(nn.Module):
    """APPNP (Gasteiger et al. 2019): a two-layer MLP, then ``depth`` steps with teleport alpha."""

    def __init__(self, features: int, width: int, classes: int, depth: int, alpha: float) -> None:
        from torch_geometric.nn import APPNP

        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, classes)
        )
        self.propagate = APPNP(depth, alpha, cached=True)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C] from features [n, F] and edges [2, E]."""
        out: Tensor = self.propagate(self.encode(x), edges)
        return out


class GCNII(nn.Module):
    """Chen et al. (2020): ``depth`` layers with initial residual and identity mapping."""

    def __init__(self, features: int, width: int, classes: int, depth: int, alpha: float) -> None:
        from torch_geometric.nn import GCN2Conv

        super().__init__()
        self.encode = nn.Linear(features, width)
        self.layers = nn.ModuleList(
            GCN2Conv(width, alpha, _GCNII_THETA, layer, cached=True)
            for layer in range(1, depth + 1)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits [n, C] from features [n, F] and edges [2, E]."""
        first = torch.relu(self.encode(x))
        state = first
        for layer in self.layers:
            state = torch.relu(layer(state, first, edges))
        out: Tensor = self.head(state)
        return out


@dataclass(frozen=True, slots=True)
class Choice:
    """What validation chooses for a baseline.

    Args:
        depth: layers or propagation steps.
        alpha: teleport or initial-residual weight; None where the model has none.
    """

    depth: int
    alpha: float | None = None


Build = Callable[[int, int, int, Choice], nn.Module]
"""From F, D, C and a choice."""

BUILDERS: dict[str, Build] = {
    "GCN": lambda f, d, c, choice: GCN(f, d, c, choice.depth),
    "SGC": lambda f, d, c, choice: SGC(f, c, choice.depth),
    "APPNP": lambda f, d, c, choice: PersonalisedPropagation(
        f, d, c, choice.depth, choice.alpha or 0.0
    ),
    "GCNII": lambda f, d, c, choice: GCNII(f, d, c, choice.depth, choice.alpha or 0.0),
}


def choices(name: str, depths: Sequence[int], weakest: float) -> list[Choice]:
    """What a baseline may choose from.

    Args:
        name: a key of BUILDERS.
        depths: for every baseline.
        weakest: 1 - kappa of the implicit model, offered as alpha beside the usual 0.1, so that a
            baseline with a teleport is not held back by a shorter range.
    """
    alphas = (_CLASSICAL_ALPHA, weakest) if name in ("APPNP", "GCNII") else (None,)
    return [Choice(depth, alpha) for depth in depths for alpha in alphas]


@dataclass(frozen=True, slots=True, eq=False)
class WholeGraph:
    """A dataset as torch_geometric's layers take it: x [n, F] and edges [2, E]."""

    data: GraphData
    x: Tensor
    edges: Tensor

    @classmethod
    def of(cls, data: GraphData) -> WholeGraph:
        """On the CPU, from channel 0."""
        features = data.features
        if features is None:
            raise ValueError(f"dataset {data.name} has no features")
        dense = (
            features.to_dense(torch.float32)
            if isinstance(features, CSRMatrix)
            else features.float()
        )
        graph = data.graphs[0]
        return cls(data, dense, torch.stack([graph.rows(), graph.col]))


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A baseline at the epoch that validation chose.

    Args:
        val: its accuracy on the validation nodes.
        predictions: int64 [n]; the test accuracy is read from them for the chosen depth alone.
        epochs: trained.
    """

    val: float
    predictions: Tensor
    epochs: int


def train_baseline(
    name: str, choice: Choice, graph: WholeGraph, model: ModelConfig, train: TrainConfig, seed: int
) -> Trained:
    """Adam, cross-entropy and the best epoch by validation, as for the implicit model.

    Explicit networks learn this task more slowly, so they get MORE_EPOCHS times as many epochs,
    and the patience counts epochs in which neither validation nor the training loss got better.
    """
    torch.manual_seed(seed)
    data = graph.data
    network = BUILDERS[name](data.num_features, model.hidden, data.num_classes, choice)
    decay = float(train.weight_decay)
    optimizer = torch.optim.Adam(network.parameters(), train.lr, weight_decay=decay)
    best, least, stale, epoch = Trained(-1.0, data.labels, 0), math.inf, 0, 0
    while True:
        # one forward pass validates the last step and begins the next
        logits = network(graph.x, graph.edges)
        loss = functional.cross_entropy(logits[data.train_nodes], data.labels[data.train_nodes])
        predictions = logits.detach().argmax(dim=1)
        val = accuracy(predictions, data.labels, data.val_nodes)
        stale += 1
        if epoch and val > best.val:
            best, stale = Trained(val, predictions, epoch), 0
        if loss.item() < _PROGRESS * least:
            least, stale = loss.item(), 0
        # at a validation accuracy of 1 no later epoch would be chosen
        done = epoch == MORE_EPOCHS * train.epochs or best.val == 1.0
        if done or 0 < train.patience <= stale:
            return Trained(best.val, best.predictions, epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        epoch += 1


def accuracy(predictions: Tensor, labels: Tensor, nodes: Tensor) -> float:
    """Share of ``nodes`` whose prediction is their label."""
    return float((predictions[nodes] == labels[nodes]).double().mean())
