"""Explicit kinds of which a rank is killed, on two ranks under torchrun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import parse_args
from distributed_ignn.runs.output.rank_log import log_path
from distributed_ignn.runs.run import run_training
from tests.faults.victim import COMMON, INJECTED, torchrun
from tests.jobs import Job, differences, remains, result
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SHORT = ["--train.epochs", "6"]

# explicit kinds, and where each is killed in epoch 4: what there is by then is of epoch 2
KILLED: dict[str, dict[str, Any]] = {
    "gat": {"rank": 0, "at": "file", "phase": "writing a checkpoint", "count": 15},
    "gcnii": {"rank": 1, "at": "exchange", "phase": "backward solve and step", "count": 56},
}


def _train_kinds(comm: Communicator, folder: Path) -> None:
    for kind in KILLED:
        output = ["--output", str(folder / kind), "--quiet"]
        run_training(parse_args([*COMMON, *SHORT, "--model.kind", kind, *output]), comm)


@pytest.fixture(scope="module")
def quiet_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of these kinds that nothing happens to, in one start of two ranks."""
    folder = tmp_path_factory.mktemp("kinds")
    run_ranks(_train_kinds, 2, folder, timeout=90)
    return folder


@pytest.mark.parametrize("kind", ["gat", pytest.param("gcnii", marks=pytest.mark.long)])
def test_an_explicit_kind_that_is_killed_ends_as_if_nothing_had_happened(
    tmp_path: Path, quiet_kinds: Path, kind: str
) -> None:
    """In a checkpoint, or between the layers of a backward pass."""
    output = tmp_path / "run"
    arguments = [*SHORT, "--model.kind", kind, "--output", str(output)]
    command = torchrun(2, *arguments, restarts=1, program=INJECTED, settings=COMMON)
    fault = KILLED[kind] | {"signal": "SIGKILL"}
    job = Job(command, tmp_path, {"FAULTS": json.dumps([fault])})
    assert job.wait(90) == 0, job.text
    assert job.text.count("exitcode: -9") == 1
    assert "resumed after epoch 2 of 6" in job.text
    lines = [json.loads(line) for line in log_path(output, fault["rank"]).read_bytes().splitlines()]
    last = [line for line in lines if line["pid"] == lines[0]["pid"]][-1]
    assert (last["epoch"], last["phase"]) == (4, fault["phase"])
    assert differences(result(quiet_kinds / kind), result(output)) == []
    assert remains(output) == []
