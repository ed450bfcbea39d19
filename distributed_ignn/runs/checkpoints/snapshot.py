"""What of a trainer goes into a checkpoint, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.runs.checkpoints.checkpoint import Snapshot
from distributed_ignn.runs.checkpoints.match import check_graph, check_shapes, graph_sizes
from distributed_ignn.runs.checkpoints.state import check_state
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.trainer import Best, Trainer

TensorDict = dict[str, Tensor]

# whatever a file can lack or hold instead: its checksums only say that it is whole
_UNUSABLE = (KeyError, ValueError, TypeError, RuntimeError)


def take_snapshot(trainer: Trainer) -> Snapshot:
    """Everything that a resumed run needs to go on bit for bit."""
    sharded = trainer.model.sharded_names()
    weights = trainer.weights()
    kept = {"model": weights, "best": trainer.best.weights or {}, "average": trainer.average.mean}
    named = {f"{part}/{k}": v for part, found in kept.items() for k, v in found.items()}
    own = {k: v for k, v in named.items() if k.partition("/")[2] in sharded}
    common = {k: v for k, v in named.items() if k not in own}
    common |= {f"optimizer/{k}": v for k, v in trainer.engine.common_state().items()}
    common["rng/torch"] = torch.get_rng_state()
    rows = {f"warm/{k}": v for k, v in trainer.planner.states.items()}
    rows |= {f"optimizer/{k}": v for k, v in trainer.engine.row_state().items()}
    rows |= own
    state: dict[str, Any] = {
        "graph": graph_sizes(trainer.shard),
        "epoch": trainer.epoch,
        "best_epoch": trainer.best.epoch,
        "best_val": trainer.best.val_metric,
        "stale_validations": trainer.stale_validations,
        "val_metric": trainer.val_metric,
        "average_steps": trainer.average.steps,
        "seconds_total": trainer.seconds_total,
        "seconds_solver_training": trainer.seconds_solver_training,
        "solver_steps_done": 0,
        "solver_ready": False,
        "numbers": trainer.guard.snapshot(),
    }
    if trainer.solver_trainer is not None and trainer.learned is not None:
        common |= {f"solver/{k}": v for k, v in trainer.solver_trainer.state().items()}
        state["solver_steps_done"] = trainer.solver_trainer.steps_done
        state["solver_ready"] = trainer.learned.ready
    return Snapshot(state, common, rows)


def restore(trainer: Trainer, snapshot: Snapshot) -> None:
    """Inverse of ``take_snapshot``.

    Raises:
        UserError: the checkpoint is incomplete, or belongs to a model of another shape or
            number format.
    """
    try:
        check_state(snapshot.state)
        _put_back(trainer, snapshot)
    except _UNUSABLE as error:
        raise _unusable(error) from error


def restore_best(trainer: Trainer, snapshot: Snapshot) -> None:
    """The weights that validation chose and the learned solver, for any graph.

    Args:
        trainer: of the same settings, on a graph with as many feature columns.
        snapshot: of a run without rows of its own, such as embeddings of nodes.

    Raises:
        UserError: see ``restore``.
    """
    try:
        check_state(snapshot.state)
        best = _under(snapshot.common, "best/")
        _load_weights(trainer, best or _under(snapshot.common, "model/"))
        trainer.best = Best(snapshot.state["best_epoch"], snapshot.state["best_val"], best or None)
        if trainer.solver_trainer is not None and trainer.learned is not None:
            trainer.solver_trainer.load_state(_under(snapshot.common, "solver/"))
            trainer.learned.ready = snapshot.state["solver_ready"]
    except _UNUSABLE as error:
        raise _unusable(error) from error


def roll_back(trainer: Trainer, fault: NumbersError, snapshot: Snapshot) -> None:
    """Go back to ``snapshot`` and on from there with a smaller step; the clock runs on.

    Raises:
        UserError: there were too many rollbacks; or see ``restore``.
    """
    seconds = trainer.seconds_before, trainer.seconds_solver_training
    kappa = trainer.guard.roll_back(fault)
    now = trainer.guard.snapshot()
    restore(trainer, snapshot)
    trainer.seconds_before, trainer.seconds_solver_training = seconds
    state = trainer.guard.state
    kept = {"lowest_loss": state.lowest_loss, "skipped": state.skipped}
    trainer.guard.restore(now | kept | {"skips": 0})
    trainer.engine.scale_lr(trainer.guard.state.lr_scale)
    if kappa < 1.0:
        trainer.model.cell_weights.tighten(kappa)
        trainer.model.project()
    # as a run does that is resumed from here
    trainer.model.propagation.reset_links()
    trainer.guard.announce_rollback(fault, trainer.epoch)


def _unusable(error: Exception) -> UserError:
    return UserError(
        f"the checkpoint lacks a part of a run or holds something else "
        f"({in_one_line(error)}); choose another checkpoint"
    )


def _put_back(trainer: Trainer, snapshot: Snapshot) -> None:
    """Inverse of ``take_snapshot``.

    Raises:
        UserError: another graph, shape or number format.
        KeyError, ValueError, TypeError, RuntimeError: the snapshot lacks something, or holds
            something else.
    """
    everything = snapshot.common | snapshot.rows
    _load_weights(trainer, _under(everything, "model/"))
    best = _under(everything, "best/")
    state = snapshot.state
    check_graph(state.get("graph"), trainer.shard)
    trainer.best = Best(state["best_epoch"], state["best_val"], best or None)
    trainer.average.load(_under(everything, "average/"), state.get("average_steps", 0))
    trainer.engine.load_state(
        _under(snapshot.common, "optimizer/"),
        _under(snapshot.rows, "optimizer/"),
    )
    device = trainer.comm.device
    trainer.planner.states = {k: v.to(device) for k, v in _under(snapshot.rows, "warm/").items()}
    if trainer.solver_trainer is not None and trainer.learned is not None:
        trainer.solver_trainer.load_state(_under(snapshot.common, "solver/"))
        trainer.solver_trainer.steps_done = state["solver_steps_done"]
        trainer.learned.ready = state["solver_ready"]
    torch.set_rng_state(snapshot.common["rng/torch"])
    trainer.epoch = state["epoch"]
    trainer.stale_validations = state["stale_validations"]
    trainer.val_metric = state.get("val_metric")
    trainer.guard.restore(state.get("numbers", {}))
    trainer.engine.scale_lr(trainer.guard.state.lr_scale)
    trainer.seconds_before = state.get("seconds_total", 0.0)
    trainer.seconds_solver_training = state["seconds_solver_training"]


def _load_weights(trainer: Trainer, weights: TensorDict) -> None:
    own = trainer.model.head.weight.dtype
    found = weights.get("head.weight", trainer.model.head.weight).dtype
    if own is not found:
        raise UserError(
            f"the checkpoint was written with train.dtype = {str(found)[6:]}, not "
            f"{str(own)[6:]}; resume with that"
        )
    check_shapes(weights, trainer.model.state_dict())
    trainer.model.load_state_dict(weights)


def _under(tensors: TensorDict, prefix: str) -> TensorDict:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
