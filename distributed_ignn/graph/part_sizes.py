"""PartSizes: what of one part of a graph decides how much memory a rank needs.

Everything that takes memory says how much from these sizes, before it is built (``held_bytes``).
"""

from __future__ import annotations

from dataclasses import dataclass

from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.shard import GraphShard


@dataclass(frozen=True, slots=True)
class PartSizes:
    """Counts of one part; ``from_shard`` makes them of one that is at hand.

    Args:
        owned, halo, sent, boundary: O, H, S, and owned rows that read the halo.
        owned_entries, boundary_entries: entries between owned nodes and from them to the halo, of
            all channels together, self-loops included.
        channels: C.
        symmetric: whether every channel is: then one matrix serves both directions.
        weighted: whether edges have weights: then every kernel stores values.
        features: F.
        feature_entries: stored entries of sparse features; None where they are dense.
        train: owned training nodes.
        nodes, train_nodes, classes: of the whole graph.
        file: bytes of the shard, which stay mapped while the run lasts.
        graph_channels: channels that are the dataset's own graph.
    """

    owned: int
    halo: int
    sent: int
    boundary: int
    owned_entries: int
    boundary_entries: int
    channels: int = 1
    symmetric: bool = True
    weighted: bool = False
    features: int = 0
    feature_entries: int | None = None
    train: int = 0
    nodes: int = 0
    train_nodes: int = 0
    classes: int = 0
    file: int = 0
    graph_channels: int = 1

    @classmethod
    def from_shard(cls, shard: GraphShard) -> PartSizes:
        """Sizes of a part that is at hand."""
        channels = shard.channels
        features = shard.features
        return cls(
            owned=shard.num_owned,
            halo=shard.num_halo,
            sent=shard.send_index.numel(),
            boundary=shard.num_owned - shard.num_interior,
            owned_entries=sum(channel.owned.num_entries for channel in channels),
            boundary_entries=sum(channel.boundary.num_entries for channel in channels),
            channels=len(channels),
            symmetric=all(channel.symmetric for channel in channels),
            weighted=any(channel.weighted for channel in channels),
            features=shard.num_features,
            feature_entries=features.num_entries if isinstance(features, CSRMatrix) else None,
            train=shard.train_index.numel(),
            nodes=shard.num_nodes,
            train_nodes=shard.split_sizes[0],
            classes=shard.num_classes,
            file=shard.held_bytes,
            graph_channels=shard.graph_channels,
        )
