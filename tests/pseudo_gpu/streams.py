"""Streams and events of the emulated GPU, where operations are done in the order of the program."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from tests.pseudo_gpu.entered import emulator

if TYPE_CHECKING:
    from tests.pseudo_gpu.emulator import EmulatedGPU

_LEAST_PRIORITY, _GREATEST_PRIORITY = 0, -5


class Stream:
    """As torch's: a queue of a device, which may be entered.

    Args:
        device: of the queue.
        priority: brought into ``priority_range``, as CUDA does.
    """

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = torch.device("cuda", emulator().index_of(device))
        self.priority = max(_GREATEST_PRIORITY, min(_LEAST_PRIORITY, priority))
        self.cuda_stream = id(self)

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return _LEAST_PRIORITY, _GREATEST_PRIORITY

    def synchronize(self) -> None:
        emulator().sync("Stream.synchronize")

    def query(self) -> bool:
        gpu = emulator()
        gpu.refuse_in_capture("Stream.query")
        gpu.arrive(gpu.ticks)
        return True

    def wait_stream(self, stream: Any) -> None:
        """The host does not wait."""

    def wait_event(self, event: Any) -> None:
        """The host does not wait."""

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
        emulator().note_event(self)

    def record(self, stream: Any = None) -> None:
        self.recorded = emulator().ticks

    def wait(self, stream: Any = None) -> None:
        """The host does not wait."""

    def query(self) -> bool:
        gpu = emulator()
        gpu.refuse_in_capture("Event.query")
        gpu.arrive(self.recorded or 0)
        return True

    def synchronize(self) -> None:
        emulator().sync("Event.synchronize", self.recorded or 0)

    def elapsed_time(self, end: Any) -> float:
        if not (self.timing and end.timing) or None in (self.recorded, end.recorded):
            raise ValueError("both events have to be recorded, and made with enable_timing")
        emulator().refuse_in_capture("Event.elapsed_time")
        return 0.001


_here = threading.local()


def _inside() -> list[Stream]:
    """The streams that this thread has entered."""
    if not hasattr(_here, "streams"):
        _here.streams = []
    found: list[Stream] = _here.streams
    return found


def default_stream(device: Any = None) -> Stream:
    """The queue of all that names no other."""
    gpu = emulator()
    index = gpu.index_of(device)
    if index not in gpu.default_streams:
        gpu.default_streams[index] = Stream(index)
    found: Stream = gpu.default_streams[index]
    return found


def current_stream(device: Any = None) -> Stream:
    """The one that was entered last."""
    return _inside()[-1] if _inside() else default_stream(device)


def stream_patches(gpu: EmulatedGPU) -> list[tuple[Any, str, Any]]:
    """What takes the place of ``torch.cuda``'s streams and events."""
    cuda = torch.cuda
    return [
        (cuda, "Stream", Stream),
        (cuda, "Event", Event),
        (cuda, "stream", lambda stream: nullcontext() if stream is None else stream),
        (cuda, "current_stream", current_stream),
        (cuda, "default_stream", default_stream),
        (cuda, "synchronize", lambda device=None: gpu.sync("torch.cuda.synchronize")),
    ]
