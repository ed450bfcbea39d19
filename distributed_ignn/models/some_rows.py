"""b(X) of some rows of a shard, from features at hand: no exchange, whatever is dropped.

A row of b(X) reads the features of its neighbours. Those that other ranks own are fetched once;
dropout masks belong to nodes, so that this rank draws them for fetched rows as their owners do.

Letters: R rows that are asked for, N rows that they read (themselves included), O owned nodes,
H halo nodes, F features, c channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distributed_ignn.config import ModelConfig
from distributed_ignn.graph.data import CSRMatrix, csr_from_entries
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import ChannelShard, GraphShard
from distributed_ignn.models.encoder import (
    Source,
    has_constant_terms,
    injected_channels,
    injected_count,
)
from distributed_ignn.models.features import FeatureStore
from distributed_ignn.propagation.operators import Scales, scaled
from distributed_ignn.propagation.propagate import INDEX_BYTES, Propagation
from distributed_ignn.propagation.sparse import SparseMatrix, sparse_linear

_FETCHED = 1 << 24  # entries of a block of dense columns that is fetched at a time


@dataclass(frozen=True, slots=True, eq=False)
class RowPropagation:
    """A_hat_c for R rows, on the N rows that they read.

    Args:
        matrices: [R, N] and its transpose, per channel.
        graph_channels: how many of them, from the first, are the dataset's own graph.
    """

    matrices: tuple[tuple[SparseMatrix, SparseMatrix], ...]
    graph_channels: int

    @property
    def num_channels(self) -> int:
        return len(self.matrices)

    def __call__(self, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A_hat_c x_c [R, D_c], differentiable in every x_c [N, D_c]; nothing is sent."""
        return tuple(
            sparse_linear(matrix, flipped, x.contiguous())
            for (matrix, flipped), x in zip(self.matrices, xs, strict=True)
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Neighbours:
    """Has the features of the N rows, as a ``FeatureRows``."""

    features: CSRMatrix | Tensor
    owned_nodes: Tensor
    name: str


def held_bytes(sizes: PartSizes, rows: int, config: ModelConfig, item: int) -> int:
    """Bytes of what ``source_of_rows`` makes, at most.

    Args:
        sizes: of the part.
        rows: R.
        config: the model section.
        item: bytes of a number.
    """
    injected = injected_count(config, sizes)
    own = int(config.injection != "propagated")
    if has_constant_terms(sizes, config):
        return rows * sizes.features * (own + injected) * item
    read = sizes.owned + sizes.halo if injected else rows
    entries = sizes.owned_entries + sizes.boundary_entries if injected else 0
    products = 2 * (INDEX_BYTES + item) * entries * rows // max(sizes.owned, 1)
    if sizes.feature_entries is None:
        return products + read * sizes.features * item
    stored = sizes.feature_entries * read // max(sizes.owned, 1)
    # the rows themselves, and what the store makes of them
    rows_read = replace(sizes, feature_entries=stored)
    kept = stored * (INDEX_BYTES + item) + FeatureStore.held_bytes(rows_read, item, on_gpu=False)
    return products + kept


def source_of_rows(
    source: Source,
    shard: GraphShard,
    rows: Tensor,
    config: ModelConfig,
    propagation: Propagation,
    dtype: torch.dtype,
    seed: int,
) -> Source:
    """What b(X) of some owned rows is computed from; every rank calls it together.

    Args:
        source: of all owned rows; its constant terms serve where it has any.
        shard: this rank's part.
        rows: owned ids, int64 [R].
        config: the model section.
        propagation: of the shard; fetches features of the halo, once.
        dtype: of features and state.
        seed: of the dropout.
    """
    device = source.nodes.device
    if source.constant is not None:
        kept = tuple(term.index_select(0, rows.to(device)) for term in source.constant)
        return Source(source.store, propagation, source.nodes[rows.to(device)], seed, kept)
    channels = injected_channels(config, len(shard.channels), shard.graph_channels)
    rows = rows.cpu()
    columns = [_rows_of(channel, rows) for channel in shard.channels]
    read = torch.unique(torch.cat([rows, *(columns[c].col.long() for c in channels)]))
    place = torch.zeros(shard.num_owned + shard.num_halo, dtype=torch.int64)
    place[read] = torch.arange(read.numel())
    empty = CSRMatrix(torch.zeros(rows.numel() + 1, dtype=torch.int64), place[:0].int(), None, 0)
    matrices = [
        _normalised(columns[c] if c in channels else empty, channel, rows, read, place, dtype)
        for c, channel in enumerate(shard.channels)
    ]
    ready = tuple(
        (SparseMatrix.from_csr(m, dtype, device), SparseMatrix.transposed(m, dtype, device))
        for m in matrices
    )
    nodes = torch.cat([shard.owned_nodes, shard.halo_nodes])[read]
    features = _features(source.store, shard, read, propagation, bool(channels))
    neighbours = _Neighbours(features, nodes, shard.name)
    drops = config.input_dropout, seed, config.node_dropout
    store = FeatureStore(neighbours, dtype, device, *drops)
    spreads = RowPropagation(ready, shard.graph_channels)
    return Source(store, spreads, nodes.to(device), seed, None, rows=place[rows].to(device))


def _rows_of(channel: ChannelShard, rows: Tensor) -> CSRMatrix:
    """Some rows of A + I, [R, O + H], owned columns first; not normalised."""
    owned = channel.owned.num_rows
    interior = owned - channel.boundary.num_rows
    inside = channel.owned.select_rows(rows)
    at_boundary = (rows >= interior).nonzero()[:, 0]
    across = channel.boundary.select_rows(rows[at_boundary] - interior)
    row = torch.cat([inside.rows(), at_boundary[across.rows()]])
    col = torch.cat([inside.col.long(), across.col.long() + owned])
    value = None
    if inside.value is not None and across.value is not None:
        value = torch.cat([inside.value, across.value])
    return csr_from_entries(row, col, rows.numel(), owned + channel.boundary.num_cols, value)


def _normalised(
    matrix: CSRMatrix,
    channel: ChannelShard,
    rows: Tensor,
    read: Tensor,
    place: Tensor,
    dtype: torch.dtype,
) -> CSRMatrix:
    """[R, N] with the values of A_hat_c, from rows [R, O + H] of A + I."""
    scales = Scales.of(channel)
    value = scaled(matrix, scales.rows[rows], scales.columns()).value
    if value is None:
        raise TypeError("a normalised matrix has values")
    col = place[matrix.col.long()].int()
    return CSRMatrix(matrix.rowptr, col, value.to(dtype), read.numel())


def _features(
    store: FeatureStore, shard: GraphShard, read: Tensor, propagation: Propagation, spreads: bool
) -> CSRMatrix | Tensor:
    """X of the rows that are read, owned ones first; exchanges where other ranks own some."""
    fetches = spreads and shard.parts > 1
    owned, halo = read[read < shard.num_owned], read[read >= shard.num_owned] - shard.num_owned
    if store.dense is not None:
        device = store.dense.device
        kept = [store.dense.index_select(0, owned.to(device))]
        if fetches:
            kept.append(propagation.halo.start(store.dense).wait().index_select(0, halo.to(device)))
        return torch.cat(kept)
    if not isinstance(shard.features, CSRMatrix):
        raise TypeError("features that are not dense are sparse")
    own = shard.features.select_rows(owned)
    if not fetches:
        return own
    return _stacked(own, _fetched(store, shard, halo, propagation))


def _fetched(
    store: FeatureStore, shard: GraphShard, halo: Tensor, propagation: Propagation
) -> CSRMatrix:
    """Sparse features of some halo rows; as many exchanges on every rank."""
    features, device = shard.features, store.stored.device
    assert isinstance(features, CSRMatrix)
    row, col = features.rows().to(device), features.col.to(device).long()
    step = max(1, _FETCHED // max(shard.num_nodes, 1))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for first in range(0, shard.num_features, step):
        width = min(step, shard.num_features - first)
        inside = (col >= first) & (col < first + width)
        block = store.stored.new_zeros(shard.num_owned, width)
        block[row[inside], col[inside] - first] = store.stored[inside]
        arrived = propagation.halo.start(block).wait().index_select(0, halo.to(device)).cpu()
        rows, columns = arrived.nonzero(as_tuple=True)
        found.append((rows, columns + first, arrived[rows, columns]))
    rows, columns, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    return csr_from_entries(rows, columns, halo.numel(), shard.num_features, values)


def _stacked(first: CSRMatrix, second: CSRMatrix) -> CSRMatrix:
    """The rows of both, one below the other."""
    values = [
        torch.ones(m.num_entries).to(second.value) if m.value is None else m.value.to(second.value)
        for m in (first, second)
    ]
    return CSRMatrix(
        torch.cat([first.rowptr, second.rowptr[1:] + first.rowptr[-1]]),
        torch.cat([first.col.int(), second.col]),
        torch.cat(values),
        first.num_cols,
    )
