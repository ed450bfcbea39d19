"""Rows through shared memory are the rows that sockets bring, and nothing of it stays behind."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm import shared_rows
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.comm.row_exchange import RowArena, RowExchange
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(120)

_COUNTS = torch.tensor([[0, 3, 0], [2, 0, 5], [4, 0, 0]])  # rows from (row) to (column)


def _plan(rank: int) -> tuple[list[int], list[int]]:
    return _COUNTS[rank].tolist(), _COUNTS[:, rank].tolist()


def _rows(rank: int, turn: int, width: int, dtype: torch.dtype) -> Tensor:
    count = int(_COUNTS[rank].sum())
    rows = torch.arange(count * width).view(count, width) + 100 * rank + 17 * turn
    return rows.to(dtype)


def _both_ways(comm: Communicator) -> tuple[bool, bool, list[str]]:
    """Whether shared memory was used, whether it agrees with sockets, and files left behind."""
    before = set(os.listdir("/dev/shm"))
    send, receive = _plan(comm.rank)
    equal = []
    for lag in (1, 2):
        arena = RowArena(comm, send, receive, 2 * lag)
        way = RowExchange(comm, send, receive, arena)
        back = RowExchange(comm, receive, send, arena)
        for width, dtype in ((4, torch.float32), (3, torch.float64), (5, torch.uint8)):
            waiting = []
            for turn in range(8):
                rows = _rows(comm.rank, turn, width, dtype)
                plain = comm.start_exchange(rows, send, receive).wait()
                waiting.append((way.start(rows), plain))
                if len(waiting) == lag:
                    pending, expected = waiting.pop(0)
                    arrived = pending.wait()
                    equal.append(torch.equal(arrived, expected))
                    home = comm.start_exchange(arrived, receive, send).wait()
                    equal.append(torch.equal(back.start(arrived).wait(), home))
    comm.barrier()
    left = [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("ignn-")]
    return comm.shares_memory, all(equal), left


def test_shared_memory_brings_what_sockets_bring() -> None:
    for shares, equal, left in run_ranks(_both_ways, 3, timeout=60):
        assert shares
        assert equal
        assert left == []


def test_remains_of_killed_ranks_are_removed(tmp_path: Path) -> None:
    """Not those of a process that lives, nor what is younger than a minute, nor others' files."""
    gone = 2**22 + 1  # above the largest process id
    names = [f"ignn-{gone}-a-0-1", f"ignn-{os.getpid()}-b-0-1", "ignn-other", "else"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f"ignn-{gone}-young-0-1").touch()
    with mock.patch.object(shared_rows, "_MEMORY", tmp_path):
        shared_rows.SharedRows.open(Communicator(), [0], 2)
    assert sorted(os.listdir(tmp_path)) == sorted([*names[1:], f"ignn-{gone}-young-0-1"])


def _without_room(comm: Communicator, culprit: int) -> tuple[bool, bool]:
    send, receive = _plan(comm.rank)
    rows = _rows(comm.rank, 0, 4, torch.float32)
    fault = mock.Mock(side_effect=OSError(28, "No space left on device"))
    fallocate = fault if comm.rank == culprit else os.posix_fallocate
    with mock.patch.object(shared_rows.os, "posix_fallocate", fallocate):
        arena = RowArena(comm, send, receive)
        way = RowExchange(comm, send, receive, arena)
        arrived = way.start(rows).wait()
    expected = comm.start_exchange(rows, send, receive).wait()
    return torch.equal(arrived, expected), arena.memory(16) is None


def test_a_rank_without_room_sends_all_ranks_back_to_sockets() -> None:
    for equal, fell_back in run_ranks(_without_room, 3, 1, timeout=60):
        assert equal
        assert fell_back


def test_a_file_that_cannot_be_mapped_is_noticed(tmp_path: Path) -> None:
    assert shared_rows._map(tmp_path / "absent" / "file", 2, 8) is None
    assert not shared_rows._create(tmp_path / "absent" / "file", 16)


def test_one_process_and_several_machines_share_nothing() -> None:
    assert not Communicator().shares_memory
    with mock.patch.object(Communicator, "backend", "gloo"):
        assert Communicator(0, 2).shares_memory
        assert not Communicator(0, 2, spans_machines=True).shares_memory
        assert not Communicator(0, 2, shares_memory=False).shares_memory
