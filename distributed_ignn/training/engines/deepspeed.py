"""DeepSpeed as the engine: ZeRO divides Adam's state of the replicated parameters among ranks.

DeepSpeed sees the replicated parameters only, in a module of their own. Embedding rows differ from
rank to rank; DeepSpeed would overwrite them with rank 0's, so a local Adam steps them. A gradient
is computed in full before DeepSpeed gets it: the backward solve talks to the other ranks, and
DeepSpeed's reductions must not mix with that.
"""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, TrainConfig
from distributed_ignn.errors import UserError
from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.training.engines.deepspeed_settings import read_settings
from distributed_ignn.training.engines.gradients import is_usable, square_over_ranks
from distributed_ignn.training.engines.torch import Check, require_usable
from distributed_ignn.training.state import State, TensorDict

_MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"
# The keys that are not the user's. DeepSpeed demands a batch size; it averages gradients over ranks
# and newer releases clip them at norm 1 unless told otherwise.
_FIXED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_allreduce_op": "sum",
    "gradient_clipping": 0.0,
}


class DeepSpeedEngine:
    """Adam with its state divided among ranks, giving the same weights as ``TorchEngine``.

    Args:
        model: whose parameters are stepped, float32.
        config: ``train.lr``, ``train.weight_decay`` and ``deepspeed_config`` are read.
        comm: this rank's communicator; every rank builds the engine together.

    Raises:
        UserError: DeepSpeed is not installed, its JSON holds what this engine cannot do, or the
            model is not in float32 (on every rank).
    """

    def __init__(self, model: NodeModel, config: RunConfig, comm: Communicator) -> None:
        sharded = model.sharded_names()
        named = dict(model.named_parameters())
        self._model = model
        self._comm = comm
        self._replicated = {k: v for k, v in named.items() if k not in sharded}
        self._sharded = {k: v for k, v in named.items() if k in sharded}
        self._adam = _adam(self._replicated.values(), config.train)
        self._local = _adam(self._sharded.values(), config.train) if self._sharded else None
        with _quiet_start(comm):
            settings = _agreed_settings(model, config, comm)
            self._engine = _initialize(self._replicated.values(), self._adam, settings, comm)
        # Releases without gradient_allreduce_op always take the mean over ranks.
        self._factor = comm.world_size if self._engine.gradient_average else 1
        self._numel = sum(p.numel() for p in self._replicated.values())
        self._lr = config.train.lr
        self._own: TensorDict = {}

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
        self._step_sharded(grads[count:])
        self._model.project()
        self._refresh_master_weights()

    def _step_replicated(self, grads: Iterable[Tensor | None]) -> None:
        """A missing gradient counts as zero, so that all ranks reduce the same buckets."""
        whole = [
            torch.zeros_like(p) if g is None else g * self._factor
            for p, g in zip(self._replicated.values(), grads, strict=True)
        ]
        self._engine.backward(self._engine(*whole))
        self._engine.step()
        torch.autograd.graph.increment_version(self._replicated.values())  # it writes past torch
        # Newer releases skip such a step without a word, older ones take it; all ranks alike.
        finite = all(bool(p.isfinite().all()) for p in self._replicated.values())
        if not (finite and self._engine.was_step_applied()):
            raise UserError(
                "the gradients are not finite; lower train.lr or model.kappa, and keep "
                "model.constraint projection"
            )
        traffic = self._comm.traffic
        traffic.reductions += 1
        # the sum of all gradients, then this rank's part of the new weights to the others
        traffic.reduction_bytes += 4 * (self._numel + self._partition().numel())

    def gradients(self) -> TensorDict:
        """See ``Engine``."""
        return self._own

    def gradient_norm(self) -> float:
        """See ``Engine``; ZeRO knows the norm of what it has reduced."""
        own = [p.grad for p in self._sharded.values() if p.grad is not None]
        common = float(self._engine.get_global_grad_norm())
        return (common**2 + square_over_ranks(own, self._sharded, self._comm)) ** 0.5

    def scale_lr(self, scale: float) -> None:
        """See ``Engine``; ZeRO steps with the groups of our Adam."""
        for adam in (self._adam, self._local):
            for group in adam.param_groups if adam is not None else ():
                group["lr"] = self._lr * scale

    def _step_sharded(self, grads: Iterable[Tensor | None]) -> None:
        if self._local is None:
            return
        for parameter, grad in zip(self._sharded.values(), grads, strict=True):
            parameter.grad = grad
        self._local.step()

    def _refresh_master_weights(self) -> None:
        """ZeRO steps a copy of its part of the weights; make that copy equal to the model again."""
        from deepspeed.utils import safe_set_full_fp32_param

        for parameter in self._replicated.values():
            safe_set_full_fp32_param(parameter, parameter.detach())

    def state(self) -> State:
        """See ``Engine``; the moments of the replicated parameters are put together from all ranks.

        The names are those of ``TorchEngine``, so a checkpoint serves both engines and any number
        of ranks.
        """
        local = self._local_state()
        rows = {name: value for name, value in local.items() if value.dim() > 0}
        steps = {name: value for name, value in local.items() if value.dim() == 0}
        return State(common=self._replicated_state() | steps, rows=rows)

    def _replicated_state(self) -> TensorDict:
        """Adam's moments of the replicated parameters, whole, and their steps."""
        from deepspeed.utils import safe_get_full_optimizer_state

        kept = self._adam.state.get(self._partition(), {})
        result: TensorDict = {}
        for name, parameter in self._replicated.items() if kept else ():
            result[f"{name}|{_STEP}"] = kept[_STEP]
            for moment in _MOMENTS:
                result[f"{name}|{moment}"] = safe_get_full_optimizer_state(parameter, moment)
        return result

    def _local_state(self) -> TensorDict:
        """Adam's moments of this rank's rows, and their steps."""
        if self._local is None:
            return {}
        return {
            f"{name}|{key}": value
            for name, parameter in self._sharded.items()
            for key, value in self._local.state.get(parameter, {}).items()
        }

    def load_state(self, state: State) -> None:
        """See ``Engine``."""
        self._refresh_master_weights()
        self._load_replicated(state.common)
        if self._local is not None:
            self._local.state.clear()
        for key, value in state.tensors.items():
            name, moment = key.rsplit("|", 1)
            if self._local is not None and name in self._sharded:
                parameter = self._sharded[name]
                # Adam keeps its step counter on the CPU.
                device = value.device if moment == _STEP else parameter.device
                self._local.state[parameter][moment] = value.to(device).clone()

    def _load_replicated(self, common: TensorDict) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        steps = [common[key] for n in self._replicated if (key := f"{n}|{_STEP}") in common]
        partition = self._partition()
        if not steps:
            # as before the first step; DeepSpeed keeps views of these tensors
            for value in self._adam.state.get(partition, {}).values():
                value.zero_()
            return
        kept = self._adam.state[partition]
        kept[_STEP] = steps[0].clone()
        for moment in _MOMENTS:
            kept[moment] = torch.zeros_like(partition)
        # Tells each parameter where its moments lie; DeepSpeed does it after the first step only.
        zero = self._engine.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._replicated.items():
            for moment in _MOMENTS:
                value = common[f"{name}|{moment}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, moment)

    def _partition(self) -> Tensor:
        """The flat float32 weights that this rank steps; ZeRO has put them into our Adam."""
        partition: Tensor = self._adam.param_groups[0]["params"][0]
        return partition


class _GivenGradients(nn.Module):
    """Parameters whose gradient is what the module is called with.

    The derivative of sum(p * g) by p is g, exactly. So DeepSpeed runs its usual forward, backward
    and step, every parameter gets a gradient on every rank, and no other communication is on.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        super().__init__()
        self.given = nn.ParameterList(parameters)

    def forward(self, *gradients: Tensor) -> Tensor:
        terms = [(p * g).sum() for p, g in zip(self.given, gradients, strict=True)]
        return torch.stack(terms).sum()


def _adam(parameters: Iterable[Parameter], config: TrainConfig) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), lr=config.lr, weight_decay=float(config.weight_decay))


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


def _agreed_settings(model: NodeModel, config: RunConfig, comm: Communicator) -> dict[str, Any]:
    """DeepSpeed's settings; what is wrong on one rank is reported on all."""
    problem, settings = None, {}
    try:
        _check_possible(model)
        settings = read_settings(config.deepspeed_config)
    except UserError as error:
        problem = str(error)
    comm.agree(problem)
    return settings | _FIXED


def _check_possible(model: NodeModel) -> None:
    dtype = model.dtype
    if dtype != torch.float32:
        raise UserError(
            f"train.dtype = {str(dtype).removeprefix('torch.')} but engine = deepspeed keeps its "
            "weights in float32; use --engine torch or --train.dtype float32"
        )
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"engine = deepspeed cannot import its package ({error}); run pip install "
            "'distributed-ignn[deepspeed]', or use --engine torch"
        ) from error


def _initialize(
    parameters: Iterable[Parameter],
    adam: torch.optim.Adam,
    settings: dict[str, Any],
    comm: Communicator,
) -> Any:
    """A started ``deepspeed.DeepSpeedEngine``."""
    import deepspeed

    _join_group(comm)
    # DeepSpeed would otherwise take the GPU numbered as the local rank; ranks may share GPUs.
    placed = SimpleNamespace(device_rank=comm.device.index or 0)
    return deepspeed.initialize(
        args=placed, model=_GivenGradients(parameters), optimizer=adam, config=settings
    )[0]


def _join_group(comm: Communicator) -> None:
    """Let DeepSpeed use the job's process group; a single process gets one of its own."""
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    if comm.device.type == "cpu":
        # DeepSpeed compiles it on sight where there is a compiler, but only inference calls it.
        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    backend = "nccl" if comm.device.type == "cuda" else "gloo"
    if comm.world_size > 1 or deepspeed.comm.is_initialized():
        deepspeed.init_distributed(backend, auto_mpi_discovery=False)
        return
    # Kept until the end, because subgroups are formed through the file.
    folder = tempfile.TemporaryDirectory(prefix="distributed-ignn-")
    atexit.register(folder.cleanup)
    deepspeed.init_distributed(
        backend,
        auto_mpi_discovery=False,
        init_method=(Path(folder.name) / "group").as_uri(),
        rank=0,
        world_size=1,
    )
    atexit.register(deepspeed.comm.destroy_process_group)
