"""The whole graph again from all of its shards, to be cut for another number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from distributed_ignn.graph.building import Ids
from distributed_ignn.graph.data import (
    CSRMatrix,
    GraphData,
    csr_from_blocks,
    csr_from_entries,
    csr_from_weighted_blocks,
    entry_blocks,
)
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.weights import Weights


def merge_shards(shards: Sequence[GraphShard]) -> GraphData:
    """Inverse of ``build_shards``.

    Args:
        shards: every part, in order.
    """
    first = shards[0]
    return GraphData(
        name=first.name,
        graphs=tuple(_merge_channel(shards, c) for c in range(len(first.channels))),
        features=_merge_features(shards),
        labels=_to_global(shards, [shard.labels for shard in shards]),
        num_classes=first.num_classes,
        task=first.task,
        train_nodes=_merge_split(shards, "train_index"),
        val_nodes=_merge_split(shards, "val_index"),
        test_nodes=_merge_split(shards, "test_index"),
        clusters=_merge_clusters(shards),
        graph_channels=first.graph_channels,
        scaling=first.scaling,
        class_names=first.class_names,
    )


def _to_global(shards: Sequence[GraphShard], rows: Sequence[Tensor]) -> Tensor:
    """Rows of owned nodes at their global ids."""
    whole = rows[0].new_zeros((shards[0].num_nodes, *rows[0].shape[1:]))
    for shard, part in zip(shards, rows, strict=True):
        whole[shard.owned_nodes] = part
    return whole


def _merge_clusters(shards: Sequence[GraphShard]) -> Tensor | None:
    known = [shard.clusters for shard in shards if shard.clusters is not None]
    return _to_global(shards, known) if len(known) == len(shards) else None


def _merge_split(shards: Sequence[GraphShard], name: str) -> Tensor:
    return torch.cat([s.owned_nodes[getattr(s, name)] for s in shards]).sort().values


def _merge_channel(shards: Sequence[GraphShard], channel: int) -> CSRMatrix:
    if shards[0].channels[channel].weighted:
        return _merge_weighted(shards, channel)

    def blocks() -> Iterator[tuple[Ids, Ids]]:
        for shard in shards:
            part = shard.channels[channel]
            owned, halo = shard.owned_nodes.numpy(), shard.halo_nodes.numpy()
            for row, col in entry_blocks(part.owned)():
                yield owned[row], owned[col]
            for row, col in entry_blocks(part.boundary)():
                yield owned[row + shard.num_interior], halo[col]

    # which leaves out the self-loops that were added when the shards were cut
    return csr_from_blocks(blocks, shards[0].num_nodes, symmetric=False)


def _merge_weighted(shards: Sequence[GraphShard], channel: int) -> CSRMatrix:
    def blocks() -> Iterator[tuple[Ids, Ids, Weights]]:
        for shard in shards:
            part = shard.channels[channel]
            local = torch.cat([shard.owned_nodes, shard.halo_nodes])
            for matrix, row, col in (
                (part.owned, 0, 0),
                (part.boundary, shard.num_interior, shard.num_owned),
            ):
                if matrix.value is not None:
                    ends = local[matrix.rows() + row], local[matrix.col + col]
                    yield ends[0].numpy(), ends[1].numpy(), matrix.value.numpy()

    return csr_from_weighted_blocks(blocks, shards[0].num_nodes, symmetric=False)


def _merge_features(shards: Sequence[GraphShard]) -> CSRMatrix | Tensor | None:
    blocks = [shard.features for shard in shards]
    dense = [block for block in blocks if isinstance(block, Tensor)]
    sparse = [block for block in blocks if isinstance(block, CSRMatrix)]
    if dense:
        return _to_global(shards, dense)
    if not sparse:
        return None
    pairs = list(zip(shards, sparse, strict=True))
    rows = torch.cat([shard.owned_nodes[block.rows()] for shard, block in pairs])
    cols = torch.cat([block.col for block in sparse])
    values = [block.value for block in sparse if block.value is not None]
    value = torch.cat(values) if values else None
    return csr_from_entries(rows, cols, shards[0].num_nodes, sparse[0].num_cols, value)
