"""Collectives under NCCL's rules; gloo carries the numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu.tensor import DeviceTensor, plain

if TYPE_CHECKING:
    from tests.pseudo_gpu.emulator import EmulatedGPU

# which arguments of a collective it writes to, and which it reads
_COLLECTIVES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "all_reduce": (("tensor",), ()),
    "reduce": (("tensor",), ()),
    "broadcast": (("tensor",), ()),
    "all_gather": (("tensor_list",), ("tensor",)),
    "all_gather_into_tensor": (("output_tensor",), ("input_tensor",)),
    "reduce_scatter_tensor": (("output",), ("input",)),
    "all_to_all_single": (("output",), ("input",)),
}
Patches = list[tuple[Any, str, Any]]


class Handle:
    """What an asynchronous collective returns; its rows may not be touched before ``wait``.

    Args:
        gpu: the emulator.
        work: gloo's.
        written, read: CPU tensors.
    """

    def __init__(
        self, gpu: EmulatedGPU, work: Any, written: list[Tensor], read: list[Tensor]
    ) -> None:
        self._gpu, self._work, self._tensors = gpu, work, [*written, *read]
        gpu.transfers.begin(read, readable=True)
        gpu.transfers.begin(written, readable=False)
        gpu.handles.add(self)

    def wait(self, timeout: Any = None) -> bool:
        """Let the stream wait; the host goes on."""
        with plain():
            self._work.wait()
        self._gpu.transfers.end(self._tensors)
        return True

    def is_completed(self) -> bool:
        self._gpu.refuse_in_capture("Work.is_completed")
        return bool(self._work.is_completed())


def nccl_patches(gpu: EmulatedGPU) -> Patches:
    """What takes the place of ``torch.distributed``'s functions."""
    start, backend_of = dist.init_process_group, dist.get_backend
    nccl = SimpleNamespace(on=False)

    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> None:
        nccl.on = backend == "nccl"
        device = kwargs.pop("device_id", None)
        if nccl.on and device is not None:
            gpu.index_of(device)
        kwargs.pop("pg_options", None)
        start("gloo" if nccl.on else backend, *args, **kwargs)

    def get_backend(group: Any = None) -> str:
        return "nccl" if nccl.on else backend_of(group)

    def barrier(*args: Any, **kwargs: Any) -> Any:
        if nccl.on:
            gpu.sync("barrier")
        return wait_for_all(*args, **kwargs)

    wait_for_all = dist.barrier
    wrapped = [(dist, name, _collective(gpu, name, nccl)) for name in _COLLECTIVES]
    options = SimpleNamespace(Options=lambda **given: SimpleNamespace(**given))
    return [
        *wrapped,
        (dist, "init_process_group", init_process_group),
        (dist, "get_backend", get_backend),
        (dist, "barrier", barrier),
        (dist, "is_nccl_available", lambda: True),
        (dist, "ProcessGroupNCCL", options),
    ]


def _collective(gpu: EmulatedGPU, name: str, nccl: SimpleNamespace) -> Callable[..., Any]:
    """One of ``torch.distributed``'s collectives, checked."""
    function: Callable[..., Any] = getattr(dist, name)
    writes, reads = _COLLECTIVES[name]
    signature = inspect.signature(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        tensors: list[list[Tensor]] = [[], []]
        for found, names in zip(tensors, (writes, reads), strict=True):
            for key in names:
                value = bound.arguments[key]
                stripped = [_checked(gpu, nccl.on, name, one) for one in _listed(value)]
                found += stripped
                bound.arguments[key] = stripped if isinstance(value, list) else stripped[0]
        written, read = tensors
        _check_together(gpu, name, args)
        if not nccl.on:
            with plain():
                return function(*bound.args, **bound.kwargs)
        for one in (*written, *read):
            gpu.transfers.check(name, one, written=any(one is other for other in written))
        gpu.note_order(name, [*written, *read], written)
        later = bound.arguments.get("async_op", False)
        work = _send(gpu, name, bound, function, written)
        return Handle(gpu, work, written, read) if later else None

    return call


def _send(
    gpu: EmulatedGPU, name: str, bound: Any, function: Callable[..., Any], written: list[Tensor]
) -> Any:
    """Call it, and record the call where a graph is captured."""
    args, kwargs = bound.args, bound.kwargs

    def again() -> None:
        gpu.counts.add(kinds.NCCL, 1, f"{name}, replayed")
        work = function(*args, **kwargs)
        if work is not None:
            work.wait()

    if gpu.capture is not None:
        for one in written:
            gpu.capture.keep(one)
        gpu.capture.steps.append(again)
    gpu.counts.add(kinds.NCCL, 1, name)
    with plain():
        return function(*args, **kwargs)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _checked(gpu: EmulatedGPU, nccl: bool, name: str, tensor: Tensor) -> Tensor:
    """What gloo is handed."""
    if isinstance(tensor, DeviceTensor):
        if not nccl:
            gpu.sync(f"{name} of a CUDA tensor over gloo")
        if not tensor.numbers.is_contiguous():
            gpu.fault(f"{name}: tensors must be contiguous")
        return tensor.numbers
    if nccl:
        gpu.fault(f"{name}: no backend for tensors on the CPU; NCCL takes those of a GPU")
    return tensor


def _check_together(gpu: EmulatedGPU, name: str, args: Any) -> None:
    devices = {str(one.device) for one in args if isinstance(one, Tensor)}
    if len(devices) > 1:
        gpu.fault(f"{name}: tensors on {', '.join(sorted(devices))}")
