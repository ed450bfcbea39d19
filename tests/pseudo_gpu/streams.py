"""Streams and events of the emulated GPU, where operations are done in the order of the program."""

from __future__ import annotations

import itertools
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from tests.pseudo_gpu.entered import emulator
from tests.pseudo_gpu.stream_order import Ticks

if TYPE_CHECKING:
    from tests.pseudo_gpu.emulator import EmulatedGPU

_numbers = itertools.count(1)
_LEAST_PRIORITY, _GREATEST_PRIORITY = 0, -5


class Stream:
    """As torch's: a queue of a device, which may be entered.

    Args:
        device: of the queue.
        priority: brought into ``priority_range``, as CUDA does.
        aside: whether it is a program's own, so that there is an order to watch from now on.
    """

    def __init__(
        self, device: Any = None, priority: int = 0, *, aside: bool = True, **_: Any
    ) -> None:
        self.device = torch.device("cuda", emulator().index_of(device))
        self.priority = max(_GREATEST_PRIORITY, min(_LEAST_PRIORITY, priority))
        self.cuda_stream = next(_numbers)
        maker = sys._getframe(1).f_code.co_filename
        # a library keeps an order of its own, in autograd's threads too
        emulator().order.watched |= aside and "site-packages" not in maker

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return _LEAST_PRIORITY, _GREATEST_PRIORITY

    def synchronize(self) -> None:
        gpu = emulator()
        gpu.sync("Stream.synchronize")
        gpu.order.host_waits(gpu.order.mark(self.cuda_stream))

    def query(self) -> bool:
        gpu = emulator()
        gpu.refuse_in_capture("Stream.query")
        gpu.transfers.arrive(gpu.transfers.ticks)
        gpu.order.host_waits(gpu.order.mark(self.cuda_stream))
        return True

    def wait_stream(self, stream: Any) -> None:
        """The host does not wait."""
        order = emulator().order
        order.wait(self.cuda_stream, order.mark(stream.cuda_stream))

    def wait_event(self, event: Any) -> None:
        """The host does not wait."""
        emulator().order.wait(self.cuda_stream, event.mark)

    def record_event(self, event: Any = None) -> Any:
        event = event or Event()
        event.record(self)
        return event

    def __enter__(self) -> Stream:
        _inside().append(self)
        return self

    def __exit__(self, *args: Any) -> None:
        _inside().pop()


class Event:
    """As torch's: a mark in a queue. Those that are alive are counted.

    Args:
        enable_timing: whether ``elapsed_time`` may be asked.
    """

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.timing = enable_timing
        self.recorded: int | None = None
        self.mark: Ticks = {}
        emulator().note_event(self)

    def record(self, stream: Any = None) -> None:
        gpu = emulator()
        self.recorded = gpu.transfers.ticks
        self.mark = gpu.order.mark((stream or current_stream()).cuda_stream)

    def wait(self, stream: Any = None) -> None:
        """The host does not wait."""
        (stream or current_stream()).wait_event(self)

    def query(self) -> bool:
        gpu = emulator()
        gpu.refuse_in_capture("Event.query")
        gpu.transfers.arrive(self.recorded or 0)
        gpu.order.host_waits(self.mark)
        return True

    def synchronize(self) -> None:
        gpu = emulator()
        gpu.sync("Event.synchronize", self.recorded or 0)
        gpu.order.host_waits(self.mark)

    def elapsed_time(self, end: Any) -> float:
        if not (self.timing and end.timing) or None in (self.recorded, end.recorded):
            raise ValueError("both events have to be recorded, and made with enable_timing")
        emulator().refuse_in_capture("Event.elapsed_time")
        return 0.001


def _inside() -> list[Stream]:
    """The streams that are entered; autograd's threads go on where forward was."""
    found: list[Stream] = emulator().entered_streams
    return found


def default_stream(device: Any = None) -> Stream:
    """The queue of all that names no other."""
    gpu = emulator()
    index = gpu.index_of(device)
    if index not in gpu.default_streams:
        gpu.default_streams[index] = Stream(index, aside=False)
    found: Stream = gpu.default_streams[index]
    return found


def current_stream(device: Any = None) -> Stream:
    """The one that was entered last."""
    return _inside()[-1] if _inside() else default_stream(device)


def stream_patches(gpu: EmulatedGPU) -> list[tuple[Any, str, Any]]:
    """What takes the place of ``torch.cuda``'s streams and events."""

    def synchronize(device: Any = None) -> None:
        gpu.sync("torch.cuda.synchronize")
        gpu.order.host_waits_for_all()

    cuda = torch.cuda
    return [
        (cuda, "Stream", Stream),
        (cuda, "Event", Event),
        (cuda, "stream", lambda stream: nullcontext() if stream is None else stream),
        (cuda, "current_stream", current_stream),
        (cuda, "default_stream", default_stream),
        (cuda, "synchronize", synchronize),
    ]
