"""Runs of a study: what is said of each is its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import absolute_paths
from distributed_ignn.errors import Stopped
from distributed_ignn.lab.studies.study_runs import complete_run, is_finished, read_finished
from distributed_ignn.runs.memory.machine import resident
from distributed_ignn.training.epoch_record import EpochRecord
from tests.lab.benchmarks.tiny_run import tiny_run

MUCH = 2**30


def test_the_peak_of_a_run_does_not_include_what_its_process_held_before(tmp_path: Path) -> None:
    before = resident(torch.device("cpu"))  # of the tests of this process that came before
    array = np.ones(MUCH, dtype=np.uint8)
    assert array.nbytes == MUCH
    del array
    run = absolute_paths(tiny_run(tmp_path / "run"))
    complete_run(run, Communicator())
    assert read_finished(run).summary["peak_memory_bytes"] < before + MUCH // 2


@pytest.mark.parametrize("left", [1, 0], ids=["in it", "with its checkpoint"])
def test_a_signal_in_the_last_epoch_of_a_run_ends_the_study(tmp_path: Path, left: int) -> None:
    """The run itself has nothing left to stop, and is finished."""
    run = absolute_paths(tiny_run(tmp_path / "run"))

    def ask(record: EpochRecord, checkpoint: Path | None) -> None:
        if record.epoch == run.train.epochs - left:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped by SIGTERM; this run has ended"):
        complete_run(run, Communicator(), ask)
    assert is_finished(run)
