"""Every cell, with every option: k ranks give what one process gives."""

from __future__ import annotations

import pytest
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from tests.parity.cases import CELLS, report_cells, sum_reports, worst_differences
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Tensor]]:
    """One process."""
    return report_cells(Communicator(), "float64")


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_agree_with_one_process_on_every_cell(
    whole: dict[str, dict[str, Tensor]], world_size: int
) -> None:
    assert set(whole) == set(CELLS)
    cut = sum_reports(run_ranks(report_cells, world_size, "float64", timeout=200))
    for case, values in whole.items():
        assert any(name.startswith("grad cell_weights") for name in values), case
    for (case, name), difference in worst_differences(cut, whole).items():
        # the learned solver's gradients are nearly zero, and Adam divides by their size
        tolerance = 1e-6 if name.startswith("solver") else 1e-10
        assert difference <= tolerance, (case, name)
