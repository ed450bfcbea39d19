"""The injection b(X) = X Omega + sum_c A_hat_c X Omega_c + bias, or an embedding per node.

Either term can be switched off, X can be replaced by relu(X Theta), and each row of b can be
normalised. Letters: O owned nodes, F features, D hidden width, E stored feature entries, c channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from distributed_ignn.config import ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.hashing import hash_uniform
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.dropout import NodeDropout, Stream
from distributed_ignn.models.features import FeatureStore
from distributed_ignn.models.terms import sum_of_products
from distributed_ignn.propagation.propagate import Propagation

KEPT_WIDTHS = 2  # constant terms may hold so many columns per column of the state


class Spreads(Protocol):
    """Who multiplies by A_hat_c; a shard's propagation does."""

    @property
    def num_channels(self) -> int:
        """C."""
        ...

    @property
    def graph_channels(self) -> int:
        """How many of them, from the first, are the dataset's own graph."""
        ...

    def __call__(self, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A_hat_c x_c for every channel, differentiable in every x_c [O, D_c]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What b(X) is computed from: the features of one part of a graph, and its channels.

    Where X is dense, never dropped and enters b directly, A_hat_c X is a constant: it is computed
    once, and b costs neither an exchange nor a sparse product in any epoch, forward or backward.
    That takes F columns of memory per channel, so it is done while they are at most 2 D; sparse
    features stay sparse, since A_hat_c X would fill in.

    Args:
        store: the features.
        propagation: the channels.
        nodes: global ids of the owned nodes, int64 [O]; for the inner layer's dropout.
        seed: of that dropout.
        constant: X, if b reads it, and A_hat_c X of the injected channels; None where they vary.
        rows: int64 [R], which rows of ``store`` b is asked for, if not all; the channels then
            give those alone (``some_rows.py``).
    """

    store: FeatureStore
    propagation: Spreads
    nodes: Tensor
    seed: int
    constant: tuple[Tensor, ...] | None
    rows: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        store: FeatureStore,
        propagation: Propagation,
        nodes: Tensor,
        config: ModelConfig,
        seed: int,
    ) -> Source:
        """With the constant terms where ``config`` has any; then one exchange."""
        chosen = injected_channels(config, propagation.num_channels, propagation.graph_channels)
        features, constant = store.dense, None
        if (
            features is not None
            and not features.requires_grad
            and keeps_constant_terms(config, features.shape[1], len(chosen))
        ):
            terms = [] if config.injection == "propagated" else [features]
            if chosen:
                products = propagation.apply(features)
                terms += [products[channel] for channel in chosen]
            constant = tuple(terms)
        return cls(store, propagation, nodes, seed, constant)


class Injection(nn.Module):
    """The parameters of b(X), whatever the graph; ``injection`` and its like choose the terms.

    Args:
        num_features: F.
        config: the model section.
        channels: C.
        graph_channels: how many of them, from the first, are the dataset's own graph.

    Raises:
        UserError: ``injection_channels`` asks for a neighbour graph and there is none.
    """

    def __init__(
        self, num_features: int, config: ModelConfig, channels: int, graph_channels: int = 1
    ) -> None:
        super().__init__()
        self._channels = injected_channels(config, channels, graph_channels)
        self._dropout = NodeDropout(config.dropout, Stream.INJECTION)
        width = config.hidden
        deep = config.injection_layers == 2
        self.inner = nn.Parameter(_glorot(num_features, width)) if deep else None
        self.inner_bias = nn.Parameter(torch.zeros(width)) if deep and config.bias else None
        rows = width if deep else num_features
        own = config.injection != "propagated"
        self.own = nn.Parameter(_glorot(rows, width)) if own else None
        self.spread = nn.ParameterList(_glorot(rows, width) for _ in self._channels)
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias else None
        self.norm = nn.LayerNorm(width) if config.injection_norm == "layer" else None

    def of(self, source: Source, step: int | None) -> Tensor:
        """b [O, D], or [R, D] of some rows; ``step`` seeds the dropout, None switches it off."""
        own = [] if self.own is None else [self.own]
        if source.constant is not None:
            total = sum_of_products(source.constant, [*own, *self.spread], self.bias)
            return total if self.norm is None else self.norm(total)
        weights = torch.cat([*own, *self.spread], dim=1)
        joined = self._linear(source, weights, step)
        columns = joined.tensor_split(len(own) + len(self.spread), dim=1)
        terms = [_rows(column, source.rows) for column in columns[: len(own)]]
        if self._channels:
            terms += self._propagate(source.propagation, columns[len(own) :])
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        total = total if self.bias is None else total + self.bias
        return total if self.norm is None else self.norm(total)

    def _linear(self, source: Source, weights: Tensor, step: int | None) -> Tensor:
        """X @ weights, or relu(X Theta) @ weights, [O, D times terms]."""
        if self.inner is None:
            return source.store.linear(weights, step)
        hidden = source.store.linear(self.inner, step)
        hidden = torch.relu(hidden if self.inner_bias is None else hidden + self.inner_bias)
        return self._dropout(hidden, source.seed, step, source.nodes) @ weights

    def _propagate(self, propagation: Spreads, columns: tuple[Tensor, ...]) -> list[Tensor]:
        """A_hat_c of the injected channels; the others get no columns in the same exchange."""
        blocks = [columns[0][:, :0]] * propagation.num_channels
        for channel, block in zip(self._channels, columns, strict=True):
            blocks[channel] = block
        products = propagation(blocks)
        return [products[channel] for channel in self._channels]


class FeatureEncoder(Injection):
    """b(X) of the features that this rank holds.

    Args:
        store: this rank's features.
        num_features: F.
        config: the model section.
        propagation: the channels.
        nodes: global ids of the owned nodes, int64 [O]; for the inner layer's dropout.
        seed: of that dropout.

    Raises:
        UserError: see ``Injection``.
    """

    def __init__(
        self,
        store: FeatureStore,
        num_features: int,
        config: ModelConfig,
        propagation: Propagation,
        nodes: Tensor,
        seed: int,
    ) -> None:
        channels = propagation.num_channels, propagation.graph_channels
        super().__init__(num_features, config, *channels)
        self.source = Source.of(store, propagation, nodes, config, seed)

    def forward(self, step: int | None) -> Tensor:
        """b [O, D]; ``step`` seeds the dropout, None switches it off."""
        return self.of(self.source, step)

    def constants(self) -> list[tuple[str, Tensor]]:
        """What is not learned, by name."""
        return [("features", self.source.store.stored)]


def held_bytes(
    sizes: PartSizes, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, int]:
    """Bytes of what b(X) is made from, by name.

    Args:
        sizes: of the part.
        config: the model section.
        dtype, device: of the state.
    """
    item, rows = dtype.itemsize, sizes.owned
    injected = injected_count(config, sizes)
    kept = has_constant_terms(sizes, config)
    return {
        "features": FeatureStore.held_bytes(sizes, item, device.type == "cuda"),
        "propagated features": injected * sizes.features * item * rows if kept else 0,
        # values, gradient, Adam's moments and the best so far
        "weights of b(X) and their optimiser": 5 * parameter_count(sizes, config) * item,
        # the same, what is confirmed, and once more while that is done
        "embedding and its optimiser": 0 if sizes.features else 7 * rows * config.hidden * item,
    }


def parameter_count(sizes: PartSizes, config: ModelConfig) -> int:
    """How many weights ``Injection`` has, known before it is built; 0 without features."""
    if not sizes.features:
        return 0
    width, deep = config.hidden, config.injection_layers == 2
    rows = width if deep else sizes.features
    terms = injected_count(config, sizes) + int(config.injection != "propagated")
    biases = int(config.bias) * (1 + int(deep)) + 2 * int(config.injection_norm == "layer")
    return width * (terms * rows + int(deep) * sizes.features + biases)


def injected_count(config: ModelConfig, sizes: PartSizes) -> int:
    """How many channels b(X) reads; 0 where the choice names none that there are."""
    if config.injection == "features":
        return 0
    graph, every = sizes.graph_channels, sizes.channels
    return {"all": every, "graph": graph, "knn": every - graph}[config.injection_channels]


def has_constant_terms(sizes: PartSizes, config: ModelConfig) -> bool:
    """Whether A_hat_c X is computed once, known before anything is built."""
    dense = sizes.features > 0 and sizes.feature_entries is None
    injected = injected_count(config, sizes)
    return dense and keeps_constant_terms(config, sizes.features, injected)


def keeps_rows(config: ModelConfig) -> bool:
    """Whether the backward pass of b(X) needs an array of the size of b."""
    return config.injection_norm == "layer" or config.injection_layers == 2


def _rows(values: Tensor, rows: Tensor | None) -> Tensor:
    """Those ``rows`` of ``values``; all by default."""
    return values if rows is None else values.index_select(0, rows)


def injected_channels(config: ModelConfig, channels: int, graph_channels: int) -> tuple[int, ...]:
    """The channels whose A_hat_c X is part of b."""
    chosen = chosen_channels(config.injection_channels, channels, graph_channels)
    return chosen if config.injection != "features" else ()


def keeps_constant_terms(config: ModelConfig, features: int, channels: int) -> bool:
    """Whether A_hat_c X of dense features is computed once, see ``FeatureEncoder``.

    Args:
        config: the model section.
        features: F.
        channels: that b reads.
    """
    varies = config.injection_layers == 2 or config.input_dropout + config.node_dropout > 0.0
    return not varies and features * channels <= KEPT_WIDTHS * config.hidden


def chosen_channels(
    choice: Literal["all", "graph", "knn"], count: int, graph_channels: int
) -> tuple[int, ...]:
    """Which of ``count`` channels ``model.injection_channels`` names.

    Raises:
        UserError: the neighbour graph is named and there is none.
    """
    chosen = {
        "all": range(count),
        "graph": range(graph_channels),
        "knn": range(graph_channels, count),
    }
    channels = tuple(chosen[choice])
    if not channels:
        raise UserError(
            "model.injection_channels = knn needs the neighbour graph of the features; set "
            "data.knn, or choose all or graph"
        )
    return channels


class NodeEmbedding(nn.Module):
    """A learned row per owned node, for graphs without features; each rank holds its own rows.

    Initial values are a hash of (seed, global node id, column), so they do not depend on the cut.
    """

    def __init__(self, shard: GraphShard, config: ModelConfig, seed: int) -> None:
        super().__init__()
        columns = torch.arange(config.hidden)[None, :]
        ids = shard.owned_nodes[:, None]
        # Box-Muller: two uniforms make a standard normal
        radius = torch.sqrt(-2.0 * torch.log1p(-hash_uniform(seed * 2 + 11, ids, columns)))
        angle = 2.0 * math.pi * hash_uniform(seed * 2 + 12, ids, columns)
        start = radius * torch.cos(angle) / math.sqrt(config.hidden)
        self.rows = nn.Parameter(start.to(torch.get_default_dtype()))

    def forward(self, step: int | None) -> Tensor:
        """The embedding [O, D]; nothing of it is dropped or mapped, see ``OF_FEATURES``."""
        return self.rows

    def constants(self) -> list[tuple[str, Tensor]]:
        """Nothing: every row is learned."""
        return []


def _glorot(rows: int, cols: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(rows, cols))
