"""Starts pairs of ``waiting_ranks`` and checks that the one that waits names the one that left."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack, closing
from pathlib import Path

from tests.jobs import Job

CASES = (("killed", 1), ("failed", 1), ("ended", 1), ("killed", 0))
_CODES = {"killed": -9, "failed": 1, "ended": 0}


def check_that_leavers_are_named(device: str, folder: Path) -> None:
    """Start all pairs at once, each of two ranks on ``device``; they end within 45 seconds."""
    jobs = {case: _two_ranks(*case, device, folder) for case in CASES}
    with ExitStack() as stack:
        for ranks in jobs.values():
            for rank in ranks:
                stack.enter_context(closing(rank))
        for (how, leaver), ranks in jobs.items():
            waits = 1 - leaver
            assert ranks[waits].wait(45) == 75, (how, ranks[waits].text)
            lost = f"(last seen in epoch 3, validating) was lost; rank {waits} was in epoch 3, "
            ended = f"(last seen in epoch 3, starting) has ended, and rank {waits} still waits in"
            line = ended if how == "ended" else f"{lost}forward solve; "
            text = ranks[waits].text
            assert f"error: rank {leaver} {line}" in text, (how, text)
            assert text.count("error: ") == 1
            assert ranks[leaver].wait(5) == _CODES[how]


def _two_ranks(how: str, leaver: int, device: str, folder: Path) -> list[Job]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(probe.getsockname()[1]),
        }
    command = [sys.executable, "-m", "tests.comm.waiting_ranks", how, str(leaver), device]
    return [Job(command, folder, place | {"RANK": r, "LOCAL_RANK": r}) for r in ("0", "1")]
