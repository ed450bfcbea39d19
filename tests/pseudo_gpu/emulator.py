"""The emulated GPU: every operation on its tensors is checked, counted, and computed on the CPU."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
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
from tests.pseudo_gpu.tensor import DeviceTensor, Memory, address, plain, tensors_in

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
        # by storage: whether rows of an exchange may be read, and where it began
        self.in_flight: dict[int, tuple[bool, str]] = {}
        # by storage: when a copy to the host began, and where; the tensor keeps its address
        self.landing: dict[int, tuple[int, str, Tensor]] = {}
        self.ticks = 0
        self.default_streams: dict[int, Any] = {}
        self._patches: ExitStack | None = None
        self._seeds: dict[int, list[int]] = {}
        self._here = threading.local()

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
        return getattr(self._here, "device", 0)

    @current_device.setter
    def current_device(self, index: int) -> None:
        self._here.device = index

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
        self.arrive(self.ticks if until is None else until)

    def arrive(self, until: int) -> None:
        """Copies to the host that began up to a tick are there."""
        self.landing = {k: v for k, v in self.landing.items() if v[0] > until}

    def refuse_in_capture(self, what: str) -> None:
        if self.capture is not None:
            self.fault(f"{what} while a CUDA graph is captured")

    # operations -------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return (
            False  # nothing is compiled here, and its wrapper would be called for every operation
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do an operation, on the GPU if it is named or an operand is there."""
        name = func.overloadpacket.__name__
        operands = tensors_in(args, kwargs)
        tagged = [one for one in operands if isinstance(one, DeviceTensor)]
        asked = kwargs.get("device")
        asked = None if asked is None else torch.device(asked)
        others = [one for one in operands if not isinstance(one, DeviceTensor)]
        self._check_landed(name, others)
        if not tagged and (asked is None or asked.type != "cuda"):
            if kwargs.get("pin_memory") or name == "_pin_memory":
                self.refuse_in_capture("an allocation of pinned memory")
            return func(*args, **kwargs)
        if asked is not None and asked.type == "cuda":
            device = torch.device("cuda", self.index_of(asked))
        else:
            device = asked or tagged[0].device
        self._check(func, name, args, kwargs, tagged, others)
        self._count_copies(name, args, kwargs, tagged, others, device)
        return self._compute(func, name, (args, kwargs), tagged, others, device)

    def _compute(
        self,
        func: Any,
        name: str,
        call: tuple[Any, dict[str, Any]],
        tagged: list[DeviceTensor],
        others: list[Tensor],
        device: torch.device,
    ) -> Any:
        args, kwargs = tuple(_strip(one) for one in call[0]), _strip(call[1])
        if "device" in kwargs:
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        if name in ("_to_copy", "copy_") and not (tagged and device.type == "cpu"):
            kwargs.pop("non_blocking", None)
        if self.capture is not None:
            self.capture.before(func, args, kwargs)
        with plain():
            result = self.with_seed(func, args, kwargs, device)
            if name == "_to_copy" and result is args[0]:
                result = result.clone()
        known = {id(one.numbers): one for one in tagged} | {id(one): one for one in others}
        outputs = tensors_in((result,), {})
        self._count_work(func, name, kwargs, tagged, outputs)
        if self.capture is not None:
            self.capture.after(func, args, kwargs, outputs)
        if device.type == "cpu" and name == "_to_copy":
            if call[1].get("non_blocking"):
                self.land(result)
            return result
        return self._tagged(result, known, device)

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

    # checks -----------------------------------------------------------------------------------

    def _check(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        tagged: list[DeviceTensor],
        others: list[Tensor],
    ) -> None:
        if self.in_flight and not func.is_view and name != "empty_like":
            written = rules.written_of(func, args, kwargs)
            for one in tagged:
                self.check_arrived(name, one.numbers, any(one is other for other in written))
        why = rules.refusal(func, name, args, tagged, others)
        if why is not None:
            self.fault(f"aten.{name}: {why}")

    def check_arrived(self, name: str, inner: Tensor, written: bool) -> None:
        """Refuse rows of an exchange that has not been waited for."""
        readable, place = self.in_flight.get(address(inner), (True, ""))
        if place and (written or not readable):
            verb = "overwrites" if readable else "uses"
            self.fault(f"aten.{name} {verb} rows of an exchange not waited for, begun at {place}")

    def _check_landed(self, name: str, others: list[Tensor]) -> None:
        for one in others if self.landing else ():
            began = self.landing.get(address(one))
            if began is not None and name not in ("detach", "alias", "view", "select", "slice"):
                self.fault(f"aten.{name} reads a copy not waited for, begun at {began[1]}")

    # counts -----------------------------------------------------------------------------------

    def _count_copies(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        tagged: list[DeviceTensor],
        others: list[Tensor],
        device: torch.device,
    ) -> None:
        waits = rules.sync_of(name, args, kwargs)
        if waits is not None:
            self.sync(waits)
        if name == "_to_copy" and tagged and device.type == "cpu":
            self._download(args[0], None, kwargs.get("non_blocking", False))
        elif name == "copy_" and others:
            later = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if isinstance(args[0], DeviceTensor):
                self._upload(args[1], later)
            else:
                self._download(args[1], args[0], later)
        elif name == "_to_copy" and not tagged:
            self._upload(args[0], kwargs.get("non_blocking", False))
        elif others and name.startswith(("index", "_index_put")):
            self._upload(others[0], False)

    def _upload(self, source: Tensor, later: bool) -> None:
        with plain():
            pinned = source.is_pinned()
        if not (pinned and later):
            self.refuse_in_capture("a copy from memory that is not pinned")
        size = source.numel() * source.element_size()
        self.counts.add(kinds.UPLOAD, 1, f"{size:,} bytes" + (", pinned" if pinned else ""))

    def _download(self, source: Tensor, target: Tensor | None, later: bool) -> None:
        size = f"copy of {source.numel() * source.element_size():,} bytes to the CPU"
        with plain():
            pinned = target is None or target.is_pinned()
        if not (later and pinned):
            self.sync(size)
        elif target is not None:
            self.land(target)

    def land(self, target: Tensor) -> None:
        """A copy to the host has begun; nobody reads it before it was waited for."""
        self.ticks += 1
        self.landing[address(target)] = self.ticks, self.counts.place(), target

    def _count_work(
        self,
        func: Any,
        name: str,
        kwargs: Any,
        tagged: list[DeviceTensor],
        outputs: list[Tensor],
    ) -> None:
        count = rules.launches_of(func, name, tagged)
        if not count:
            return
        self.counts.add(kinds.LAUNCH if self.capture is None else kinds.CAPTURED, count, name)
        whole = self.counts.state_entries
        for entries in rules.entries_moved(name, kwargs, tagged, outputs) if whole else ():
            if whole and 2 * entries >= whole:
                self.counts.add(kinds.PASSES, entries / whole, name)


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
