"""What ranks ask of each other: gathered values, agreed errors, reductions, uneven exchanges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distributed_ignn.comm.collectives import all_reduce_sum
from distributed_ignn.comm.communicator import Communicator, choose_backend, start_communicator
from distributed_ignn.comm.traffic import Traffic
from distributed_ignn.errors import UserError
from tests.ranks import run_ranks

# rows that each rank (row) sends to each other one (column)
COUNTS = ((0, 3, 1), (2, 0, 0), (0, 0, 0))


def test_a_single_process_answers_at_once() -> None:
    comm = Communicator()
    assert comm.is_main
    assert comm.backend == "none"
    assert comm.gather_json({"a": [1, None]}) == [{"a": [1, None]}]
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(comm.sum(values), torch.tensor([1.0, 2.0]))
    assert torch.equal(comm.max(values), torch.tensor([1.0, 2.0]))
    comm.barrier()
    comm.agree(None)
    with pytest.raises(UserError, match=r"^the file is gone$"):
        comm.agree("the file is gone")
    rows = comm.start_exchange(torch.zeros(0, 4), [0], [0]).wait()
    assert rows.shape == (0, 4)
    comm.close()


def test_a_single_process_sends_nothing() -> None:
    comm = Communicator()
    comm.start_exchange(torch.zeros(0, 4), [0], [0]).wait()
    comm.sum(torch.zeros(5))
    assert (comm.traffic.exchanges, comm.traffic.reductions) == (1, 1)
    assert (comm.traffic.exchange_bytes, comm.traffic.reduction_bytes) == (0, 0)


def test_traffic_is_counted_from_a_snapshot_on() -> None:
    traffic = Traffic(exchanges=2, exchange_bytes=100, reductions=1, reduction_bytes=8)
    before = traffic.snapshot()
    traffic.exchanges += 1
    traffic.exchange_bytes += 24
    assert traffic.since(before) == Traffic(1, 24, 0, 0)
    assert before == Traffic(2, 100, 1, 8)


def test_one_rank_needs_no_process_group() -> None:
    comm = start_communicator(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    assert comm.backend == "none"


def test_backend_follows_the_device() -> None:
    cpu = torch.device("cpu")
    assert choose_backend("auto", cpu, 1) == "gloo"
    assert choose_backend("gloo", cpu, 1) == "gloo"
    with pytest.raises(UserError, match=r"nccl needs one GPU per rank.*--comm.backend gloo"):
        choose_backend("nccl", cpu, 1)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """A machine with one GPU, and no other ranks: what a start would do is recorded instead."""
    called: dict[str, list[Any]] = {"backend": [], "device": []}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", called["device"].append)
    monkeypatch.setattr(
        dist, "init_process_group", lambda name, **rest: called["backend"].append(name)
    )
    monkeypatch.setattr(dist, "get_backend", lambda: called["backend"][-1])
    return called


def _start(world_size: int, backend: str, local_world_size: int | None = None) -> list[str]:
    """What each rank says or does, all of them on one GPU."""
    said = []
    for rank in range(world_size):
        try:
            comm = start_communicator(
                rank=rank,
                world_size=world_size,
                local_rank=rank % (local_world_size or world_size),
                device=torch.device("cuda", 0),
                local_world_size=local_world_size,
                backend=backend,
                init_method="file:///never-opened",
            )
            said.append(comm.backend)
        except UserError as error:
            said.append(str(error))
    return said


def test_ranks_that_share_a_gpu_choose_alike(groups: dict[str, list[Any]]) -> None:
    assert _start(2, "auto") == ["gloo", "gloo"]
    assert groups["backend"] == ["gloo", "gloo"]
    assert groups["device"] == [torch.device("cuda", 0)] * 2


def test_ranks_on_machines_of_their_own_take_nccl(groups: dict[str, list[Any]]) -> None:
    assert _start(2, "auto", local_world_size=1) == ["nccl", "nccl"]
    assert groups["backend"] == ["nccl", "nccl"]


def test_a_network_interface_that_is_not_there_is_refused(
    groups: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth99")
    said = _start(2, "gloo")
    assert said[0] == said[1]
    assert said[0].startswith("GLOO_SOCKET_IFNAME = lo,eth99 names no network interface of ")
    assert groups["backend"] == []
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert _start(2, "gloo") == ["gloo", "gloo"]


def test_nccl_on_a_shared_gpu_is_refused_by_all_ranks(groups: dict[str, list[Any]]) -> None:
    said = _start(2, "nccl")
    assert said[0] == said[1]
    assert "found 1 GPUs for 2 ranks on cuda" in said[0]
    assert groups["backend"] == []


def test_a_single_process_makes_its_gpu_the_current_one(groups: dict[str, list[Any]]) -> None:
    assert _start(1, "auto") == ["none"]
    assert groups == {"backend": [], "device": [torch.device("cuda", 0)]}


def _three_ranks(comm: Communicator) -> dict[str, Any]:
    """Everything that needs other ranks, in one start of the processes."""
    found: dict[str, Any] = {"backend": comm.backend, "main": comm.is_main}
    found["gathered"] = comm.gather_json({"rank": comm.rank, "text": "é" * comm.rank * 40})
    found["nothing"] = comm.gather_json(None)
    found["agreed"] = _agree(comm, {1: "first", 2: "second"})
    found["no error"] = _agree(comm, {})
    found["sum"] = comm.sum(torch.tensor([comm.rank, 10], dtype=torch.int64))
    found["max"] = comm.max(torch.tensor([float(comm.rank), -float(comm.rank)]))
    found["exchange"], found["back"] = _exchange(comm)
    before = comm.traffic.snapshot()
    comm.sum(torch.zeros(3, dtype=torch.float64))
    rows = torch.zeros(sum(COUNTS[comm.rank]), 2)
    comm.start_exchange(rows, *_counts(comm.rank)).wait()
    found["sent"] = comm.traffic.since(before)
    found["gradient"] = _gradient(comm)
    return found


def _agree(comm: Communicator, errors: dict[int, str]) -> str | None:
    try:
        comm.agree(errors.get(comm.rank))
    except UserError as error:
        return str(error)
    return None


def _counts(rank: int) -> tuple[list[int], list[int]]:
    return list(COUNTS[rank]), [row[rank] for row in COUNTS]


def _exchange(comm: Communicator) -> tuple[Tensor, Tensor]:
    """Rows that name sender and receiver, and the same rows sent back."""
    send, receive = _counts(comm.rank)
    rows = [torch.full((count, 2), 10.0 * comm.rank + other) for other, count in enumerate(send)]
    arrived = comm.start_exchange(torch.cat(rows), send, receive).wait()
    back = comm.start_exchange(arrived, receive, send).wait()
    return arrived, back - torch.cat(rows)


def _gradient(comm: Communicator) -> float:
    """d/dx of (sum over ranks of x * (rank + 1))^2 at x = 2, each rank taking its share."""
    x = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    total = all_reduce_sum(x * (comm.rank + 1), comm)
    (total.square() / comm.world_size).sum().backward()
    assert x.grad is not None
    return float(x.grad)


def test_three_ranks() -> None:
    reports = run_ranks(_three_ranks, 3)
    for rank, report in enumerate(reports):
        assert report["backend"] == "gloo"
        assert report["main"] == (rank == 0)
        assert report["gathered"] == [{"rank": r, "text": "é" * r * 40} for r in range(3)]
        assert report["nothing"] == [None] * 3
        assert report["agreed"] == "first"
        assert report["no error"] is None
        assert report["sum"].tolist() == [3, 30]
        assert report["max"].tolist() == [2.0, 0.0]
        expected = [10.0 * r + rank for r in range(3) for _ in range(COUNTS[r][rank])]
        assert report["exchange"].shape == (len(expected), 2)
        assert report["exchange"][:, 0].tolist() == expected
        assert not report["back"].any()
        # float32 pairs; three float64 numbers
        assert report["sent"] == Traffic(1, sum(COUNTS[rank]) * 8, 1, 24)
        # 2 (1 + 2 + 3) x * (rank + 1) * 6 / 3 from each of three ranks: the derivative of the whole
        assert report["gradient"] == pytest.approx(2 * 12.0 * (rank + 1))
