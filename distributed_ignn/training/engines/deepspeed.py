"""DeepSpeed as the engine: ZeRO holds Adam's state, divided among ranks or in host memory.

The replicated parameters are one ZeRO group over all ranks. Embedding rows differ from rank to
rank, so their optimiser is divided already; DeepSpeed would overwrite them with rank 0's if it saw
them in that group. Where the optimiser is to wait and step in host memory (``offload_optimizer``),
each rank's rows are a ZeRO group of that rank alone; otherwise a local Adam steps them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.deepspeed_settings import (
    check_device,
    offloads,
    read_settings,
    require_package,
)
from distributed_ignn.errors import UserError
from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.training.engines.gradients import is_usable, square_over_ranks, square_sum
from distributed_ignn.training.engines.torch import Check, require_usable
from distributed_ignn.training.engines.zero import STEP, ZeroAdam
from distributed_ignn.training.state import State, TensorDict


class DeepSpeedEngine:
    """Adam with its state divided among ranks, giving the same weights as ``TorchEngine``.

    Args:
        model: whose parameters are stepped, float32.
        config: ``train.lr``, ``train.weight_decay``, ``train.clip_norm`` and ``deepspeed_config``
            are read.
        comm: this rank's communicator; every rank builds the engine together.

    Raises:
        UserError: DeepSpeed is not installed, or its JSON holds what this engine cannot do, or
            gradients are to be clipped of which ZeRO knows a part (on every rank).
    """

    def __init__(self, model: NodeModel, config: RunConfig, comm: Communicator) -> None:
        sharded = model.sharded_names()
        named = dict(model.named_parameters())
        if config.train.clip_norm and sharded:
            raise UserError(
                f"train.clip_norm = {config.train.clip_norm:g} and engine = deepspeed: ZeRO does "
                "not see the embeddings of nodes, and so not the norm of all gradients; use "
                "--engine torch"
            )
        self._model = model
        self._comm = comm
        self._replicated = {k: v for k, v in named.items() if k not in sharded}
        self._sharded = {k: v for k, v in named.items() if k in sharded}
        with _quiet_start(comm):
            settings = _agreed_settings(config, comm)
            self._start(config, settings, comm)
        self._numel = sum(p.numel() for p in self._replicated.values())
        self._lr = config.train.lr
        self._own: TensorDict = {}

    def _start(self, config: RunConfig, settings: dict[str, Any], comm: Communicator) -> None:
        def adam(named: Mapping[str, Parameter]) -> torch.optim.Adam:
            # on the host, one pass over the numbers counts
            found = torch.optim.Adam(
                list(named.values()),
                lr=config.train.lr,
                weight_decay=float(config.train.weight_decay),
                fused=offloads(settings) or None,
            )
            self._adams.append(found)
            return found

        self._adams: list[torch.optim.Adam] = []
        common, own = self._replicated, self._sharded
        limit = config.train.clip_norm
        self._common = ZeroAdam(common, adam(common), settings, comm, clip_norm=limit, alone=False)
        self._rows: _RowAdam | None = None
        if own and offloads(settings):
            self._rows = ZeroAdam(own, adam(own), settings, comm, alone=True)
        elif own:
            self._rows = _LocalAdam(own, adam(own))

    def step(self, loss_share: Tensor, check: Check = require_usable) -> None:
        """See ``Engine``; DeepSpeed reduces by itself, so ``check`` costs a reduction of its own.

        Raises:
            UserError: the sum of all ranks' gradients is not finite, though each of them was (on
                every rank).
        """
        parameters = self._replicated | self._sharded
        grads = torch.autograd.grad(loss_share, list(parameters.values()), allow_unused=True)
        found = {k: g for k, g in zip(parameters, grads, strict=True) if g is not None}
        bad = float(sum(not is_usable(grad) for grad in found.values()))
        self._own = found
        check(float(self._comm.sum(torch.tensor([bad]))) == 0.0)
        self._own = {}
        del found
        count = len(self._replicated)
        self._step_replicated(grads[:count])
        if self._rows is not None:
            self._rows.step(grads[count:])
        self._model.project()

    def _step_replicated(self, grads: Iterable[Tensor | None]) -> None:
        if not self._common.step(grads):
            bound = " or model.kappa, and keep model.constraint projection"
            ways = f"lower train.lr{bound if self._model.solves else ''}"
            raise UserError(f"the gradients are not finite; {ways}")
        traffic = self._comm.traffic
        traffic.reductions += 1
        # the sum of all gradients, then this rank's part of the new weights to the others
        traffic.reduction_bytes += 4 * (self._numel + self._common.part.numel())

    def gradients(self) -> TensorDict:
        """See ``Engine``."""
        return self._own

    def gradient_norm(self) -> float:
        """See ``Engine``; ZeRO knows the norm of what it has reduced."""
        own = self._rows.gradient_norm() if self._rows is not None else 0.0
        squares = square_over_ranks([torch.tensor(own)], self._sharded, self._comm)
        return (self._common.gradient_norm() ** 2 + squares) ** 0.5

    def scale_lr(self, scale: float) -> None:
        """See ``Engine``; ZeRO steps with the groups of our Adam."""
        for adam in self._adams:
            for group in adam.param_groups:
                group["lr"] = self._lr * scale

    def state(self) -> State:
        """See ``Engine``; the moments of the replicated parameters are put together from all ranks.

        The names are those of ``TorchEngine``, so a checkpoint serves both engines and any number
        of ranks.
        """
        own = self._rows.state() if self._rows is not None else {}
        rows = {name: value for name, value in own.items() if value.dim() > 0}
        steps = {name: value for name, value in own.items() if value.dim() == 0}
        return State(common=self._common.state() | steps, rows=rows)

    def load_state(self, state: State) -> None:
        """See ``Engine``."""
        self._common.load_state(state.common)
        if self._rows is not None:
            self._rows.load_state(state.tensors)


class _RowAdam(Protocol):
    """Steps the rows that this rank alone holds."""

    def step(self, grads: Iterable[Tensor | None]) -> bool: ...

    def gradient_norm(self) -> float: ...

    def state(self) -> TensorDict: ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None: ...


class _LocalAdam:
    """torch's Adam where the rows are."""

    def __init__(self, named: dict[str, Parameter], adam: torch.optim.Adam) -> None:
        self._named, self._adam = named, adam

    def step(self, grads: Iterable[Tensor | None]) -> bool:
        for parameter, grad in zip(self._named.values(), grads, strict=True):
            parameter.grad = grad
        self._adam.step()
        return True

    def gradient_norm(self) -> float:
        return square_sum(p.grad for p in self._named.values() if p.grad is not None) ** 0.5

    def state(self) -> TensorDict:
        return {
            f"{name}|{key}": value
            for name, parameter in self._named.items()
            for key, value in self._adam.state.get(parameter, {}).items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self._adam.state.clear()
        for key, value in tensors.items():
            name, moment = key.rsplit("|", 1)
            if name in self._named:
                parameter = self._named[name]
                # Adam keeps its step counter on the CPU.
                device = value.device if moment == STEP else parameter.device
                self._adam.state[parameter][moment] = value.to(device).clone()


@contextmanager
def _quiet_start(comm: Communicator) -> Iterator[None]:
    """What DeepSpeed reads from the environment while it is imported and started, and silence."""
    environment, disabled = dict(os.environ), logging.root.manager.disable
    os.environ |= {"DS_ACCELERATOR": comm.device.type, "LOCAL_RANK": str(comm.local_rank)}
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ |= environment
        # Raised by DeepSpeed's own calls in every step; nobody who runs a training can act on it.
        warnings.filterwarnings("ignore", r".*all_gather_into_tensor", FutureWarning)


def _agreed_settings(config: RunConfig, comm: Communicator) -> dict[str, Any]:
    """DeepSpeed's settings; what is wrong on one rank is reported on all."""
    problem, settings = None, {}
    try:
        require_package()
        settings = read_settings(config.deepspeed_config)
        check_device(settings, comm.device.type)
    except UserError as error:
        problem = str(error)
    comm.agree(problem)
    return settings
