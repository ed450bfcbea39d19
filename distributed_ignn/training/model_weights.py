"""The weights of a model as they are kept: its own, the best epoch's, and the candidate's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.training.state import Count, Number, State, TensorDict, Values


class Weights:
    """Keeps the weights of a model as a part of a training's state.

    Args:
        model: whose weights they are; each rank keeps its own rows of an embedding.
    """

    def __init__(self, model: NodeModel) -> None:
        self._model = model
        self.sharded = frozenset(model.sharded_names())
        self._named = [name for name, _ in model.named_parameters()]

    def copy(self) -> TensorDict:
        """Return a copy of all weights in main memory."""
        return {k: v.detach().cpu().clone() for k, v in self._model.state_dict().items()}

    def use(self, weights: Mapping[str, Tensor]) -> None:
        """Put ``weights``, which ``copy`` gave, into the model."""
        self._model.load_state_dict(weights)

    @contextmanager
    def in_use(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the model hold ``weights`` inside, and its own again afterwards."""
        own = self.copy()
        self.use(weights)
        try:
            yield
        finally:
            self.use(own)

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
        own = self._model.dtype
        kept = next((found[name].dtype for name in self._named if name in found), own)
        if own is not kept:
            raise UserError(
                f"the checkpoint was written with train.dtype = {_name(kept)}, not {_name(own)}; "
                "resume with that"
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

    def beaten_by(self, val_metric: float, confirmed: bool) -> bool:
        """Say whether such an epoch is better.

        What is confirmed beats all that is not, and after that the larger metric counts.
        """
        return (confirmed, val_metric) > (self.confirmed, self.val_metric)

    def take(
        self,
        epoch: int,
        val_metric: float,
        weights: TensorDict,
        *,
        confirmed: bool,
        tolerance: float | None,
        stale: int = 0,
    ) -> None:
        """Choose ``epoch`` and keep its ``weights``, which nobody else may change."""
        self.epoch, self.val_metric, self.stale = epoch, val_metric, stale
        self.confirmed, self.tolerance = confirmed, tolerance
        self.weights = weights

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


class _Waiting(Values):
    epoch: Count = 0
    val_metric: Number = 0.0
    trusted: bool = True


class Candidate:
    """Keeps the epoch whose metric waits to be confirmed, with its weights.

    Args:
        weights: of the model that is validated.

    Attributes:
        epoch: 0 where nothing waits.
        val_metric: as validation found it.
        weights: of that epoch; None where nothing waits.
        trusted: whether the last confirmation, if any, found the metric that validation had found,
            and that it holds.
    """

    def __init__(self, weights: Weights) -> None:
        self._of = weights
        self.epoch = 0
        self.val_metric = 0.0
        self.weights: TensorDict | None = None
        self.trusted = True

    def take(self, epoch: int, val_metric: float) -> None:
        """Let ``epoch`` wait, with the model's present weights, in the place of any before it."""
        self.epoch, self.val_metric, self.weights = epoch, val_metric, self._of.copy()

    def drop(self) -> None:
        """Let nothing wait any more."""
        self.epoch, self.val_metric, self.weights = 0, 0.0, None

    def state(self) -> State:
        """See ``Stateful``."""
        waiting = _Waiting(epoch=self.epoch, val_metric=self.val_metric, trusted=self.trusted)
        return State.of(self.weights or {}, self._of.sharded, waiting.model_dump())

    def load_state(self, state: State) -> None:
        """See ``Stateful``; a checkpoint that knows of none has none."""
        waiting = _Waiting.read(state)
        self.epoch, self.val_metric = waiting.epoch, waiting.val_metric
        self.trusted, self.weights = waiting.trusted, state.tensors or None


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
