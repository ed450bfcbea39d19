"""Sizes of the parts of a graph that has been partitioned, read from its shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.shard_store import read_manifest, read_shard
from distributed_ignn.planning.halo import Cut
from distributed_ignn.planning.workload import Part

_WINDOW = 2000
_CLUSTERED_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class PartitionSizes:
    """One folder of shards.

    Args:
        dataset: its name.
        nodes, entries: n, and e without self-loops, of the first channel.
        features, classes: F, C.
        parts: P.
        largest: the largest of every size over all parts.
        cut: the means.
        locality: see ``Workload``.
        train_share: share of nodes with a training label.
    """

    dataset: str
    nodes: int
    entries: int
    features: int
    classes: int
    parts: int
    largest: Part
    cut: Cut
    locality: float
    train_share: float


def read_sizes(folder: Path) -> PartitionSizes:
    """The sizes in a folder that launch/partition.py wrote.

    Raises:
        UserError: it holds no shards, or they are damaged.
    """
    manifest = read_manifest(folder)
    shards = [read_shard(folder, part, verify=False) for part in range(manifest.parts)]
    return sizes_of(shards)


def sizes_of(shards: Sequence[GraphShard]) -> PartitionSizes:
    """The sizes of all shards of a graph."""
    first, count = shards[0], len(shards)
    parts = [_part(shard) for shard in shards]
    return PartitionSizes(
        dataset=first.name,
        nodes=first.num_nodes,
        entries=round(
            sum(p.owned_entries + p.boundary_entries - p.owned * p.channels for p in parts)
        ),
        features=first.num_features,
        classes=first.num_classes,
        parts=count,
        largest=Part(
            nodes=first.num_nodes,
            parts=count,
            owned=max(p.owned for p in parts),
            interior=min(p.interior for p in parts),
            halo=max(p.halo for p in parts),
            sent=max(p.sent for p in parts),
            owned_entries=max(p.owned_entries for p in parts),
            boundary_entries=max(p.boundary_entries for p in parts),
            neighbours=max(p.neighbours for p in parts),
            channels=len(first.channels),
        ),
        cut=Cut(
            count,
            sum(p.halo for p in parts) / count,
            sum(p.boundary for p in parts) / count,
            sum(p.boundary_entries for p in parts) / count,
        ),
        locality=min(_locality(shard) for shard in shards),
        train_share=first.split_sizes[0] / first.num_nodes,
    )


def _part(shard: GraphShard) -> Part:
    return Part(
        nodes=shard.num_nodes,
        parts=shard.parts,
        owned=shard.num_owned,
        interior=shard.num_interior,
        halo=shard.num_halo,
        sent=shard.send_index.numel(),
        owned_entries=sum(channel.owned.num_entries for channel in shard.channels),
        boundary_entries=sum(channel.boundary.num_entries for channel in shard.channels),
        neighbours=int((shard.send_counts > 0).sum()),
        channels=len(shard.channels),
    )


def _locality(shard: GraphShard) -> float:
    """How much nearer to their row than by chance the columns of the owned block are, 0 to 1.

    1 is what the clustered order of the calibration has: four of five within a cluster.
    """
    block = shard.channels[0].owned
    owned = max(shard.num_owned, 1)
    by_chance = min(1.0, 2 * _WINDOW / owned)
    if block.num_entries == 0 or by_chance == 1.0:
        return 1.0
    near = float(((block.col - block.rows()).abs() < _WINDOW).float().mean())
    return min(1.0, max(0.0, (near - by_chance) / (_CLUSTERED_SHARE - by_chance)))
