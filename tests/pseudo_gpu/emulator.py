"""The emulated GPU: every operation on its tensors is checked, counted, and computed on the CPU."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu import gpu_rules as rules
from tests.pseudo_gpu import preload
from tests.pseudo_gpu.counts import Counts
from tests.pseudo_gpu.entered import ENTERED
from tests.pseudo_gpu.graphs import Recording
from tests.pseudo_gpu.operation import Operation, check, count_copies, count_work, is_later
from tests.pseudo_gpu.stream_order import StreamOrder
from tests.pseudo_gpu.streams import Stream, current_stream
from tests.pseudo_gpu.tensor import DeviceTensor, Memory, address, plain, tensors_in
from tests.pseudo_gpu.transfers import Transfers

_CPU = torch.device("cpu")
# Autograd's device thread lets go of what it has computed with a moment after backward() returns.
# Where Python ends first, that thread takes the whole process down.
atexit.register(time.sleep, 0.3)


class DeviceFault(RuntimeError):  # noqa: N818 - what a GPU would refuse
    """What a GPU or NCCL would refuse, or what would be wrong there without a word."""


class EmulatedGPU(TorchDispatchMode):
    """While it is entered there are ``cuda`` devices and NCCL.

    Args:
        devices: how many GPUs this process sees.
        first: number of the first of them on the machine, as ``CUDA_VISIBLE_DEVICES`` narrows it.
        package: part of the names of the files whose lines are named.
        strict: raise at the first fault; otherwise count it and go on.
    """

    def __init__(
        self,
        devices: int = 1,
        *,
        first: int = 0,
        package: str = "distributed_ignn",
        strict: bool = True,
    ) -> None:
        super().__init__()
        if preload.OBSTACLE is not None:
            raise RuntimeError(preload.OBSTACLE)
        self.devices = devices
        self.first = first
        self.strict = strict
        self.counts = Counts(package)
        self.memory = Memory()
        self.capture: Recording | None = None
        self.events: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most_events = 0  # alive at once
        self.handles: weakref.WeakSet[Any] = weakref.WeakSet()  # of collectives
        self.transfers = Transfers(self)
        self.order = StreamOrder()
        self.memory.on_free = self.order.forget
        self.default_streams: dict[int, Stream] = {}
        self.entered_streams: list[Stream] = []
        self._patches: ExitStack | None = None
        self._seeds: dict[int, list[int]] = {}
        self._here = threading.local()
        self._named_last = 0

    def __enter__(self) -> EmulatedGPU:
        from tests.pseudo_gpu.cuda_calls import cuda_patches
        from tests.pseudo_gpu.nccl import nccl_patches

        with ExitStack() as stack:
            lifts = torch._C._only_lift_cpu_tensors()
            torch._C._set_only_lift_cpu_tensors(
                True
            )  # torch.tensor copies from the CPU, as on a GPU
            stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
            moved = mock.patch.object(torch.nn.Module, "_apply", _keeping_parameters)
            stack.enter_context(moved)
            for target, name, value in (*cuda_patches(self), *nccl_patches(self)):
                stack.enter_context(mock.patch.object(target, name, value, create=True))
            super().__enter__()
            ENTERED.append(self)
            self._patches = stack.pop_all()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        ENTERED.remove(self)
        if self._patches is not None:
            self._patches.close()

    # devices and random numbers ---------------------------------------------------------------

    @property
    def current_device(self) -> int:
        # autograd's threads, which Python has not started, are told their device by autograd
        foreign = isinstance(threading.current_thread(), threading._DummyThread)
        return getattr(self._here, "device", self._named_last if foreign else 0)

    @current_device.setter
    def current_device(self, index: int) -> None:
        self._here.device = self._named_last = index

    def index_of(self, device: Any) -> int:
        """Number of a device however it is named; the current one by default."""
        if device is None or isinstance(device, int):
            found = self.current_device if device is None else device
        else:
            index = torch.device(device).index
            found = self.current_device if index is None else index
        if not 0 <= found < self.devices:
            raise RuntimeError(f"CUDA error: invalid device ordinal {found} of {self.devices}")
        return found

    def seed(self, device: int) -> list[int]:
        """Seed and offset of a device's generator, which is not the CPU's."""
        return self._seeds.setdefault(device, [0, 0])

    def note_event(self, event: Any) -> None:
        """Somebody has made an event."""
        self.events.add(event)
        self.most_events = max(self.most_events, len(self.events))

    # faults and counts ------------------------------------------------------------------------

    def fault(self, message: str) -> None:
        """Something that a GPU would not do."""
        self.counts.add(kinds.FAULT, 1, message)
        if self.capture is not None:
            self.capture.broken = message
        if self.strict:
            raise DeviceFault(f"{message} [{self.counts.place()}]")

    def sync(self, what: str, until: int | None = None) -> None:
        """The host waits for the device, for all that began up to a tick."""
        self.refuse_in_capture(what)
        self.counts.add(kinds.SYNC, 1, what)
        self.transfers.arrive(self.transfers.ticks if until is None else until)

    def sync_here(self, what: str) -> None:
        """The host waits for all that the current stream has to do."""
        self.sync(what)
        if self.order.watched:
            self.order.host_waits(self.order.mark(current_stream().cuda_stream))

    def refuse_in_capture(self, what: str) -> None:
        if self.capture is not None:
            self.fault(f"{what} while a CUDA graph is captured")

    # operations -------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled, and its wrapper would be called every time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do an operation, on the GPU if it is named or an operand is there."""
        name = func.overloadpacket.__name__
        operands = tensors_in(args, kwargs)
        tagged = [one for one in operands if isinstance(one, DeviceTensor)]
        others = [one for one in operands if not isinstance(one, DeviceTensor)]
        asked = kwargs.get("device")
        asked = None if asked is None else torch.device(asked)
        if not is_later(name, args, kwargs):
            self.transfers.check_landed(name, others)
        if not tagged and (asked is None or asked.type != "cuda"):
            if kwargs.get("pin_memory") or name == "_pin_memory":
                self.refuse_in_capture("an allocation of pinned memory")
            return func(*args, **kwargs)
        if asked is not None and asked.type == "cuda":
            asked = torch.device("cuda", self.index_of(asked))
        todo = Operation(func, args, kwargs, tagged, others, asked or tagged[0].device)
        check(self, todo)
        count_copies(self, todo)
        return self._compute(todo)

    def _compute(self, todo: Operation) -> Any:
        args, kwargs = tuple(_strip(one) for one in todo.args), _strip(todo.kwargs)
        if "device" in kwargs:
            kwargs["device"] = _CPU
        for key in ("pin_memory", "non_blocking"):
            kwargs.pop(key, None)
        if self.capture is not None:
            self.capture.before(todo.func, args, kwargs)
        with plain():
            result = self.with_seed(todo.func, args, kwargs, todo.device)
            if todo.name == "_to_copy" and result is args[0]:
                result = result.clone()
        outputs = tensors_in((result,), {})
        known = {id(one.numbers): one for one in todo.tagged} | {
            id(one): one for one in todo.others
        }
        count_work(self, todo, outputs)
        if todo.launches:
            self.note_order(todo.name, (), [one for one in outputs if id(one) not in known])
        if self.capture is not None:
            self.capture.after(todo.func, args, kwargs, outputs)
        if todo.brings_back:
            if todo.is_later:
                self.transfers.land(result)
            return result
        return self._tagged(result, known, todo.device)

    def _tagged(self, value: Any, known: dict[int, Tensor], device: torch.device) -> Any:
        """A result as the program sees it; operands that come back are the same objects."""
        if isinstance(value, list | tuple):
            return type(value)(self._tagged(one, known, device) for one in value)
        if not isinstance(value, Tensor):
            return value
        found = known.get(id(value))
        return DeviceTensor(value, device, self) if found is None else found

    def with_seed(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        """Run it; what is random draws from the device's generator and leaves the CPU's alone."""
        if device.type == "cpu" or not rules.is_random(func):
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            self.fault("a generator of the CPU for a tensor of a GPU")
        return self.seeded(device.index, lambda: func(*args, **kwargs))

    def seeded(self, device: int, action: Callable[[], Any]) -> Any:
        """Run ``action`` with the random numbers of a device, which advance."""
        state, seed = torch.get_rng_state(), self.seed(device)
        seed[1] += 4
        torch.default_generator.manual_seed(hash((seed[0], seed[1])) % 2**63)
        try:
            return action()
        finally:
            torch.set_rng_state(state)

    def note_order(self, name: str, touched: Sequence[Tensor], written: list[Tensor]) -> None:
        """Refuse memory that another stream is not done with; nothing runs while capturing."""
        if self.capture is None and self.order.watched:
            storages = [[address(_strip(one)) for one in part] for part in (touched, written)]
            wrong = self.order.note(current_stream().cuda_stream, *storages)
            if wrong is not None:
                self.fault(f"{name} {wrong}")


_apply = torch.nn.Module._apply


def _keeping_parameters(
    module: torch.nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True
) -> torch.nn.Module:
    """Move a module's parameters without replacing them, as it is between a CPU and a GPU."""

    def moves(parameter: Tensor) -> bool:
        sample = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        return convert(sample).device.type != parameter.device.type

    own = [one for one in module._parameters.values() if one is not None]
    swaps = any(moves(one) for one in own)
    before = torch.__future__.get_swap_module_params_on_conversion()
    if recurse:
        for child in module.children():
            _keeping_parameters(child, convert)
    torch.__future__.set_swap_module_params_on_conversion(swaps)
    try:
        return _apply(module, convert, recurse=False)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _strip(value: Any) -> Any:
    """What the CPU computes with."""
    if isinstance(value, DeviceTensor):
        return value.numbers
    if isinstance(value, torch.device):
        return _CPU
    if isinstance(value, list | tuple):
        return type(value)(_strip(one) for one in value)
    if isinstance(value, dict):
        return {key: _strip(one) for key, one in value.items()}
    return value
