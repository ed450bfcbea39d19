"""Whose folder it is when ranks have been started again: by whom, from where, in which process."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.runs.output import folder
from tests.ranks import run_ranks

MACHINES = ["one:1:1", "two:2:2"]


def _claim(
    output: Path,
    starter: str | None,
    comm: Communicator | None = None,
    resume: Path | str | None = None,
) -> Path | str | None:
    """What a run goes on from that a new process of this starter begins, as far as its settings."""
    with mock.patch.object(folder, "job_starter", return_value=starter):
        config = RunConfig(dataset="chains", output=output, resume=resume)
        with folder.claimed(config, comm or Communicator()) as claimed:
            (output / folder.SETTINGS).touch()
        folder._claimed.clear()
        return claimed.resume


def test_a_run_from_a_named_checkpoint_goes_on_from_its_own_once_it_has_one(tmp_path: Path) -> None:
    output, named = tmp_path / "run", tmp_path / "old" / "checkpoints" / "epoch-000005"
    assert _claim(output, "one", resume=named) == named
    assert _claim(output, "one", resume=named) == named  # it had none yet
    folder.forget_named_checkpoint(output)
    assert _claim(output, "one", resume=named) == "auto"
    assert _claim(output, "one", resume=named) == "auto"
    assert _claim(output, "another", resume=named) == named  # its user says so
    assert _claim(output, "another", resume="auto") == "auto"


def test_a_second_run_of_one_process_is_no_second_attempt(tmp_path: Path) -> None:
    config = RunConfig(dataset="chains", output=tmp_path / "run")
    environment = {"TORCHELASTIC_RUN_ID": "none"}
    with mock.patch.dict(os.environ, environment):
        with folder.claimed(config, Communicator()):
            (config.output / folder.SETTINGS).touch()
        with (
            pytest.raises(UserError, match="already holds a run"),
            folder.claimed(config, Communicator()),
        ):
            pass
        folder._claimed.clear()  # as in a new process
        with folder.claimed(config, Communicator()) as again:
            assert again.resume == "auto"


def _attempt(comm: Communicator, output: Path, starters: list[str]) -> Path | str | None:
    try:
        return _claim(output, starters[comm.rank], comm)
    except UserError as error:
        return str(error)


def test_one_machine_that_is_left_knows_its_job(tmp_path: Path) -> None:
    """Whichever machine is lost, and whichever has rank 0 then."""
    output = tmp_path / "run"
    assert run_ranks(_attempt, 2, output, MACHINES) == [None, None]
    assert run_ranks(_attempt, 2, output, ["three:3:3", MACHINES[1]]) == ["auto", "auto"]
    assert run_ranks(_attempt, 2, output, ["four:4:4", "three:3:3"]) == ["auto", "auto"]
    refused = run_ranks(_attempt, 2, output, MACHINES)
    assert all("already holds a run" in str(line) for line in refused)
