"""Who holds the optimiser and takes its step: plain torch here, DeepSpeed in its own file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import TrainConfig
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.training.engines.gradients import sum_gradients
from distributed_ignn.training.numbers import NumbersError

TensorDict = dict[str, Tensor]


Check = Callable[[bool], None]
"""Told whether the gradients of all ranks can be used, before the update; raises to prevent it."""


def require_usable(usable: bool) -> None:
    """The plainest ``Check``.

    Raises:
        NumbersError: the gradients cannot be used.
    """
    if not usable:
        raise NumbersError("the gradients are not finite; lower train.lr or model.kappa")


class Engine(Protocol):
    """One optimiser step of the model, and the optimiser's state as named tensors."""

    def step(self, loss_share: Tensor, check: Check = require_usable) -> None:
        """Backward of this rank's share of the loss, sum over ranks, ``check``, update, constraint.

        Where ``check`` raises, weights and optimiser are as they were.
        """
        ...

    def gradients(self) -> TensorDict:
        """This rank's own gradients by parameter, while ``check`` looks into unusable ones."""
        ...

    def scale_lr(self, scale: float) -> None:
        """Step with ``scale`` times ``train.lr`` from now on."""
        ...

    def common_state(self) -> TensorDict:
        """Optimiser tensors that are the same on every rank."""
        ...

    def row_state(self) -> TensorDict:
        """Optimiser tensors [O, ...] whose rows belong to this rank's nodes."""
        ...

    def load_state(self, common: TensorDict, rows: TensorDict) -> None:
        """Inverse of the two above."""
        ...


class TorchEngine:
    """Adam on every rank, replicated: after the gradient sum all ranks take the same step.

    Args:
        model: whose parameters are stepped.
        config: learning rate and weight decay.
        comm: sums gradients.
    """

    def __init__(self, model: ShardModel, config: TrainConfig, comm: Communicator) -> None:
        self._model = model
        self._comm = comm
        self._lr = config.lr
        self._sharded = model.sharded_names()
        self._named = dict(model.named_parameters())
        self.optimizer = torch.optim.Adam(
            self._named.values(), lr=config.lr, weight_decay=config.weight_decay
        )

    def step(self, loss_share: Tensor, check: Check = require_usable) -> None:
        """See ``Engine``."""
        self.optimizer.zero_grad()
        loss_share.backward()
        common = (p for name, p in self._named.items() if name not in self._sharded)
        rows = (p for name, p in self._named.items() if name in self._sharded)
        check(sum_gradients(common, self._comm, rows))
        self.optimizer.step()
        self._model.project()

    def gradients(self) -> TensorDict:
        """See ``Engine``."""
        return {k: p.grad for k, p in self._named.items() if p.grad is not None}

    def scale_lr(self, scale: float) -> None:
        """See ``Engine``."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * scale

    def common_state(self) -> TensorDict:
        """Adam's moments of the replicated parameters and all step counters."""
        return {key: value for key, value in self._state().items() if not self._is_row(key, value)}

    def row_state(self) -> TensorDict:
        """Adam's moments of this rank's rows."""
        return {key: value for key, value in self._state().items() if self._is_row(key, value)}

    def _state(self) -> TensorDict:
        """Adam's tensors as ``parameter|moment``."""
        return {
            f"{name}|{key}": value
            for name, parameter in self._named.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _is_row(self, key: str, value: Tensor) -> bool:
        return key.rsplit("|", 1)[0] in self._sharded and value.dim() > 0

    def load_state(self, common: TensorDict, rows: TensorDict) -> None:
        """See ``Engine``."""
        self.optimizer.state.clear()
        for key, value in (common | rows).items():
            name, moment = key.rsplit("|", 1)
            parameter = self._named[name]
            expected = torch.Size() if moment == "step" else parameter.shape
            if value.shape != expected:
                raise ValueError(f"moment {moment} of {name} is {list(value.shape)}")
            # Adam keeps its step counter on the CPU
            device = value.device if moment == "step" else parameter.device
            self.optimizer.state[parameter][moment] = value.to(device)
