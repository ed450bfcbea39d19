"""Emulated GPUs give what one CPU process gives: values, gradients, mixing weights, training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from tests.parity.cases import CASES, CELLS, report_all, report_cells, sum_reports
from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu.emulated import largest_difference, run_emulated
from tests.pseudo_gpu.emulator import EmulatedGPU
from tests.pseudo_gpu.entered import emulator

pytestmark = pytest.mark.timeout(300)

EXACT = 1e-12
# The untrained solver's gradients are nearly zero, and Adam divides by them; mixing weights of a
# later step come from a system of nearly parallel residuals.
_LOOSE = ("solver", "<")
_LOOSE_EXACT = 1e-6
# Each case once: on one GPU, or, where a cut makes a difference, on two ranks.
ON_TWO = ("awkward", "channels", "both")
ON_ONE = tuple(case for case in CASES if case not in ON_TWO)

Reports = dict[str, dict[str, Tensor]]


def everything(comm: Communicator, cases: tuple[str, ...], cells: bool) -> Reports:
    """All reports, and how many collectives it took."""
    found = report_all(comm, "float64", cases)
    for case, report in (report_cells(comm, "float64") if cells else {}).items():
        found[f"cell {case}"] = {name: value.detach().cpu() for name, value in report.items()}
    if comm.world_size > 1:
        calls = emulator().counts.total(kinds.NCCL)
        found["emulated"] = {"NCCL calls": torch.tensor([calls])}
    return found


@pytest.fixture(scope="module")
def whole() -> Reports:
    """One process on the CPU."""
    return everything(Communicator(), CASES, cells=True)


def _assert_same(found: Reports, whole: Reports) -> None:
    for case, report in found.items():
        worst, name = largest_difference(report, whole[case], _LOOSE)
        assert worst <= EXACT, (case, name, worst)
        for name, value in report.items():
            if name.startswith("<"):
                assert abs(float(value)) <= EXACT, (case, name)
        loose = {name: value for name, value in report.items() if name.startswith("solver")}
        worst, name = largest_difference(loose, {n: whole[case][n] for n in loose})
        assert worst <= _LOOSE_EXACT, (case, name, worst)


@pytest.mark.parametrize(
    ("cases", "cells"),
    [
        pytest.param(ON_ONE[::2], True, id="every other"),
        pytest.param(ON_ONE[1::2], False, id="the rest", marks=pytest.mark.long),
    ],
)
def test_one_emulated_gpu_agrees_with_the_cpu(
    whole: Reports, cases: tuple[str, ...], cells: bool
) -> None:
    with EmulatedGPU(1) as gpu:
        found = everything(Communicator(device=torch.device("cuda", 0)), cases, cells)
        assert gpu.counts.total(kinds.LAUNCH) > 1000, "nothing ran on it"
    assert len(found) == len(cases) + (len(CELLS) if cells else 0)
    _assert_same(found, whole)


def test_two_ranks_over_nccl_agree_with_one_process(whole: Reports) -> None:
    found = sum_reports(run_emulated(everything, 2, ON_TWO, False))
    assert float(found.pop("emulated")["NCCL calls"]) > 2000
    assert found.keys() == set(ON_TWO)
    _assert_same(found, whole)
