"""Sizes of the parts of a partitioned graph, as the manifest of its shards has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.storage.shard_store import read_manifest, read_shard
from distributed_ignn.lab.planning.halo_growth import Cut
from distributed_ignn.lab.planning.workload import Part

_WINDOW = 2000
_CLUSTERED_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class PartitionSizes:
    """One folder of shards.

    Args:
        dataset: its name.
        nodes, entries: n, and e of all channels without self-loops.
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
    """The sizes in a folder that ignn partition wrote; only the manifest has to be there.

    Without the first shard the columns of the graph are taken to be scattered.

    Raises:
        UserError: it holds no manifest, or a damaged one.
    """
    manifest = read_manifest(folder)
    whole, sizes, count = manifest.whole, manifest.part_sizes, manifest.parts
    channels = len(whole.symmetric)
    try:
        locality = _locality(read_shard(folder, 0, verify=False))
    except UserError:
        locality = 0.0
    return PartitionSizes(
        dataset=manifest.dataset,
        nodes=whole.num_nodes,
        entries=manifest.statistics.entries,
        features=whole.num_features,
        classes=whole.num_classes,
        parts=count,
        largest=Part(
            nodes=whole.num_nodes,
            parts=count,
            owned=max(size.owned for size in sizes),
            interior=min(size.interior for size in sizes),
            halo=max(size.halo for size in sizes),
            sent=max(size.sent for size in sizes),
            owned_entries=max(sum(size.owned_entries) for size in sizes),
            boundary_entries=max(sum(size.boundary_entries) for size in sizes),
            neighbours=max(size.targets for size in sizes),
            channels=channels,
            weighted=any(whole.weighted),
            symmetric=all(whole.symmetric),
            graph_channels=whole.graph_channels,
        ),
        cut=Cut(
            count,
            sum(size.halo for size in sizes) / count,
            sum(size.boundary for size in sizes) / count,
            sum(sum(size.boundary_entries) for size in sizes) / count,
        ),
        locality=locality,
        train_share=sum(size.train for size in sizes) / whole.num_nodes,
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
