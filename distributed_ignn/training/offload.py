"""Rows that wait in host memory until they are used again (``train.offload``).

What waits: the warm starts of the solves that are not running, and Adam's moments of a node
embedding between its steps. Nothing else as large as the state is kept from one use to the next: a
history ends with its solve, features are read by every b(X).

Copies run on a stream of their own, behind the products, in blocks of rows, so that the few numbers
that an iteration waits for need not wait for a whole state. They change no bit of what they carry.

Letters: O owned nodes, D columns.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError

BLOCK_BYTES = 2**26
"""Of one copy: two milliseconds at 32 GB/s."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """Rows on their way back.

    Args:
        rows: [O, ...] on the device.
        event: of the copy's end; None where it is over.
    """

    rows: Tensor
    event: Any


class HostRoom:
    """Pinned host memory for rows of one device.

    Args:
        device: a GPU; on a CPU, as tests have it, copies are made at once.
        block_bytes: of one copy.
    """

    def __init__(self, device: torch.device, block_bytes: int = BLOCK_BYTES) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._block_bytes = block_bytes
        # what the copies' stream still reads or writes, whoever else has let go of it, and when
        # that is over; its memory must not be taken for anything else until then
        self._moving: dict[int, tuple[Any, Tensor]] = {}
        if self._stream is not None:
            weakref.finalize(self, self._stream.synchronize).atexit = False

    def leave(self, rows: Tensor) -> Tensor:
        """Begin to copy rows [O, ...] to the host.

        The device's memory is free once the copy is over and nobody else holds the rows. The host's
        copy is for ``back`` alone until then; torch rounds its size up to a power of two.
        """
        self._sweep()
        there = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=self._on_gpu)
        with self._aside():
            for part in self._blocks(rows):
                there[part].copy_(rows[part], non_blocking=True)
        self._mark(rows)
        return there

    def begin_back(self, there: Tensor) -> Arrival:
        """Begin to copy what waits to the device."""
        self._sweep()
        rows = torch.empty(there.shape, dtype=there.dtype, device=self._device)
        with self._aside():
            for part in self._blocks(there):
                rows[part].copy_(there[part], non_blocking=True)
        return Arrival(rows, self._mark(rows))

    def back(self, coming: Arrival) -> Tensor:
        """The rows, for whatever is started from now on; the host does not wait."""
        if coming.event is not None:
            coming.event.wait(torch.cuda.current_stream(self._device))
            self._moving.pop(id(coming.rows), None)
        self._sweep()
        return coming.rows

    def settle(self) -> None:
        """Wait until all copies are over, so that the host may read them; let go of the rows."""
        if self._stream is not None:
            self._stream.synchronize()
        self._moving.clear()

    def _blocks(self, rows: Tensor) -> Iterator[slice]:
        count = rows.shape[0]
        each = rows.element_size() * max(rows.numel() // max(count, 1), 1)
        step = max(self._block_bytes // each, 1)
        return (slice(first, first + step) for first in range(0, count, step))

    def _aside(self) -> AbstractContextManager[Any]:
        """On the copies' stream, after all that has been started so far."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)

    def _mark(self, rows: Tensor) -> Any:
        """Hold rows until the copies that have been started are over; the event of that."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(self._stream)
        self._moving[id(rows)] = event, rows
        return event

    def _sweep(self) -> None:
        """Let go of rows that have been copied."""
        for key in [key for key, (event, _) in self._moving.items() if event.query()]:
            del self._moving[key]


class WaitingStates(MutableMapping[str, Tensor]):
    """States [O, D] by name that wait in host memory; whoever asks for one has it on the device.

    Args:
        room: where they wait.
    """

    def __init__(self, room: HostRoom) -> None:
        self._room = room
        self._there: dict[str, Tensor] = {}
        self._coming: dict[str, Arrival] = {}

    def __setitem__(self, name: str, rows: Tensor) -> None:
        self._coming.pop(name, None)
        self._there[name] = self._room.leave(rows)

    def __getitem__(self, name: str) -> Tensor:
        self.expect(name)
        there = self._there[name]
        coming = self._coming.pop(name, None)
        return self._room.back(coming or self._room.begin_back(there))

    def __delitem__(self, name: str) -> None:
        del self._there[name]
        self._coming.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._there)

    def __len__(self) -> int:
        return len(self._there)

    def settle(self) -> None:
        """Wait until what was left has been copied, and let go of it."""
        self._room.settle()

    def expect(self, name: str) -> None:
        """Begin to bring a state back, if there is one of this name: it is needed soon."""
        if name in self._there and name not in self._coming:
            self._coming[name] = self._room.begin_back(self._there[name])


def offload_moments(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], room: HostRoom
) -> None:
    """Let the moments [O, D] of parameters wait between the optimiser's steps.

    ``optimizer.state`` holds the host's copies meanwhile; they are whole after ``room.settle()``.
    """

    def moved(move: Callable[[Tensor], Tensor]) -> None:
        for parameter in parameters:
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[key] = move(value)

    def here(value: Tensor) -> Tensor:
        waits = value.device.type == "cpu"
        return room.back(room.begin_back(value)) if waits else value

    optimizer.register_step_pre_hook(lambda *_: moved(here))
    optimizer.register_step_post_hook(lambda *_: moved(room.leave))


def settle(states: MutableMapping[str, Tensor]) -> None:
    """Have states that have been left gone from the device before more is allocated there."""
    if isinstance(states, WaitingStates):
        states.settle()


def expect(states: MutableMapping[str, Tensor], name: str) -> None:
    """Say that a state is needed soon, where that makes a difference."""
    if isinstance(states, WaitingStates):
        states.expect(name)


def room_for(offload: bool, device: torch.device) -> HostRoom | None:
    """Where rows of ``device`` wait; None where they stay.

    Raises:
        UserError: there is no GPU whose memory they would leave.
    """
    if not offload:
        return None
    require_gpu(device)
    return HostRoom(device)


def require_effect(config: RunConfig, embedded: bool) -> None:
    """Refuse a run in which nothing would wait.

    Args:
        config: the run.
        embedded: whether nodes have an embedding whose optimiser is torch's.

    Raises:
        UserError: every solve starts anew, and there are no moments of an embedding.
    """
    warm = config.forward.warm_start or config.adjoint.warm_start
    if config.train.offload and not (warm or embedded):
        raise UserError(
            "train.offload = true has no effect: forward.warm_start and adjoint.warm_start are "
            "false, and there is no embedding of nodes; drop it"
        )


def require_gpu(device: torch.device) -> None:
    """Refuse a setting that would have no effect.

    Raises:
        UserError: the run is on a CPU, whose memory is the host's.
    """
    if device.type != "cuda":
        raise UserError(
            "train.offload = true moves states from a GPU's memory to the host's, and this run is "
            f"on a {device.type.upper()}; drop it"
        )
