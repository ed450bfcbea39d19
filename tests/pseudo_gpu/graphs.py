"""CUDA graphs: what is captured is recorded, and replayed on the same storage.

As on a GPU, capturing does nothing to memory: what the operations wrote while they were recorded is
undone at the end, and what they made holds no numbers before the first replay. They do run while
they are recorded, because shapes come from there. A replay is one launch.

Refused while capturing: whatever the host waits for, copies from memory that is not pinned, pinned
memory that is made on the way. Refused at a replay: memory that has been freed since, rows of an
exchange not waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu import gpu_rules as rules
from tests.pseudo_gpu.entered import emulator
from tests.pseudo_gpu.streams import Stream, current_stream, default_stream
from tests.pseudo_gpu.tensor import address, plain, tensors_in

if TYPE_CHECKING:
    from tests.pseudo_gpu.emulator import EmulatedGPU

_COPIES = ("copy_", "_to_copy")


class Recording:
    """Operations in their order, and the memory that they touch.

    Args:
        gpu: the emulator.
    """

    def __init__(self, gpu: EmulatedGPU) -> None:
        self.gpu = gpu
        self.steps: list[Callable[[], None]] = []
        self.broken: str | None = None
        self.passes = 0.0  # over arrays as large as the state, in each replay
        self._outside: dict[int, Tensor] = {}  # by storage, what was there before
        self._made: dict[int, Tensor] = {}
        self._written: set[int] = set()
        self._before: dict[int, tuple[Tensor, Any]] = {}  # by storage, what it held

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keep what an operation is about to overwrite."""
        for one in tensors_in(args, kwargs):
            if address(one) and address(one) not in self._made:
                self._outside.setdefault(address(one), one)
        for one in rules.written_of(func, args, kwargs):
            self.keep(one)

    def keep(self, written: Tensor) -> None:
        """Keep the numbers of a CPU tensor that is about to be overwritten."""
        key = address(written)
        self._written.add(key)
        if key and key not in self._made and key not in self._before:
            with plain():
                self._before[key] = written, written.untyped_storage().clone()

    def after(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        """Record an operation that has been done on CPU tensors."""
        name = func.overloadpacket.__name__
        for one in outputs:
            if address(one) and address(one) not in self._outside:
                self._made.setdefault(address(one), one)
        if func.is_view or rules.launches_of(func, name, []) == 0:
            return
        if name not in _COPIES:
            # a number on the CPU goes into the launch as it is now
            args = tuple(self._baked(one) for one in args)
        device = torch.device("cuda", self.gpu.current_device)

        def step() -> None:
            again = self.gpu.with_seed(func, args, kwargs, device)
            for new, old in zip(tensors_in((again,), {}), outputs, strict=True):
                if address(new) != address(old) and old.layout is torch.strided:
                    old.copy_(new)
            if name == "copy_" and args[0].is_pinned():
                self.gpu.transfers.land(args[0])

        self.steps.append(step)

    def _baked(self, value: Any) -> Any:
        """A number of the CPU as it is now; whatever is on the device as it will be."""
        if not isinstance(value, Tensor) or value.dim() > 0:
            return value
        if self.gpu.memory.holds(address(value)) or address(value) in self._made:
            return value
        with plain():
            return value.clone()

    def end(self) -> None:
        """Undo what recording did to memory."""
        with plain():
            for tensor, held in self._before.values():
                tensor.untyped_storage().copy_(held)
            for tensor in self._made.values():
                if tensor.is_floating_point():
                    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                    whole.fill_(torch.nan)
        self._before.clear()

    def replay(self) -> None:
        """Do it all again; one launch."""
        self._check()
        outside = list(self._outside.values())
        written = [one for one in outside if address(one) in self._written]
        self.gpu.note_order("replay", outside, written)
        self.gpu.counts.add(kinds.LAUNCH, 1, "replay of a graph")
        if self.passes:
            self.gpu.counts.add(kinds.PASSES, self.passes, "replay of a graph")
        with plain():
            for step in self.steps:
                step()

    def _check(self) -> None:
        for key, inner in self._outside.items():
            self.gpu.transfers.check("replay", inner, written=key in self._written)
            with plain():
                on_host = inner.is_pinned() or inner.dim() == 0
            if not self.gpu.memory.holds(key) and not on_host:
                self.gpu.fault(f"a graph replays on freed memory, shape {tuple(inner.shape)}")


class CUDAGraph:
    """As torch's, for what this project may ask of it."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._recording: Recording | None = None
        self._pool: Any = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        gpu = emulator()
        if current_stream() is default_stream():
            gpu.fault("CUDA graphs are captured on a stream that is not the default one")
        gpu.refuse_in_capture("another capture")
        if self._recording is not None:
            gpu.fault("this CUDAGraph has been captured; reset() it first")
        self._pool = pool or (id(self), 0)
        gpu.capture = Recording(gpu)

    def capture_end(self) -> None:
        gpu = emulator()
        recording, gpu.capture = gpu.capture, None
        if recording is None:
            raise RuntimeError("capture_end without capture_begin")
        recording.end()
        if recording.broken is not None:
            gpu.fault(f"the capture was broken: {recording.broken}")
        self._recording = recording

    def instantiate(self) -> None:
        """Nothing is left to do."""

    def replay(self) -> None:
        if self._recording is None:
            raise RuntimeError("a CUDAGraph is replayed that has captured nothing")
        emulator().refuse_in_capture("a replay")
        self._recording.replay()

    def reset(self) -> None:
        self._recording = None

    def pool(self) -> Any:
        return self._pool


class Capturing:
    """``torch.cuda.graph``: captures what is done inside.

    Args:
        cuda_graph: which receives it.
        pool: of another graph.
        stream: to capture on; a new one by default.
        modes: of ``capture_begin``.
    """

    def __init__(self, cuda_graph: Any, pool: Any = None, stream: Any = None, **modes: Any) -> None:
        self._graph, self._pool, self._modes = cuda_graph, pool, modes
        self._stream = stream or Stream(aside=False)

    def __enter__(self) -> None:
        emulator().sync("torch.cuda.graph, before it captures")
        with ExitStack() as entered:
            entered.enter_context(self._stream)
            self._graph.capture_begin(self._pool, **self._modes)
            entered.pop_all()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        gpu = emulator()
        try:
            if kind is None:
                self._graph.capture_end()
            elif gpu.capture is not None:
                gpu.capture.end()
        finally:
            gpu.capture = None
            self._stream.__exit__(kind, *rest)


def graph_patches(gpu: EmulatedGPU) -> list[tuple[Any, str, Any]]:
    """What takes the place of ``torch.cuda``'s graphs."""
    cuda = torch.cuda
    return [
        (cuda, "CUDAGraph", CUDAGraph),
        (cuda, "graph", Capturing),
        (cuda, "graph_pool_handle", lambda: (id(object()), 1)),
        (cuda, "is_current_stream_capturing", lambda: gpu.capture is not None),
    ]
