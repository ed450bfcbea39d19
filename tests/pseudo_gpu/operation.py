"""One operation of a program, and what it asks of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu import gpu_rules as rules
from tests.pseudo_gpu.tensor import DeviceTensor, plain

if TYPE_CHECKING:
    from tests.pseudo_gpu.emulator import EmulatedGPU


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A call of an aten operator.

    Args:
        func, args, kwargs: as torch dispatches them.
        tagged: operands on a GPU.
        others: operands on the CPU.
        device: of its results.
    """

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    tagged: list[DeviceTensor]
    others: list[Tensor]
    device: torch.device

    @property
    def name(self) -> str:
        found: str = self.func.overloadpacket.__name__
        return found

    @property
    def is_later(self) -> bool:
        """Whether it is a copy that the host does not wait for, if memory allows that."""
        return is_later(self.name, self.args, self.kwargs)

    @property
    def brings_back(self) -> bool:
        """Whether it makes a tensor on the CPU of one on a GPU."""
        return self.name == "_to_copy" and bool(self.tagged) and self.device.type == "cpu"

    @property
    def written(self) -> list[Tensor]:
        """The arguments that it writes to."""
        return rules.written_of(self.func, self.args, self.kwargs)

    @property
    def launches(self) -> int:
        return rules.launches_of(self.func, self.name, self.tagged)


def is_later(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """See ``Operation.is_later``."""
    by_place = name == "copy_" and len(args) > 2 and args[2]
    return name in rules.MOVES and bool(kwargs.get("non_blocking", by_place))


def check(gpu: EmulatedGPU, done: Operation) -> None:
    """Refuse what a GPU would refuse, and memory that somebody else is not done with."""
    written, name = done.written, done.name
    if not done.func.is_view and name != "empty_like":
        for one in done.tagged if gpu.transfers.any_moving else ():
            is_written = any(one is other for other in written)
            gpu.transfers.check(f"aten.{name}", one.numbers, written=is_written)
        gpu.note_order(name, done.tagged, written)
    why = rules.refusal(done.func, name, done.args, done.tagged, done.others)
    if why is not None:
        gpu.fault(f"aten.{name}: {why}")


def count_copies(gpu: EmulatedGPU, done: Operation) -> None:
    """Count what the host waits for and what it copies."""
    name, args = done.name, done.args
    waits = rules.sync_of(name, args, done.kwargs)
    if waits is not None:
        gpu.sync_here(waits)
    if done.brings_back:
        _download(gpu, args[0], None, done.is_later)
    elif name == "copy_" and done.others:
        if isinstance(args[0], DeviceTensor):
            _upload(gpu, args[1], done.is_later)
        else:
            _download(gpu, args[1], args[0], done.is_later)
    elif name == "_to_copy" and not done.tagged:
        _upload(gpu, args[0], done.is_later)
    elif done.others and name.startswith(("index", "_index_put")):
        _upload(gpu, done.others[0], False)


def _upload(gpu: EmulatedGPU, source: Tensor, later: bool) -> None:
    with plain():
        pinned = source.is_pinned()
    if not (pinned and later):
        gpu.refuse_in_capture("a copy from memory that is not pinned, or that blocks")
    size = source.numel() * source.element_size()
    gpu.counts.add(kinds.UPLOAD, 1, f"{size:,} bytes" + (", pinned" if pinned else ""))


def _download(gpu: EmulatedGPU, source: Tensor, target: Tensor | None, later: bool) -> None:
    with plain():
        pinned = target is None or target.is_pinned()
    if not (later and pinned):
        gpu.sync_here(f"copy of {source.numel() * source.element_size():,} bytes to the CPU")
    elif target is not None:
        gpu.transfers.land(target)


def count_work(gpu: EmulatedGPU, done: Operation, outputs: list[Tensor]) -> None:
    """Count launches, and reads and writes of arrays as large as the state."""
    name, launches = done.name, done.launches
    if not launches:
        return
    gpu.counts.add(kinds.LAUNCH if gpu.capture is None else kinds.CAPTURED, launches, name)
    whole = gpu.counts.state_entries
    moved = rules.entries_moved(name, done.kwargs, done.tagged, outputs) if whole else []
    for entries in moved:
        if whole and 2 * entries >= whole:
            if gpu.capture is None:
                gpu.counts.add(kinds.PASSES, entries / whole, name)
            else:
                gpu.capture.passes += entries / whole
