"""The cable between two machines is pulled: both ranks notice, say so, and end; nothing is lost."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.clusters.namespaces import ADDRESSES, TwoMachines
from tests.clusters.small_run import COMMAND, assert_same
from tests.jobs import Job, records

_PORT = "29571"


def _rank(machines: TwoMachines, rank: int, log: Path, *arguments: str) -> Job:
    """One rank on a machine of its own, started by hand."""
    place = {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": ADDRESSES[0],
        "MASTER_PORT": _PORT,
    }
    command = machines.command(rank, sys.executable, *COMMAND, *arguments)
    return Job(command, log, machines.environment() | place)


@pytest.mark.slow
@pytest.mark.long  # a rank that stops answers as little: tests/faults has one with every change
@pytest.mark.timeout(240)
def test_a_pulled_cable_is_noticed_on_both_sides(
    machines: TwoMachines, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    arguments = ["--output", str(output), "--comm.hang-seconds", "5", "--resume", "auto"]
    with ExitStack() as stack:
        both = [_rank(machines, rank, tmp_path, *arguments) for rank in (0, 1)]
        for one in both:
            stack.enter_context(closing(one))
        both[0].reach(6, output)
        machines.set_cable(up=False)
        try:
            assert [one.wait(60) for one in both] == [75, 75]
        finally:
            machines.set_cable(up=True)
    line = "error: no answer for 5 s from "
    assert f"{line}rank 1 (last seen in epoch " in both[0].text
    assert f"{line}{ADDRESSES[0]}:{_PORT}, where rank 0 keeps the ranks" in both[1].text
    for one in both:
        assert one.text.count("error: ") == 1
        assert "Traceback" not in one.text
    assert len(records(output)) >= 6
    assert list((output / "crash").glob("*/report.json"))

    with ExitStack() as stack:
        both = [_rank(machines, rank, tmp_path, *arguments) for rank in (0, 1)]
        for one in both:
            stack.enter_context(closing(one))
        assert [one.wait(120) for one in both] == [0, 0], both[0].text
    assert "resumed after epoch 4" in both[0].text
    assert_same(output, undisturbed)
