"""Fixtures of the cluster tests: two machines, and the run that nothing happens to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.namespaces import TwoMachines, two_machines, why_not
from tests.clusters.small_run import COMMAND
from tests.jobs import Job


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
    folder = tmp_path_factory.mktemp("undisturbed")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = folder / "run"
    job = Job([sys.executable, *torchrun, *COMMAND, "--output", str(output)], folder)
    assert job.wait(120) == 0, job.text
    return output
