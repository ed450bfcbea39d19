"""Runs of a study: what is said of each is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import absolute_paths
from distributed_ignn.lab.studies.study_runs import complete_run, read_finished
from tests.lab.benchmarks.tiny_run import tiny_run

MUCH = 2**30


def test_the_peak_of_a_run_does_not_include_what_its_process_held_before(tmp_path: Path) -> None:
    array = np.ones(MUCH, dtype=np.uint8)
    assert array.nbytes == MUCH
    del array
    run = absolute_paths(tiny_run(tmp_path / "run"))
    complete_run(run, Communicator())
    assert read_finished(run).summary["peak_memory_bytes"] < MUCH
