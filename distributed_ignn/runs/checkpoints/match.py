"""Whether a checkpoint belongs to the graph that it is loaded into."""

from __future__ import annotations

from collections.abc import Mapping

from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import GraphShard

_WEIGHTED = "channels with edge weights"


def graph_sizes(shard: GraphShard) -> dict[str, int]:
    """What tells a graph from most others, the same on every rank."""
    train, val, test = shard.split_sizes
    weighted = sum(channel.weighted for channel in shard.channels)
    # left out where there are none: older checkpoints do not know it
    return ({_WEIGHTED: weighted} if weighted else {}) | {
        "nodes": shard.num_nodes,
        "features": shard.num_features,
        "classes": shard.num_classes,
        "training nodes": train,
        "validation nodes": val,
        "test nodes": test,
    }


def check_graph(found: object, shard: GraphShard) -> None:
    """Refuse a checkpoint of another graph; one that does not say of which is taken.

    Args:
        found: what ``graph_sizes`` gave when it was written; None if nothing was kept.
        shard: of the graph at hand.

    Raises:
        UserError: a size differs.
    """
    if not isinstance(found, Mapping):
        return
    found = {_WEIGHTED: 0} | dict(found)
    for name, size in ({_WEIGHTED: 0} | graph_sizes(shard)).items():
        if found.get(name, size) != size:
            raise UserError(
                f"the checkpoint belongs to another graph ({found[name]} {name}, here {size}); "
                "choose another checkpoint, or the dataset and settings that it was written with"
            )
