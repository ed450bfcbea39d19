"""Whether a checkpoint belongs to the graph and the model that it is loaded into."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

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


def check_shapes(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights of another model.

    Args:
        found: tensors of the checkpoint by name.
        own: those of the model.

    Raises:
        UserError: naming the first tensor that is missing, too many or of another shape.
    """
    problem = _difference(found, own)
    if problem is not None:
        raise UserError(
            f"the checkpoint belongs to a model of another shape ({problem}); take the settings "
            "that it was written with, which config.yaml of its run holds"
        )


def _difference(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    for name in own:
        if name not in found:
            return f"it lacks {name}"
        if found[name].shape != own[name].shape:
            return f"{name} is {list(found[name].shape)}, not {list(own[name].shape)}"
    return next((f"it has {name}, this model has not" for name in found if name not in own), None)
