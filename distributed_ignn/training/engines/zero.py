"""One started DeepSpeed engine: ZeRO over some parameters and some ranks.

A gradient is computed in full before DeepSpeed gets it: the backward solve talks to the other
ranks, and DeepSpeed's reductions must not mix with that. DeepSpeed then runs its usual forward,
backward and step on a module whose gradients are those that it is called with.
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.training.state import TensorDict

STEP = "step"
_MOMENTS = ("exp_avg", "exp_avg_sq")
# The keys that are not the user's. DeepSpeed demands a batch size; it averages gradients over ranks
# and newer releases clip them at norm 1 unless told otherwise. Its own Adam for processors is
# compiled when it is first used; torch's takes the same steps.
_FIXED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_allreduce_op": "sum",
    "zero_force_ds_cpu_optimizer": False,
}


class ZeroAdam:
    """Adam whose state DeepSpeed divides among ranks, or keeps in host memory.

    Args:
        named: parameters by name, float32 and not empty; equal on all ranks of ``alone`` False.
        adam: steps them; DeepSpeed puts its own copies of the weights in their place.
        settings: DeepSpeed's, as ``config.deepspeed.read_settings`` returns them.
        comm: this rank's communicator; every rank starts the engine together.
        clip_norm: largest norm of the gradient of these parameters; 0 for none.
        alone: whether each rank has parameters of its own, of which nothing is reduced.
    """

    def __init__(
        self,
        named: Mapping[str, Parameter],
        adam: torch.optim.Adam,
        settings: Mapping[str, Any],
        comm: Communicator,
        *,
        clip_norm: float = 0.0,
        alone: bool,
    ) -> None:
        self._named = dict(named)
        self._adam = adam
        fixed = _FIXED | {"gradient_clipping": clip_norm}
        self._engine = _start(self._named.values(), adam, dict(settings) | fixed, comm, alone)
        # Releases without gradient_allreduce_op always take the mean over ranks.
        averages = self._engine.gradient_average and not alone
        self._factor = comm.world_size if averages else 1
        self._versions = {name: p._version for name, p in self._named.items()}

    @property
    def part(self) -> Tensor:
        """The flat float32 weights that this rank steps; ZeRO has put them into our Adam."""
        part: Tensor = self._adam.param_groups[0]["params"][0]
        return part

    def step(self, grads: Iterable[Tensor | None]) -> bool:
        """Take a step, with the gradients summed over the ranks; a missing one counts as zero.

        Returns:
            Whether the step was taken and left finite weights, the same on all ranks of the group.
        """
        self._refresh()
        parameters = self._named.values()
        whole = [
            torch.zeros_like(p) if g is None else g * self._factor if self._factor > 1 else g
            for p, g in zip(parameters, grads, strict=True)
        ]
        self._engine.backward(self._engine(*whole))
        self._engine.step()
        torch.autograd.graph.increment_version(parameters)  # it writes past torch
        self._versions = {name: p._version for name, p in self._named.items()}
        # Newer releases skip such a step without a word, older ones take it; all ranks alike.
        finite = all(bool(p.isfinite().all()) for p in parameters)
        return finite and bool(self._engine.was_step_applied())

    def gradient_norm(self) -> float:
        """The norm of the gradient that was reduced last; ZeRO knows it."""
        return float(self._engine.get_global_grad_norm())

    def _refresh(self) -> None:
        """ZeRO steps a copy of its part of the weights; make that copy equal to the model again.

        Whoever has changed weights since the last step, by a projection, an average or a
        checkpoint, has done so on all ranks of the group.
        """
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self._named.items():
            if parameter._version != self._versions[name]:
                safe_set_full_fp32_param(parameter, parameter.detach())

    def state(self) -> TensorDict:
        """Adam's moments, whole, and their steps, as ``parameter|moment``; empty before a step."""
        from deepspeed.utils import safe_get_full_optimizer_state

        kept = self._adam.state.get(self.part, {})
        found: TensorDict = {}
        for name, parameter in self._named.items() if kept else ():
            found[f"{name}|{STEP}"] = kept[STEP]
            for moment in _MOMENTS:
                found[f"{name}|{moment}"] = safe_get_full_optimizer_state(parameter, moment)
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` of any engine has given, of these parameters or more."""
        from deepspeed.utils import safe_set_full_optimizer_state

        steps = [tensors[key] for name in self._named if (key := f"{name}|{STEP}") in tensors]
        if not steps:
            # as before the first step; DeepSpeed keeps views of these tensors
            for value in self._adam.state.get(self.part, {}).values():
                value.zero_()
            return
        kept = self._adam.state[self.part]
        kept[STEP] = steps[0].clone()
        for moment in _MOMENTS:
            kept[moment] = torch.zeros_like(self.part)
        # Tells each parameter where its moments lie; DeepSpeed does it after the first step only.
        zero = self._engine.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._named.items():
            for moment in _MOMENTS:
                value = tensors[f"{name}|{moment}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, moment)


class _Ranks:
    """What DeepSpeed asks about the ranks that share an engine's parameters.

    It remembers the last answers in a global variable, so an engine over all ranks says so too.
    """

    def __init__(self, comm: Communicator, *, alone: bool) -> None:
        self._own = comm.group_alone()
        self._group = self._own if alone else comm.group()
        self._rank, self._size = (0, 1) if alone else (comm.rank, comm.world_size)

    def get_data_parallel_group(self) -> Any:
        return self._group

    def get_data_parallel_rank(self) -> int:
        return self._rank

    def get_data_parallel_world_size(self) -> int:
        return self._size

    def get_model_parallel_group(self) -> Any:
        return self._own

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1

    get_tensor_model_parallel_world_size = get_model_parallel_world_size


class _GivenGradients(nn.Module):
    """Parameters whose gradient is what the module is called with.

    So DeepSpeed runs its usual forward, backward and step, every parameter gets a gradient on every
    rank, and no other communication is on.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        super().__init__()
        self.given = nn.ParameterList(parameters)

    def forward(self, *gradients: Tensor) -> Tensor:
        terms = [_Given.apply(p, g) for p, g in zip(self.given, gradients, strict=True)]
        return torch.stack(terms).sum()


class _Given(torch.autograd.Function):
    """A zero whose derivative by p is g."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return parameter.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scales[0], None


def _start(
    parameters: Iterable[Parameter],
    adam: torch.optim.Adam,
    settings: dict[str, Any],
    comm: Communicator,
    alone: bool,
) -> Any:
    """A started ``deepspeed.DeepSpeedEngine``."""
    import deepspeed

    _join_group(comm)
    # DeepSpeed would otherwise take the GPU numbered as the local rank; ranks may share GPUs.
    placed = SimpleNamespace(device_rank=comm.device.index or 0)
    ranks = _Ranks(comm, alone=alone) if comm.world_size > 1 else None
    module = _GivenGradients(parameters)
    return deepspeed.initialize(
        args=placed, model=module, optimizer=adam, config=settings, mpu=ranks
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
