"""Fixtures of the cluster tests: two machines, and the run that nothing happens to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.namespaces import TwoMachines, two_machines, why_not
from tests.clusters.runs import ROOT, TRAIN, environment


@pytest.fixture(scope="session")
def machines() -> Iterator[TwoMachines]:
    """Two machines; the test is skipped, with the reason, where there can be none."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with two_machines() as pair:
        yield pair


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of two ranks on one machine, from the first epoch to the last without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, *TRAIN, "--output", str(folder)],
        cwd=ROOT,
        env=os.environ | environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder
