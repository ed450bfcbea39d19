"""Recorded solves, states in host memory and old halo rows, as ``make gpu`` compares them."""

from __future__ import annotations

import pytest

from distributed_ignn.comm.communicator import Communicator
from tests.gpu.sections.agreement import FLOAT64, WAYS, ways, worst
from tests.gpu.setting import SIZES, Setting
from tests.parity.cases import sum_reports
from tests.pseudo_gpu.emulated import run_emulated

pytestmark = pytest.mark.timeout(300)


def test_other_ways_to_train_agree_with_one_cpu_process() -> None:
    setting = Setting("emulated", 2, SIZES["tiny"], "", 0.0)
    expected = ways(Communicator(), setting)
    found = sum_reports(run_emulated(ways, 2, setting))
    assert found.keys() == expected.keys() == WAYS.keys()
    assert worst(expected, found)[2] <= FLOAT64
    recorded = {name: float(values["<graphs>"]) for name, values in found.items()}
    assert recorded.pop("recorded solves") > 0
    assert set(recorded.values()) == {0.0}
