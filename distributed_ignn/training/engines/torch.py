"""Who holds the optimiser and takes its step: plain torch here, DeepSpeed in its own file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import TrainConfig
from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.training.adam import Adam
from distributed_ignn.training.engines.gradients import (
    square_over_ranks,
    square_sum,
    sum_gradients,
)
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.offload import offload_moments, room_for
from distributed_ignn.training.state import State, TensorDict

Check = Callable[[bool], None]
"""Told whether the gradients of all ranks can be used, before the update; raises to prevent it."""


def require_usable(usable: bool) -> None:
    """Raise where the gradients are unusable: the plainest ``Check``.

    Raises:
        NumbersError: the gradients cannot be used.
    """
    if not usable:
        raise NumbersError("the gradients are not finite; lower train.lr or model.kappa")


class Engine(Protocol):
    """Takes the optimiser's step of the model, and knows the optimiser's state."""

    def step(self, loss_share: Tensor, check: Check = require_usable) -> None:
        """Go backward from this rank's share of the loss, sum over ranks, check, update, project.

        Where ``check`` raises, weights and optimiser are as they were.
        """
        ...

    def gradients(self) -> TensorDict:
        """Return this rank's own gradients by name, while ``check`` looks into unusable ones."""
        ...

    def gradient_norm(self) -> float:
        """Return the Euclidean norm of the gradient of the last step, over all ranks.

        Every rank calls it right after that step. It is the norm before ``train.clip_norm``.
        """
        ...

    def scale_lr(self, scale: float) -> None:
        """Step with ``scale`` times ``train.lr`` from now on."""
        ...

    def state(self) -> State:
        """See ``Stateful``: the optimiser's tensors as ``parameter|moment``; every rank calls."""
        ...

    def load_state(self, state: State) -> None:
        """See ``Stateful``; the model has its weights already."""
        ...


class TorchEngine:
    """Steps with Adam on every rank alike: after the gradient sum all take the same step.

    Args:
        model: whose parameters are stepped.
        config: learning rate, weight decay and largest norm of gradients.
        comm: sums gradients.
    """

    def __init__(self, model: NodeModel, config: TrainConfig, comm: Communicator) -> None:
        self._model = model
        self._comm = comm
        self._lr = config.lr
        self._limit = config.clip_norm
        self._before_clipping: float | None = None
        self._sharded = model.sharded_names()
        self._named = dict(model.named_parameters())
        self.optimizer = Adam(
            self._named.values(), lr=config.lr, weight_decay=float(config.weight_decay)
        )
        self._room = room_for(config.offload, comm.device) if self._sharded else None
        if self._room is not None:
            rows = [self._named[name] for name in self._sharded]
            offload_moments(self.optimizer, rows, self._room)

    def step(self, loss_share: Tensor, check: Check = require_usable) -> None:
        """See ``Engine``."""
        self.optimizer.zero_grad()
        loss_share.backward()
        common = (p for name, p in self._named.items() if name not in self._sharded)
        rows = (p for name, p in self._named.items() if name in self._sharded)
        check(sum_gradients(common, self._comm, rows))
        if self._limit:
            self._clip()
        self.optimizer.step()
        self._model.project()

    def _clip(self) -> None:
        """Scale gradients down to the largest norm, by the same factor on every rank."""
        self._before_clipping = self._norm()
        factor = self._limit / (self._before_clipping + 1e-6)  # as torch and DeepSpeed have it
        if factor < 1.0:
            for grad in self.gradients().values():
                grad.mul_(factor)

    def gradients(self) -> TensorDict:
        """See ``Engine``."""
        return {k: p.grad for k, p in self._named.items() if p.grad is not None}

    def gradient_norm(self) -> float:
        """See ``Engine``."""
        return self._norm() if self._before_clipping is None else self._before_clipping

    def _norm(self) -> float:
        """The norm of the gradients as they are, over all ranks."""
        found = self.gradients()
        own = [grad for name, grad in found.items() if name in self._sharded]
        common = [grad for name, grad in found.items() if name not in self._sharded]
        return (square_sum(common) + square_over_ranks(own, self._sharded, self._comm)) ** 0.5

    def scale_lr(self, scale: float) -> None:
        """See ``Engine``."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * scale

    def state(self) -> State:
        """See ``Engine``; all step counters are common."""
        tensors = {
            f"{name}|{key}": value
            for name, parameter in self._named.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        if self._room is not None:
            self._room.settle()
        return State.of(tensors, {k for k, value in tensors.items() if self._is_row(k, value)})

    def _is_row(self, key: str, value: Tensor) -> bool:
        return key.rsplit("|", 1)[0] in self._sharded and value.dim() > 0

    def load_state(self, state: State) -> None:
        """See ``Engine``."""
        self.optimizer.state.clear()
        for key, value in state.tensors.items():
            name, moment = key.rsplit("|", 1)
            parameter = self._named[name]
            expected = torch.Size() if moment == "step" else parameter.shape
            if value.shape != expected:
                raise ValueError(f"moment {moment} of {name} is {list(value.shape)}")
            # Adam keeps its step counter on the CPU
            device = value.device if moment == "step" else parameter.device
            self.optimizer.state[parameter][moment] = value.to(device)
