"""The parity cases on GPUs: one rank, ranks over NCCL, and two that share a GPU over gloo."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from tests.gpu.sections.agreement import parity
from tests.gpu.setting import SIZES, Budget, Setting
from tests.parity.cases import CASES, report_all, sum_reports
from tests.ranks import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def _assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    for name, value in left.items():
        if name.startswith(("<", "solver", "trained")):
            continue
        scale = max(float(value.abs().max()), 1e-30)
        assert float((value - right[name]).abs().max()) <= 1e-9 * scale, name


def test_one_gpu_rank_agrees_with_the_cpu() -> None:
    on_cpu = report_all(Communicator(), "float64")
    on_gpu = report_all(Communicator(device=torch.device("cuda", 0)), "float64")
    for case in CASES:
        _assert_close(on_cpu[case], on_gpu[case])


@pytest.mark.timeout(600)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: nobody to talk to over NCCL")
def test_ranks_over_nccl_agree_with_the_cpu() -> None:
    setting = Setting("gpu", torch.cuda.device_count(), SIZES["full"], "", time.time() + 500.0)
    checks = list(parity(Budget(setting, 500.0, Path())))
    assert [check.name for check in checks if check.verdict != "ok"] == []
    assert any("nccl" in check.name for check in checks)


def test_two_ranks_sharing_the_gpu_agree_with_one() -> None:
    alone = report_all(Communicator(device=torch.device("cuda", 0)), "float64")
    shared = sum_reports(
        run_ranks(report_all, 2, "float64", timeout=200, device=torch.device("cuda", 0))
    )
    for case in CASES:
        _assert_close(alone[case], shared[case])
