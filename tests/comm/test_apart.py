"""Work that outlasts the limit of a collective: it succeeds, fails alike, or its rank is named."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_ignn.comm import apart as module
from distributed_ignn.comm.apart import apart
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.comm.lost_ranks import explained
from distributed_ignn.comm.processes import Process
from distributed_ignn.errors import JobError, UserError
from tests.ranks import run_ranks

LIMIT = 3.0
"""Seconds that a rank waits for another in a collective of these tests."""


def _in_turn(comm: Communicator) -> list[str | None]:
    """One rank works, and then two others on the same store."""
    first = apart(comm, lambda: f"by {comm.rank}", works=comm.rank == 1)
    second = apart(comm, lambda: f"by {comm.rank}", works=comm.rank != 1)
    comm.barrier()
    return [first, second]


def test_who_works_has_the_result() -> None:
    expected = [[None, "by 0"], ["by 1", None], [None, "by 2"]]
    assert run_ranks(_in_turn, 3, timeout=40) == expected


def _together(comm: Communicator) -> str:
    """Work in a collective, twice as long as its limit."""
    with pytest.raises(JobError) as caught, explained(comm):
        comm.together(lambda: time.sleep(2 * LIMIT) if comm.rank == 1 else None)
    return str(caught.value)


@pytest.mark.slow
def test_in_a_collective_it_may_not_take_so_long_and_the_setting_is_named() -> None:
    """So that the test of shards that outlast one can fail."""
    lines = run_ranks(_together, 2, timeout=40, limit=LIMIT)
    assert "slower than 3 s, raise comm.timeout_seconds" in lines[0]


def _mistakes(comm: Communicator) -> list[str]:
    """What the ranks are told, in the order of the ways to fail."""

    def wrong() -> None:
        raise UserError(f"rank {comm.rank} found no file; put it there")

    def full() -> None:
        raise OSError(28, "No space left on device")

    def work(action: Callable[[], None], who: int) -> str:
        with pytest.raises(UserError) as caught:
            apart(comm, action, works=comm.rank >= who, doing="write", way_out="free some")
        return str(caught.value)

    return [work(wrong, 1), work(wrong, 0), work(full, 1)]


def test_a_mistake_is_the_same_line_on_every_rank() -> None:
    expected = [
        "rank 1 found no file; put it there",
        "rank 0 found no file; put it there",
        "cannot write: No space left on device; free some",
    ]
    assert run_ranks(_mistakes, 3, timeout=40) == [expected] * 3
    assert [str(e) for e in _alone()] == ["no file"]


def _alone() -> list[UserError]:
    def wrong() -> None:
        raise UserError("no file")

    with pytest.raises(UserError) as caught:
        apart(Communicator(), wrong, works=True)
    return [caught.value]


def _with_a_victim(comm: Communicator, folder: Path, how: str) -> None:
    """Rank 1 ends in its work; the others write down what they are told, and when."""

    def work() -> None:
        (folder / "began").write_text(str(time.time()))
        if how == "killed":
            time.sleep(1.5)  # so that a heart has been heard
            os.kill(os.getpid(), signal.SIGKILL)
        raise ZeroDivisionError("a bug")

    try:
        with comm.activity.phase("finding shards"):
            apart(comm, work, works=comm.rank == 1)
    except JobError as error:
        line = f"{time.time()} {error.told} {error}"
        (folder / f"{comm.rank}.tmp").write_text(line)
        (folder / f"{comm.rank}.tmp").rename(folder / f"{comm.rank}")
    time.sleep(10)  # until the test has read them, or fails


@pytest.mark.parametrize("how", ["killed", "bug"])
def test_a_rank_that_ends_in_its_work_is_named_within_seconds(tmp_path: Path, how: str) -> None:
    with pytest.raises(AssertionError) as caught:
        run_ranks(_with_a_victim, 3, tmp_path, how, timeout=40, grace=5.0)
    if how == "bug":
        assert "ZeroDivisionError: a bug" in str(caught.value)
    began = float((tmp_path / "began").read_text())
    told = []
    for rank in (0, 2):
        when, quiet, line = (tmp_path / str(rank)).read_text().split(" ", 2)
        assert float(when) - began < 1.5 + 4.0
        told.append(quiet)
        named = {
            "killed": "rank 1 (last seen in finding shards) was lost",
            "bug": "rank 1 gave up (ZeroDivisionError: a bug)",
        }[how]
        assert line.startswith(f"{named}; rank {rank} waited for it in finding shards; ")
        assert line.endswith(
            "; if nothing starts the ranks again, start them yourself; "
            "a training goes on with --resume auto"
        )
    assert sorted(told) == ["False", "True"]  # one of them tells the user


class _Store:
    """A store in memory, of which only what is asked here is there."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key]


def test_a_silent_rank_of_another_machine_is_lost_and_a_slow_one_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_TELL_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    store = _Store()
    workers = [module._Worker(0, Process.this()), module._Worker(4, None)]
    watch = module._Watch(Communicator(), workers, store, 1.0)  # type: ignore[arg-type]
    beat = 0
    for turn in range(200):
        if turn < 100:
            beat += 1
        for rank in (0, 4):
            store.values[f"heart/{rank}"] = f'[{beat if rank else turn}, "loading"]'.encode()
        found = watch.lost()
        if found is not None:
            break
    assert found == "rank 4 (last seen in loading) was lost"
    assert 100 + module._SILENT_SECONDS <= turn <= 100 + module._SILENT_SECONDS + 15
    assert "waiting for rank 0 (loading) and rank 4 (loading), 0 s" in caplog.text
