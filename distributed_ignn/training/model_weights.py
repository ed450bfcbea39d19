"""The weights of a model as they are kept: all of them, and those of the epoch that was best."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.training.state import Count, Number, State, TensorDict, Values


class Weights:
    """Keeps the weights of a model as a part of a training's state.

    Args:
        model: whose weights they are; each rank keeps its own rows of an embedding.
    """

    def __init__(self, model: ShardModel) -> None:
        self._model = model
        self.sharded = frozenset(model.sharded_names())

    def copy(self) -> TensorDict:
        """Return a copy of all weights in main memory."""
        return {k: v.detach().cpu().clone() for k, v in self._model.state_dict().items()}

    def use(self, weights: Mapping[str, Tensor]) -> None:
        """Put ``weights``, which ``copy`` gave, into the model."""
        self._model.load_state_dict(weights)

    def state(self) -> State:
        """See ``Stateful``."""
        return State.of(self.copy(), self.sharded)

    def load_state(self, state: State) -> None:
        """See ``Stateful``.

        Raises:
            UserError: the weights are those of a model of another shape or number format.
        """
        found = state.tensors
        self._check_format(found)
        _check_shapes(found, self._model.state_dict())
        self._model.load_state_dict(found)

    def _check_format(self, found: TensorDict) -> None:
        own = self._model.head.weight
        kept = found.get("head.weight", own)
        if own.dtype is not kept.dtype:
            raise UserError(
                f"the checkpoint was written with train.dtype = {_name(kept.dtype)}, not "
                f"{_name(own.dtype)}; resume with that"
            )


class _Chosen(Values):
    epoch: Count
    val_metric: Number
    stale: Count
    # not in checkpoints that were written before metrics were confirmed
    confirmed: bool = True
    tolerance: Number | None = None


class Best:
    """Keeps the epoch that validation has chosen so far, with its weights.

    Args:
        weights: of the model that is validated.

    Attributes:
        epoch: 0 before the first choice.
        val_metric: of its validation.
        confirmed: whether that is the metric of the equilibrium. An epoch for which that could not
            be found out is kept only until there is one for which it could.
        tolerance: relative residual of a solve from nothing kept that finds it; None if unknown.
        stale: validations since.
        weights: of that epoch.
    """

    def __init__(self, weights: Weights) -> None:
        self._of = weights
        self.epoch = 0
        self.val_metric = -1.0
        self.confirmed = False
        self.tolerance: float | None = None
        self.stale = 0
        self.weights: TensorDict | None = None

    def may_take(self, val_metric: float) -> bool:
        """Say whether an epoch of this metric would be chosen if it were confirmed."""
        return val_metric > self.val_metric or not self.confirmed

    def offer(self, epoch: int, val_metric: float, confirmed: bool, tolerance: float) -> None:
        """Choose ``epoch``, with the model's present weights, if it beats all before it.

        What is confirmed beats all that is not, and after that the larger metric counts.
        """
        if (confirmed, val_metric) > (self.confirmed, self.val_metric):
            self.epoch, self.val_metric, self.stale = epoch, val_metric, 0
            self.confirmed, self.tolerance = confirmed, tolerance
            self.weights = self._of.copy()
        else:
            self.stale += 1

    def use(self) -> None:
        """Put the chosen weights into the model; it keeps its own where none was chosen yet."""
        if self.weights is not None:
            self._of.use(self.weights)

    def state(self) -> State:
        """See ``Stateful``."""
        chosen = _Chosen(
            epoch=self.epoch,
            val_metric=self.val_metric,
            stale=self.stale,
            confirmed=self.confirmed,
            tolerance=self.tolerance,
        )
        return State.of(self.weights or {}, self._of.sharded, chosen.model_dump())

    def load_state(self, state: State) -> None:
        """See ``Stateful``."""
        chosen = _Chosen.read(state)
        self.epoch, self.val_metric, self.stale = chosen.epoch, chosen.val_metric, chosen.stale
        self.confirmed, self.tolerance = chosen.confirmed, chosen.tolerance
        self.weights = state.tensors or None


def _check_shapes(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights of another model.

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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
