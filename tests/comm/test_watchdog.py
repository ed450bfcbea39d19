"""The watchdog names who is silent or gone, and nobody who has left in peace or is merely slow."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from distributed_ignn.comm import watchdog as module
from distributed_ignn.comm.activity import Activity, Patience
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.comm.lost_ranks import explained, is_broken_connection, table
from distributed_ignn.comm.watchdog import TALKS, Watchdog
from distributed_ignn.errors import JobError
from tests.comm.leavers import check_that_leavers_are_named

SECONDS = 1.0


def _watchdog(path: Path, rank: int, world_size: int = 2, seconds: float = SECONDS) -> Watchdog:
    def connect() -> dist.Store:
        store = dist.FileStore(str(path), -1)
        store.set_timeout(timedelta(seconds=20))
        return store

    activity = Activity()
    activity.epoch = 3
    return Watchdog(rank, world_size, activity, seconds, connect, "host:1")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes that the process would have ended with."""
    found: list[int] = []
    monkeypatch.setattr("os._exit", found.append)
    return found


def _beat(
    path: Path, rank: int, beats: int, state: str = "alive", gone: Sequence[int] = ()
) -> None:
    store = dist.FileStore(str(path), -1)
    store.set(f"beat/{rank}", json.dumps([beats, state, "epoch 2, validating", list(gone)]))


def test_two_that_answer_leave_each_other_alone(tmp_path: Path, ends: list[int]) -> None:
    watchdogs = [_watchdog(tmp_path / "store", rank) for rank in (0, 1)]
    for watchdog in watchdogs:
        watchdog.start()
    time.sleep(3 * SECONDS)
    for watchdog in watchdogs:
        watchdog.end()
        watchdog.close()
    assert ends == []
    assert table(watchdogs[0])["1"]["doing"] == "epoch 3, starting"


def test_one_that_leaves_at_once_has_said_so_and_leaves_no_thread(tmp_path: Path) -> None:
    """A thread that waits for a rank's first word would abort the interpreter at its end."""
    watchdogs = [_watchdog(tmp_path / "store", rank, seconds=60) for rank in (0, 1)]
    for watchdog in watchdogs:
        watchdog.start()
        watchdog.end()
    watchdogs[1].close()
    watchdogs[0].close()
    assert json.loads(dist.FileStore(str(tmp_path / "store"), -1).get("beat/1"))[1] == "ended"
    assert not [thread for thread in threading.enumerate() if thread.name == TALKS]


def test_silence_is_named_told_and_ends_the_process(
    tmp_path: Path, ends: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    _beat(tmp_path / "store", 1, beats=7)
    told: list[str] = []
    watchdog = _watchdog(tmp_path / "store", 0)
    watchdog.before_exit.append(told.append)
    watchdog.start()
    deadline = time.monotonic() + 10 * SECONDS
    while not ends and time.monotonic() < deadline:
        time.sleep(0.05)
    watchdog.end()
    watchdog.close()
    assert ends[0] == 75
    line = "no answer for 1 s from rank 1 (last seen in epoch 2, validating); rank 0 was in epoch 3"
    assert line in told[0]
    assert f"error: {line}" in capsys.readouterr().err


def test_who_has_ended_is_not_missed(tmp_path: Path, ends: list[int]) -> None:
    _beat(tmp_path / "store", 1, beats=7, state="ended")
    watchdog = _watchdog(tmp_path / "store", 0)
    watchdog.start()
    time.sleep(3 * SECONDS)
    watchdog.end()
    watchdog.close()
    assert ends == []


def test_a_store_that_is_gone_is_noticed_too(tmp_path: Path, ends: list[int]) -> None:
    blocked = threading.Event()

    def connect() -> dist.Store:
        blocked.wait(20)
        raise RuntimeError("no store")

    watchdog = Watchdog(1, 2, Activity(), SECONDS, connect, "10.0.0.1:29500")
    told: list[str] = []
    watchdog.before_exit.append(told.append)
    watchdog.start()
    deadline = time.monotonic() + 10 * SECONDS
    while not ends and time.monotonic() < deadline:
        time.sleep(0.05)
    watchdog.end()
    blocked.set()
    watchdog.close()
    assert ends[0] == 75
    assert "no answer for 1 s from 10.0.0.1:29500, where rank 0 keeps the ranks together" in told[0]


def test_a_broken_connection_names_who_is_silent(tmp_path: Path) -> None:
    _beat(tmp_path / "store", 1, beats=7)
    _beat(tmp_path / "store", 2, beats=7, state="ended")
    comm = Communicator(0, 1)
    comm.watchdog = _watchdog(tmp_path / "store", 0, world_size=3, seconds=60)
    comm.watchdog.start()
    with pytest.raises(JobError) as caught, explained(comm), comm.activity.phase("forward solve"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    comm.watchdog.close()
    line = "rank 1 (last seen in epoch 2, validating) was lost; rank 0 was in forward solve; "
    assert str(caught.value).startswith(line)
    assert not caught.value.told


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), explained(Communicator()):
        raise RuntimeError("size mismatch")
    assert not is_broken_connection(ValueError("gloo/ Connection"))
    assert is_broken_connection(dist.DistNetworkError("gone"))


@pytest.mark.slow
def test_a_lost_rank_is_named_by_one_whose_wait_never_fails(tmp_path: Path) -> None:
    """Each within seconds, while ``comm.hang_seconds`` is two minutes."""
    check_that_leavers_are_named("cpu", tmp_path)


def test_who_is_told_to_be_gone_is_lost_and_who_told_is_not(
    tmp_path: Path, ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine that this rank cannot see: rank 1 says that rank 2 has died there, and goes."""
    monkeypatch.setattr(module, "_NAMING_SECONDS", SECONDS / 2)
    _beat(tmp_path / "store", 1, beats=7, state="ended", gone=[2])
    _beat(tmp_path / "store", 2, beats=9)
    told: list[str] = []
    watchdog = _watchdog(tmp_path / "store", 0, world_size=3, seconds=60 * SECONDS)
    watchdog.before_exit.append(told.append)
    watchdog.start()
    _until(lambda: ends, 10 * SECONDS)
    watchdog.end()
    watchdog.close()
    assert ends[0] == 75
    assert told[0].startswith("rank 2 (last seen in epoch 2, validating) was lost; rank 0 was in ")
    assert "comm.hang_seconds" not in told[0]


def test_who_ends_after_its_last_phase_is_not_lost(
    tmp_path: Path, ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others may take their time, as for a table or a plot: they are in no phase."""
    monkeypatch.setattr(module, "_LEAVING_SECONDS", SECONDS / 2)
    _beat(tmp_path / "store", 1, beats=7, state="ended")
    watchdog = _watchdog(tmp_path / "store", 0, seconds=60 * SECONDS)
    watchdog.start()
    time.sleep(3 * SECONDS)
    assert ends == []
    with watchdog._activity.phase("loading"), watchdog._activity.without_limit():
        time.sleep(2 * SECONDS)  # a download is worth finishing
    assert ends == []
    with watchdog._activity.phase("forward solve"):
        _until(lambda: ends, 10 * SECONDS)
    watchdog.end()
    watchdog.close()
    assert ends[0] == 75


def test_a_collective_that_never_ends_is_told_where_the_transport_has_no_limit() -> None:
    calls = [0]
    patience, activity = Patience(10.0, lambda: calls[0]), Activity()

    def turns(count: int) -> list[bool]:
        return [patience.is_over(activity, 1.0) for _ in range(count)]

    assert not any(turns(30))  # in no phase
    with activity.phase("forward solve"):
        assert turns(12) == [False] * 10 + [True] * 2
        calls[0] += 1
        assert not any(turns(10))
        with activity.without_limit():  # a download
            assert not any(turns(30))
        assert not any(turns(10))


def _until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_one_that_sees_the_others_off_waits_until_they_have_ended(tmp_path: Path) -> None:
    watchdogs = [_watchdog(tmp_path / "store", rank, seconds=60) for rank in (0, 1)]
    for watchdog in watchdogs:
        watchdog.start()
    gone: list[float] = []

    def leave_late() -> None:
        time.sleep(0.6)
        gone.append(time.monotonic())
        watchdogs[1].end()

    other = threading.Thread(target=leave_late)
    other.start()
    watchdogs[0].see_off()
    assert gone
    assert time.monotonic() - gone[0] < 4.0
    other.join()
    for watchdog in watchdogs[::-1]:
        watchdog.close()
