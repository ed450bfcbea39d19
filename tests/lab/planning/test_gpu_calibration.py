"""A machine with GPUs is measured on them; what they would say is made up here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distributed_ignn.config import CommConfig
from distributed_ignn.errors import UserError
from distributed_ignn.lab.planning import calibration, probes
from distributed_ignn.lab.planning.calibration import calibrate, known_link
from distributed_ignn.lab.planning.probes import GPU_SIZES, WIDTHS, Measured


def _found(rank: int) -> Measured:
    """Of one GPU; rank 1 is twice as fast as rank 0, so that means can be told."""
    sizes = [rows * width * 4 for rows, width in GPU_SIZES]
    kinds = ("stream", "history", "dense", "plain_dense", "masks")
    names = [f"{kind} {size}" for kind in kinds for size in sizes]
    names += [
        f"{kind} {rows} {width}"
        for kind in ("scattered", "clustered")
        for rows, _ in GPU_SIZES
        for width in WIDTHS
    ]
    rates = dict.fromkeys([*names, "pack", "scatter", "codec", "link"], 2e12 * (rank + 1))
    return rates | {
        "process_bytes": 6e8,
        "operation": 4e-6,
        "message": 1e-5,
        "reduction": 2e-5,
        "hidden": 0.5,
    }


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ranks were started with; there are two GPUs unless a test says otherwise."""
    calls: list[dict[str, Any]] = []

    def run_local(action: Any, ranks: int, *args: Any, **settings: Any) -> list[Measured]:
        assert action is probes.measure
        calls.append({"ranks": ranks, "sizes": args[1], **settings})
        return [_found(rank) for rank in range(ranks)]

    about = SimpleNamespace(name="a GPU", total_memory=80 * 10**9)
    monkeypatch.setattr(calibration, "run_local", run_local)
    monkeypatch.setattr(calibration, "_write_graphs", lambda folder, sizes: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    return calls


def test_all_gpus_are_measured_at_once_and_so_is_nccl(started: list[dict[str, Any]]) -> None:
    profile = calibrate("here", lambda line: None, device="auto")
    (call,) = started
    assert (call["ranks"], call["device"], call["sizes"]) == (2, "cuda", GPU_SIZES)
    comm: CommConfig = call["comm"]
    assert (comm.backend, comm.hang_seconds) == ("nccl", 0.0)
    assert not profile.on_cpu
    assert (profile.ranks_per_box, profile.memory_bytes) == (2, 80e9)
    # a GPU shares nothing with the others
    assert profile.stream.each(1e9, ranks=2) == pytest.approx(3e12)
    assert profile.inside.rate.each(2) == pytest.approx(3e12)
    assert profile.network == "between GPUs"
    assert "2 x a GPU" in profile.source
    assert profile.fresh is None


def test_one_gpu_needs_to_be_told_a_link(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"one GPU.*--network-gbit G, or .* --device cpu"):
        calibrate("here", lambda line: None, device="cuda")
    assert started == []
    profile = calibrate("here", lambda line: None, known_link(100, 1e-5), device="cuda")
    assert started[0]["comm"].backend == "auto"
    assert profile.network == "given"
    assert profile.stream.each(1e9, ranks=1) == pytest.approx(2e12)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="device = cuda but no GPU was found"):
        calibrate("here", lambda line: None, device="cuda")


class _Event:
    queue: float = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = _Event.queue

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: _Event) -> float:
        return later.at - self.at


def test_a_gpu_is_timed_in_its_own_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)

    def launch() -> None:
        _Event.queue += 250.0  # milliseconds of the GPU; the CPU goes on at once

    assert probes._on_gpu(launch) == pytest.approx(0.25)
