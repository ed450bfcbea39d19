"""A checkpoint's content: the sum of the states of a trainer's parts, and the way back.

Tensors stand under ``part/name``, values under ``parts`` by part. What is in a state is the part's
own business, and so is whether it can be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.runs.checkpoints import version_2
from distributed_ignn.runs.checkpoints.checkpoint import Snapshot
from distributed_ignn.runs.checkpoints.match import check_graph, graph_sizes
from distributed_ignn.training.state import State, TensorDict
from distributed_ignn.training.trainer import Trainer

_PARTS = "parts"
#: What a trained model needs to serve; the newest weights do where validation chose none yet.
_SERVING = ("model", "average", "best", "candidate", "solver")


def take_snapshot(trainer: Trainer) -> Snapshot:
    """Take everything that a resumed run needs to go on bit for bit."""
    states = {name: part.state() for name, part in trainer.parts().items()}
    head: dict[str, Any] = {
        "graph": graph_sizes(trainer.shard),
        "epoch": trainer.epoch,
        "val_metric": trainer.val_metric,
        "converged": trainer.converged,
        _PARTS: {name: state.values for name, state in states.items() if state.values},
    }
    common, rows = (
        {f"{name}/{key}": value for name, part in tensors.items() for key, value in part.items()}
        for tensors in (
            {name: state.common for name, state in states.items()},
            {name: state.rows for name, state in states.items()},
        )
    )
    return Snapshot(head, common, rows)


def _state_of(snapshot: Snapshot, part: str) -> State:
    """Return the state of one part; an empty one where the snapshot has none.

    Raises:
        AttributeError, KeyError, ValueError: the snapshot is incomplete.
    """
    old = snapshot.state.get("version") == version_2.VERSION
    values = version_2.parts_of(snapshot.state) if old else snapshot.state[_PARTS]
    return State(values.get(part, {}), _under(snapshot.common, part), _under(snapshot.rows, part))


def restore(
    trainer: Trainer,
    snapshot: Snapshot,
    instead: Mapping[str, Callable[[State], None]] | None = None,
) -> None:
    """Put a snapshot back: the inverse of ``take_snapshot``.

    Args:
        trainer: of any state.
        snapshot: what it is to go on from.
        instead: by part, what is done with its state where that is not to be loaded as it is.

    Raises:
        UserError: the checkpoint is incomplete, or belongs to another graph or to a model of
            another shape or number format.
    """
    loads = {name: part.load_state for name, part in trainer.parts().items()} | dict(instead or {})
    with _refusing():
        check_graph(snapshot.state.get("graph"), trainer.shard)
        for name, load in loads.items():
            load(_state_of(snapshot, name))


def restore_best(trainer: Trainer, snapshot: Snapshot) -> None:
    """Put the weights that validation chose and the learned solver into a trainer of any graph.

    A run that has not finished may have left a candidate. It counts as if it had been confirmed:
    that takes the graph that it was validated on.

    Args:
        trainer: of the same settings, on a graph with as many feature columns and classes.
        snapshot: of a run whose model has no rows of its own, such as embeddings of nodes.

    Raises:
        UserError: see ``restore``; the sizes of the graph are not compared.
    """
    parts = trainer.parts()
    with _refusing():
        for name in _SERVING:
            if name in parts:
                parts[name].load_state(_state_of(snapshot, name))
        trainer.chooser.believe()
        trainer.best.use()


@contextmanager
def _refusing() -> Iterator[None]:
    """Say in one line what a part could not take."""
    try:
        yield
    except (AttributeError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint lacks a part of a run or holds something else "
            f"({in_one_line(error)}); choose another checkpoint"
        ) from error


def _under(tensors: Mapping[str, Tensor], part: str) -> TensorDict:
    """Return tensors by their names within ``part``."""
    prefix = f"{part}/"
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
