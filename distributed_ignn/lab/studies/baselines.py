"""Explicit graph networks (``models/kinds``) on chains, to compare the implicit model with.

A layer, or a propagation step, reaches one edge further, so the depth is the receptive field.
Letters: n nodes, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ExplicitConfig, ModelConfig, TrainConfig
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.kinds import KINDS, ExplicitModel, Site

_CLASSICAL_ALPHA = 0.1  # of the APPNP and GCNII papers
MORE_EPOCHS = 2
_PROGRESS = 0.999  # a smaller change of the training loss does not count as one

BASELINES = {"GCN": "gcn", "SGC": "sgc", "APPNP": "appnp", "GCNII": "gcnii"}
"""``model.kind`` by the name of the network."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What validation chooses for a baseline.

    Args:
        depth: layers or propagation steps.
        alpha: teleport or initial-residual weight; None where the model has none.
    """

    depth: int
    alpha: float | None = None


def choices(name: str, depths: Sequence[int], weakest: float) -> list[Choice]:
    """What a baseline may choose from.

    Args:
        name: a key of BASELINES.
        depths: for every baseline.
        weakest: 1 - kappa of the implicit model, offered as alpha beside the usual 0.1, so that a
            baseline with a teleport is not held back by a shorter range.
    """
    alphas = (_CLASSICAL_ALPHA, weakest) if name in ("APPNP", "GCNII") else (None,)
    return [Choice(depth, alpha) for depth in depths for alpha in alphas]


@dataclass(frozen=True, slots=True, eq=False)
class WholeGraph:
    """A dataset in one part.

    Args:
        data: the dataset.
        shard: its only part.
        place: where in the part each node's row is, int64 [n].
    """

    data: GraphData
    shard: GraphShard
    place: Tensor

    @classmethod
    def of(cls, data: GraphData) -> WholeGraph:
        """On the CPU."""
        (shard,) = build_shards(data, torch.zeros(data.num_nodes, dtype=torch.int64), 1)
        return cls(data, shard, shard.owned_nodes.argsort())

    def network(
        self, name: str, choice: Choice, model: ModelConfig, seed: int, dtype: torch.dtype
    ) -> ExplicitModel:
        """A baseline, untrained.

        Args:
            name: a key of BASELINES.
            choice: its depth, and alpha where it has one.
            model: the width is read.
            seed: of the weights.
            dtype: of the weights.
        """
        settings = {"layers": choice.depth} | (
            {} if choice.alpha is None else {"teleport": choice.alpha}
        )
        explicit = ExplicitConfig.model_validate(settings)
        return KINDS[BASELINES[name]](
            Site(self.shard, Communicator(), model, explicit, dtype, seed)
        )

    def logits(self, network: ExplicitModel) -> Tensor:
        """[n, C], without dropout; differentiable."""
        return network.read_out(network(None))[self.place]


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
    data = graph.data
    network = graph.network(name, choice, model, seed, torch.float32)
    decay = float(train.weight_decay)
    optimizer = torch.optim.Adam(network.parameters(), train.lr, weight_decay=decay)
    best, least, stale, epoch = Trained(-1.0, data.labels, 0), math.inf, 0, 0
    while True:
        # one forward pass validates the last step and begins the next
        logits = graph.logits(network)
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
        if train.clip_norm:
            nn.utils.clip_grad_norm_(network.parameters(), train.clip_norm)
        optimizer.step()
        epoch += 1


def accuracy(predictions: Tensor, labels: Tensor, nodes: Tensor) -> float:
    """Share of ``nodes`` whose prediction is their label."""
    return float((predictions[nodes] == labels[nodes]).double().mean())
