"""Ranks that meet in a store which an earlier attempt has used find each other and nobody else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from distributed_ignn.comm.rendezvous import agree_on_attempt
from distributed_ignn.errors import JobError

RANKS = 3


def _attempt(path: Path, order: list[int]) -> list[str]:
    """What each rank agrees on, started in an order."""
    found: dict[int, str] = {}

    def join(rank: int) -> None:
        store = dist.FileStore(str(path), -1)
        store.set_timeout(timedelta(seconds=20))
        found[rank] = agree_on_attempt(store, rank, RANKS, 20)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
        thread.join(0.3)
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(RANKS)]


def test_every_attempt_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Whoever comes first, and although the words of the attempts before are still there."""
    names = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        found = _attempt(tmp_path / "store", order)
        assert len(set(found)) == 1
        names.append(found[0])
    assert len(set(names)) == 3


def test_a_rank_of_an_attempt_before_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    """Its word under this attempt's name is replaced by that of the rank which is alive."""
    store = dist.FileStore(str(tmp_path / "store"), -1)
    store.set("ignn/leader", "old")
    store.set("ignn/old/joined/1", "dead")
    store.set("ignn/old/started", json.dumps({"1": "dead", "2": "dead"}))
    found = _attempt(tmp_path / "store", [1, 2, 0])
    assert len(set(found)) == 1
    assert found[0] != "old"


@pytest.mark.parametrize(("rank", "absent"), [(0, "rank 1, 2"), (1, "rank 0")])
def test_who_does_not_come_is_named(tmp_path: Path, rank: int, absent: str) -> None:
    store = dist.FileStore(str(tmp_path / "store"), -1)
    with pytest.raises(JobError, match=f"waited 0.2 s .* for {absent} to start"):
        agree_on_attempt(store, rank, RANKS, 0.2)


def test_a_program_that_accepts_and_says_nothing_is_not_waited_for() -> None:
    """torch itself would wait without end."""
    program = (
        "from distributed_ignn.comm import rendezvous; "
        "rendezvous._PATIENCE_SECONDS = 1.0; rendezvous.join(1, 2, 1.0)"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | place,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 75, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "does not answer rank 1 as a store of ranks does, after 2 s" in line
