"""Rows from rank to rank of one machine through memory that both map, instead of sockets.

Gloo copies what it sends through the kernel twice; here a sender writes once and a receiver reads
once, and what is sent is one number to say that the rows are there. Each ordered pair of ranks has
a file in memory with room for several exchanges. If a rank begins an exchange only when it has read
the one that many before it, ``lag``, then a sender that has waited for exchange k - lag knows that
all ranks have begun it, hence read k - 2 lag: room for 2 lag exchanges is enough. Files lose their
names as soon as both sides have mapped them, so nothing is left behind, whatever ends a rank; if
one is killed in between, the next job removes its files.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator

_MEMORY = Path("/dev/shm")
_PREFIX = "ignn-"
_OLD_SECONDS = 60.0


class SharedRows:
    """The mapped files between this rank and each other one.

    Args:
        outgoing: per receiving rank, uint8 [rooms, bytes], or None where nothing goes.
        incoming: per sending rank, likewise.
        rooms: exchanges that have room.
    """

    def __init__(
        self, outgoing: list[Tensor | None], incoming: list[Tensor | None], rooms: int
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._rooms = rooms
        self._turn = 0

    @classmethod
    def open(cls, comm: Communicator, sizes: Sequence[int], rooms: int) -> SharedRows | None:
        """Create and map the files, every rank together; None where some rank could not.

        Args:
            comm: this rank's communicator.
            sizes: bytes of an exchange between this rank and each other one, the same both ways.
            rooms: exchanges that have room.
        """
        folder = _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())
        _remove_remains(folder)
        token = comm.gather_json(f"{os.getpid()}-{uuid.uuid4().hex}" if comm.is_main else None)[0]

        def path(sender: int, receiver: int) -> Path:
            return folder / f"{_PREFIX}{token}-{sender}-{receiver}"

        others = [rank for rank, size in enumerate(sizes) if size]
        own = {rank: path(comm.rank, rank) for rank in others}
        try:
            made = [_create(own[rank], rooms * sizes[rank]) for rank in others]
            if not _all(comm, all(made)):
                return None
            outgoing: list[Tensor | None] = [None] * len(sizes)
            incoming: list[Tensor | None] = [None] * len(sizes)
            for rank in others:
                outgoing[rank] = _map(own[rank], rooms, sizes[rank])
                incoming[rank] = _map(path(rank, comm.rank), rooms, sizes[rank])
            mapped = all(
                outgoing[rank] is not None and incoming[rank] is not None for rank in others
            )
            return cls(outgoing, incoming, rooms) if _all(comm, mapped) else None
        finally:
            for file in own.values():
                file.unlink(missing_ok=True)

    def next_turn(self) -> int:
        """The room of the next exchange."""
        turn, self._turn = self._turn, (self._turn + 1) % self._rooms
        return turn

    def write(self, turn: int, rows: Tensor, send_counts: Sequence[int]) -> None:
        """Put rows [sum(send_counts), D] where their receivers find them."""
        for block, part in zip(self._outgoing, rows.split(list(send_counts)), strict=True):
            if block is not None:
                _view(block[turn], part.shape, part.dtype).copy_(part)

    def gather(self, turn: int, rows: Tensor, index: Tensor, send_counts: Sequence[int]) -> None:
        """As ``write`` for ``rows[index]``, rows [O, D] and index [sum(send_counts)]."""
        for block, part in zip(self._outgoing, index.split(list(send_counts)), strict=True):
            if block is not None:
                shape = torch.Size((part.numel(), rows.shape[1]))
                torch.index_select(rows, 0, part, out=_view(block[turn], shape, rows.dtype))

    def read(self, turn: int, received: Tensor, recv_counts: Sequence[int]) -> None:
        """Copy what arrived in a turn to ``received`` [sum(recv_counts), D]."""
        for block, part in zip(self._incoming, received.split(list(recv_counts)), strict=True):
            if block is not None:
                part.copy_(_view(block[turn], part.shape, part.dtype))

    def borrow(
        self, turn: int, width: int, dtype: torch.dtype, recv_counts: Sequence[int]
    ) -> Tensor | None:
        """What arrives in a turn, in place; None unless it all comes from one rank."""
        senders = [rank for rank, count in enumerate(recv_counts) if count]
        block = self._incoming[senders[0]] if len(senders) == 1 else None
        if block is None:
            return None
        return _view(block[turn], torch.Size((recv_counts[senders[0]], width)), dtype)


def _remove_remains(folder: Path) -> None:
    """Remove what ranks have left that were killed between creating and mapping their files."""
    for path in folder.glob(f"{_PREFIX}*"):
        owner = path.name.removeprefix(_PREFIX).partition("-")[0]
        with suppress(OSError):
            # a process of another container may be alive under a number that means nothing here,
            # but it does not take a minute to map a file
            old = time.time() - path.stat().st_mtime > _OLD_SECONDS
            if old and owner.isdecimal() and not Path(f"/proc/{owner}").exists():
                path.unlink()


def _view(room: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The front of a room as rows."""
    return room[: shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _all(comm: Communicator, fine: bool) -> bool:
    """Whether it is so on every rank."""
    return int(comm.sum(torch.tensor([int(not fine)]))) == 0


def _create(path: Path, size: int) -> bool:
    """A file of so many bytes with the memory for them; False where there is no room."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return False
    try:
        # without it, a full file system would end the process at the first write
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _map(path: Path, rooms: int, size: int) -> Tensor | None:
    """A file as uint8 [rooms, size]; None where that does not work."""
    try:
        whole = torch.from_file(str(path), shared=True, size=rooms * size, dtype=torch.uint8)
    except (OSError, RuntimeError):
        return None
    return whole.view(rooms, size)
