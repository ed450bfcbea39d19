"""What ranks ask of each other: gathered values, agreed errors, reductions, uneven exchanges."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distributed_ignn.comm import backends
from distributed_ignn.comm.backends import Gpu, choose_backend, nccl_environment
from distributed_ignn.comm.collectives import all_reduce_sum
from distributed_ignn.comm.communicator import Communicator, start_communicator
from distributed_ignn.comm.traffic import Traffic
from distributed_ignn.errors import UserError
from distributed_ignn.launchers.this_rank import choose_device
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


def test_backend_follows_the_gpus() -> None:
    one, other = Gpu("GPU 1", "here"), Gpu("GPU 2", "here")
    assert choose_backend("auto", [None, None]) == "gloo"
    assert choose_backend("auto", [one, other, Gpu("GPU 3", "there")]) == "nccl"
    assert choose_backend("auto", [one, other, one]) == "gloo"
    assert choose_backend("gloo", [one, other]) == "gloo"
    with pytest.raises(UserError, match=r"rank 0 computes on a CPU; use --comm.backend gloo"):
        choose_backend("nccl", [None, None])
    for backend in ("auto", "gloo", "nccl"):
        with pytest.raises(
            UserError, match=r"rank 1 computes on a CPU and rank 0 on GPU 1 of here"
        ):
            choose_backend(backend, [one, None, other])
    with pytest.raises(UserError, match=r"one GPU per rank, and ranks 1 and 2 share GPU 2 of here"):
        choose_backend("nccl", [one, other, other])


_NCCL = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_RETHROW_CUDA_ERRORS")
_PRIORITY = "TORCH_NCCL_HIGH_PRIORITY"


class _Machine:
    """GPUs, without a group of ranks: what a start would do is recorded instead.

    Args:
        gpus: number of the one that each rank is shown as its only one.
    """

    def __init__(self, gpus: Sequence[int], folder: Path) -> None:
        self.gpus = gpus
        self.folder = folder
        self.groups: list[dict[str, Any]] = []
        self.made_current: list[torch.device] = []
        self.here = threading.local()

    def properties(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(uuid=f"00-{self.gpus[self.here.rank]}")

    def init(self, name: str, **rest: Any) -> None:
        self.groups.append({"name": name, **rest})

    def meet(self, rank: int, world_size: int, init_method: str, seconds: float) -> dist.Store:
        assert init_method == "env://"
        return dist.FileStore(str(self._meeting), world_size)

    def start(self, backend: str = "auto", hang_seconds: float = 120.0) -> list[str]:
        """What each rank says or does, all of them at the same time."""
        with ThreadPoolExecutor(len(self.gpus)) as pool:
            self._meeting = self.folder / uuid.uuid4().hex
            start = partial(self._start, backend, hang_seconds)
            return list(pool.map(start, range(len(self.gpus))))

    def _start(self, backend: str, hang_seconds: float, rank: int) -> str:
        self.here.rank = rank
        try:
            start_communicator(
                rank=rank,
                world_size=len(self.gpus),
                local_rank=rank,
                device=choose_device("cuda", rank),
                backend=backend,
                timeout_seconds=20,
                hang_seconds=hang_seconds,
            )
        except UserError as error:
            return f"{error.teller}: {error}"
        return "started"


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> _Machine:
    found = _Machine(request.param, tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", found.made_current.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", found.properties)
    monkeypatch.setattr(dist, "init_process_group", found.init)
    monkeypatch.setattr(backends, "meet", found.meet)
    monkeypatch.setattr(dist, "get_backend", lambda: found.groups[-1]["name"])
    for name in (*_NCCL, "NCCL_ASYNC_ERROR_HANDLING", _PRIORITY, "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("machine", [(0, 1, 2)], indirect=True)
def test_ranks_that_are_shown_one_gpu_each_take_nccl(machine: _Machine) -> None:
    """As srun --gpus-per-task=1 has it: three times ``cuda:0``, and three GPUs."""
    assert machine.start() == ["started"] * 3
    assert [group["name"] for group in machine.groups] == ["nccl"] * 3
    # the communicator is made for a device at once, and its stream goes first
    gpu = torch.device("cuda", 0)
    assert [group["device_id"] for group in machine.groups] == [gpu] * 3
    assert machine.made_current == [gpu] * 3
    assert os.environ[_PRIORITY] == "1"
    # errors are left to the watchdog that will be started
    assert [os.environ[name] for name in _NCCL] == ["0", "0"]


@pytest.mark.parametrize("machine", [(0, 1)], indirect=True)
def test_without_a_watchdog_torch_goes_on_ending_the_process(machine: _Machine) -> None:
    assert machine.start(hang_seconds=0.0) == ["started"] * 2
    assert not any(name in os.environ for name in _NCCL)


@pytest.mark.parametrize("machine", [(0, 1, 0)], indirect=True)
def test_ranks_that_share_a_gpu_take_gloo(machine: _Machine) -> None:
    assert machine.start() == ["started"] * 3
    assert [group["name"] for group in machine.groups] == ["gloo"] * 3
    assert not any("device_id" in group for group in machine.groups)
    assert _PRIORITY not in os.environ


@pytest.mark.parametrize("machine", [(0, 1)], indirect=True)
def test_kernels_that_one_rank_lacks_are_switched_off_on_all(
    machine: _Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A rank with kernels reduces one number more."""
    lacking: dict[int, str | None] = {1: "no compiler"}
    said: list[bool] = []
    monkeypatch.setattr(backends, "kernels_obstacle", lambda device: lacking.get(machine.here.rank))
    monkeypatch.setattr(backends, "leave_to_torch", said.append)
    assert machine.start() == ["started"] * 2
    assert said == [True] * 2
    assert len([line for line in caplog.messages if "rank 1 has no GPU kernels: no c" in line]) == 1
    for lacking[0] in ("none either", None):  # alike on both: nothing to agree on
        lacking[1] = lacking[0]
        said.clear()
        caplog.clear()
        assert machine.start() == ["started"] * 2
        assert (said, caplog.messages) == ([False] * 2, [])


@pytest.mark.parametrize("machine", [(5, 7, 7)], indirect=True)
def test_nccl_on_a_shared_gpu_is_refused_by_all_ranks(machine: _Machine) -> None:
    said = machine.start("nccl")
    assert said[0].startswith("job: comm.backend nccl needs one GPU per rank, and ranks 1 and 2 ")
    assert f"share GPU 00-7 of {socket.gethostname()}; use --comm.backend gloo" in said[0]
    assert said == [said[0]] * 3
    assert machine.groups == []


@pytest.mark.parametrize("machine", [(0, 0)], indirect=True)
def test_a_network_interface_that_is_not_there_is_refused(
    machine: _Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth99")
    for backend in ("gloo", "auto"):
        said = machine.start(backend)
        assert said[0] == said[1]
        assert "GLOO_SOCKET_IFNAME = lo,eth99 names no network interface of " in said[0]
    assert machine.groups == []
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert machine.start("gloo") == ["started"] * 2


def test_errors_of_nccl_are_left_to_the_watchdog_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*_NCCL, "NCCL_ASYNC_ERROR_HANDLING", _PRIORITY):
        monkeypatch.delenv(name, raising=False)
    assert nccl_environment(watched=True) == {**dict.fromkeys(_NCCL, "0"), _PRIORITY: "1"}
    assert nccl_environment(watched=False) == {_PRIORITY: "1"}
    monkeypatch.setenv(_PRIORITY, "0")
    monkeypatch.setenv("NCCL_ASYNC_ERROR_HANDLING", "1")
    assert nccl_environment(watched=True) == {_NCCL[1]: "0"}


@pytest.mark.parametrize("machine", [(0,)], indirect=True)
def test_a_single_process_makes_its_gpu_the_current_one(machine: _Machine) -> None:
    assert machine.start() == ["started"]
    assert (machine.groups, machine.made_current) == ([], [torch.device("cuda", 0)])


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
