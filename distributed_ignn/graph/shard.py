"""GraphShard: what one rank holds of a partitioned graph, complete and immutable.

Id spaces: *global* ids name nodes of the whole graph; *owned* ids 0..O-1 name this rank's nodes,
interior ones first; *halo* ids 0..H-1 name remote nodes that owned rows read.
Letters: O owned nodes, I interior nodes, B = O - I boundary nodes, H halo nodes, P parts, S rows
sent, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from distributed_ignn.graph.data import CSRMatrix, Task
from distributed_ignn.graph.feature_scaling import FeatureScaling

Normalisation = Literal["symmetric", "row"]
"""How A_hat is made of A + I: D~^-1/2 (A + I) D~^-1/2, or D~^-1 (A + I)."""


def choose_normalisation(
    choice: Literal["auto", "symmetric", "row"], graph_channels: int
) -> Normalisation:
    """What ``model.normalisation`` means on a graph with so many ``graph_channels``.

    ``auto`` is ``row`` where both directions of a directed graph are channels: then no vector but
    that of ones is kept by both.
    """
    if choice == "auto":
        return "row" if graph_channels > 1 else "symmetric"
    return choice


@dataclass(frozen=True, slots=True, eq=False)
class ChannelShard:
    """One propagation graph, restricted to the rows that this rank owns.

    Args:
        owned: CSRMatrix [O, O], entries between owned nodes *with* the self-loops.
        boundary: CSRMatrix [B, H], entries from boundary rows (owned id I + row) to halo nodes.
            Values of both are the weights, 1 for self-loops; None where the graph has no weights.
        degree_owned, degree_halo: [O], [H], sum of the node's whole row *without* the self-loop
            (D~ = degree + 1): int64 without weights, else float64.
        symmetric: whether the whole adjacency is symmetric.
        normalisation: how it is to be normalised; of the run, and not stored with the shard.
    """

    owned: CSRMatrix
    boundary: CSRMatrix
    degree_owned: Tensor
    degree_halo: Tensor
    symmetric: bool
    normalisation: Normalisation = "symmetric"

    @property
    def weighted(self) -> bool:
        return self.owned.value is not None

    @property
    def self_adjoint(self) -> bool:
        """Whether A_hat is its own transpose."""
        return self.symmetric and self.normalisation == "symmetric"


@dataclass(frozen=True, slots=True, eq=False)
class GraphShard:
    """One rank's part of a GraphData, with its ordered send and receive plan.

    A node is *interior* if no channel links its row to a halo node and, in the other direction,
    nothing else is required of it: interior nodes may still be sent (directed graphs).

    Args:
        part, parts: which shard of how many (parts = P).
        num_nodes: n of the whole graph.
        owned_nodes: int64 [O] global ids, interior ones first; inside each group in an order that
            keeps linked nodes close (``partition.order``).
        num_interior: I.
        halo_nodes: int64 [H] global ids, grouped by owning part, inside a group in the order of
            its owned_nodes.
        recv_counts: int64 [P], halo rows that come from each part (sum H; own entry 0).
        send_counts: int64 [P], owned rows that go to each part (sum S; own entry 0).
        send_index: int64 [S] owned ids, grouped by receiving part, ascending inside a group: the
            order of the receiver's halo_nodes.
        channels: one per propagation graph; all share the halo.
        features: CSRMatrix [O, F], Tensor [O, F] or None.
        labels: as in GraphData, rows of the owned nodes.
        train_index, val_index, test_index: int64 owned ids, ascending.
        num_features, num_classes, task, name: of the whole dataset.
        split_sizes: global numbers of train, validation and test nodes.
        clusters: int64 [O], the owned nodes' clusters of the coarse level, or None without one.
        graph_channels: as in GraphData.
        scaling: what was done to the features, where the settings alone do not say it.
        class_names: as in GraphData.
    """

    part: int
    parts: int
    num_nodes: int
    owned_nodes: Tensor
    num_interior: int
    halo_nodes: Tensor
    recv_counts: Tensor
    send_counts: Tensor
    send_index: Tensor
    channels: tuple[ChannelShard, ...]
    features: CSRMatrix | Tensor | None
    labels: Tensor
    train_index: Tensor
    val_index: Tensor
    test_index: Tensor
    num_features: int
    num_classes: int
    task: Task
    name: str
    split_sizes: tuple[int, int, int]
    clusters: Tensor | None = None
    graph_channels: int = 1
    scaling: FeatureScaling | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for rule, holds in _rules(self):
            if not holds:
                raise ValueError(f"shard {self.part} of {self.parts} breaks the rule: {rule}")

    @property
    def num_owned(self) -> int:
        return self.owned_nodes.numel()

    @property
    def num_halo(self) -> int:
        return self.halo_nodes.numel()

    def turned(self, channel: int) -> CSRMatrix | None:
        """The transpose of a channel's owned block, where another channel has it."""
        pair = self.graph_channels == 2 and channel < 2
        return self.channels[1 - channel].owned if pair else None

    def normalised(self, choice: Literal["auto", "symmetric", "row"]) -> GraphShard:
        """The same part with every channel to be normalised as ``model.normalisation`` says."""
        how = choose_normalisation(choice, self.graph_channels)
        if all(channel.normalisation == how for channel in self.channels):
            return self
        return replace(
            self, channels=tuple(replace(channel, normalisation=how) for channel in self.channels)
        )

    @property
    def held_bytes(self) -> int:
        """Bytes of the arrays that it is made of, which are those of its file."""
        found = [self.owned_nodes, self.halo_nodes, self.send_index, self.labels]
        matrices = [self.features] if isinstance(self.features, CSRMatrix) else []
        if isinstance(self.features, Tensor):
            found.append(self.features)
        for channel in self.channels:
            matrices += [channel.owned, channel.boundary]
            found += [channel.degree_owned, channel.degree_halo]
        for matrix in matrices:
            found += [matrix.rowptr, matrix.col]
            found += [] if matrix.value is None else [matrix.value]
        return sum(array.numel() * array.element_size() for array in found)


def _rules(shard: GraphShard) -> Iterator[tuple[str, bool]]:
    """What has to hold, so that no kernel reads foreign memory; each rule relies on those before.

    A shard may come from a file, so nothing is taken for granted.
    """
    owned, halo, parts = shard.num_owned, shard.num_halo, shard.parts
    lists = {
        "owned_nodes": shard.num_nodes,
        "halo_nodes": shard.num_nodes,
        "recv_counts": halo + 1,
        "send_counts": shard.send_index.numel() + 1,
        "send_index": owned,
        **dict.fromkeys(("train_index", "val_index", "test_index"), owned),
    }
    for name, bound in lists.items():
        tensor: Tensor = getattr(shard, name)
        yield f"{name} is a list of int64", tensor.dtype is torch.int64 and tensor.dim() == 1
        yield f"{name} are in range", _within(tensor, bound)
    yield "part is one of the parts", 0 <= shard.part < parts
    yield "one count per part", shard.recv_counts.numel() == shard.send_counts.numel() == parts
    yield "recv_counts sum to the halo", int(shard.recv_counts.sum()) == halo
    yield (
        "send_counts sum to send_index",
        int(shard.send_counts.sum()) == shard.send_index.numel(),
    )
    yield "no rows to oneself", int((shard.send_counts + shard.recv_counts)[shard.part]) == 0
    yield "interior is part of owned", 0 <= shard.num_interior <= owned
    most = min(len(shard.channels), 2)
    yield "the graph has one channel or two", 1 <= shard.graph_channels <= most
    clusters = shard.clusters
    yield (
        "clusters cover owned nodes",
        clusters is None
        or (
            clusters.shape == (owned,)
            and clusters.dtype is torch.int64
            and _within(clusters, shard.num_nodes)
        ),
    )
    yield from _node_rules(shard, owned)
    for i, channel in enumerate(shard.channels):
        for rule, holds in _channel_rules(channel, owned, owned - shard.num_interior, halo):
            yield f"channel {i} {rule}", holds


def _node_rules(shard: GraphShard, owned: int) -> Iterator[tuple[str, bool]]:
    labels, features = shard.labels, shard.features
    yield "labels cover owned nodes", labels.shape[:1] == (owned,)
    if shard.task == "multilabel":
        yield "labels are one column per class", labels.shape[1:] == (shard.num_classes,)
    else:
        yield "labels are a list of int64", labels.dim() == 1 and labels.dtype is torch.int64
        yield "labels are classes", _within(labels + 1, shard.num_classes + 1)
    yield "classes have names or none has", len(shard.class_names) in (0, shard.num_classes)
    width = shard.num_features
    yield "scaling is that of the features", shard.scaling is None or shard.scaling.fits(width)
    if isinstance(features, CSRMatrix):
        yield "features are [O, F]", _is_block(features, owned, width)
    elif features is not None:
        yield "features are [O, F]", features.shape == (owned, width)


def _channel_rules(
    channel: ChannelShard, owned: int, boundary: int, halo: int
) -> Iterator[tuple[str, bool]]:
    yield "owned block is [O, O]", _is_block(channel.owned, owned, owned)
    yield "boundary block is [B, H]", _is_block(channel.boundary, boundary, halo)
    yield (
        "degrees",
        channel.degree_owned.shape == (owned,) and channel.degree_halo.shape == (halo,),
    )
    weights = channel.owned.value, channel.boundary.value
    yield (
        "weights are those of both blocks or of none",
        (weights[0] is None) == (weights[1] is None),
    )
    if channel.weighted:
        yield "weights are finite numbers above 0", all(_are_weights(w) for w in weights)
        degrees = channel.degree_owned, channel.degree_halo
        yield "degrees are sums of weights", all(_are_weights(d, zero=True) for d in degrees)


def _are_weights(values: Tensor | None, *, zero: bool = False) -> bool:
    if values is None or not values.is_floating_point():
        return False
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values)  # NaN if there is one
    return (float(low) > 0.0 or (zero and float(low) == 0.0)) and float(high) < torch.inf


def _is_block(matrix: CSRMatrix, rows: int, columns: int) -> bool:
    shaped = matrix.problem() is None and (matrix.num_rows, matrix.num_cols) == (rows, columns)
    return shaped and _within(matrix.col, columns)


def _within(index: Tensor, bound: int) -> bool:
    if index.numel() == 0:
        return True
    low, high = torch.aminmax(index)
    return int(low) >= 0 and int(high) < bound
