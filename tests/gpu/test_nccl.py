"""NCCL between GPUs of one machine: the parity cases, what it refuses, and a rank that leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from tests.comm.leavers import check_that_leavers_are_named
from tests.gpu.test_cuda import _assert_close
from tests.parity.cases import CASES, report_all, sum_reports
from tests.ranks import run_ranks

COUNT = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(COUNT == 0, reason="no CUDA device on this machine"),
]
two_gpus = pytest.mark.skipif(COUNT < 2, reason="NCCL needs two GPUs for two ranks")

EACH_ITS_OWN = torch.device("cuda")
FIRST = torch.device("cuda", 0)


@two_gpus
@pytest.mark.timeout(600)
@pytest.mark.parametrize("world_size", sorted({min(2, COUNT), max(2, COUNT)}))
def test_ranks_over_nccl_agree_with_one_gpu(world_size: int) -> None:
    """On two GPUs, and on all there are."""
    alone = report_all(Communicator(device=FIRST), "float64")
    reports = run_ranks(
        report_all, world_size, "float64", timeout=500, device=EACH_ITS_OWN, backend="nccl"
    )
    whole = sum_reports(reports)
    for case in CASES:
        _assert_close(alone[case], whole[case])


def _meeting(comm: Communicator) -> tuple[str, list[int]]:
    """The transport, and what arrives of a reduction and an exchange of CPU and GPU tensors."""
    total = comm.sum(torch.tensor([comm.rank + 1]))
    rows = torch.full((comm.world_size, 1), float(comm.rank), device=comm.device)
    each = [1] * comm.world_size
    received = comm.start_exchange(rows, each, each).wait()
    return comm.backend, [int(total), *(int(value) for value in received.flatten().tolist())]


@two_gpus
def test_auto_is_nccl_where_each_rank_has_a_gpu() -> None:
    found = run_ranks(_meeting, 2, timeout=120, device=EACH_ITS_OWN, backend="auto")
    assert found == [("nccl", [3, 0, 1])] * 2


def test_auto_is_gloo_where_two_ranks_share_one() -> None:
    found = run_ranks(_meeting, 2, timeout=120, device=FIRST, backend="auto")
    assert found == [("gloo", [3, 0, 1])] * 2


def test_nccl_is_refused_where_two_ranks_share_one() -> None:
    with pytest.raises(AssertionError, match=r"ranks 0 and 1 share GPU .*--comm.backend gloo"):
        run_ranks(_meeting, 2, timeout=120, device=FIRST, backend="nccl")


@two_gpus
@pytest.mark.timeout(200)
def test_a_rank_that_leaves_is_named_with_our_exit_code(tmp_path: Path) -> None:
    """Not by SIGABRT of torch's own watchdog, and long before ``comm.hang_seconds``."""
    check_that_leavers_are_named("cuda", tmp_path)
