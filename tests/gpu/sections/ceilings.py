"""What the device itself reaches: copies, dense products, launches, and the way to the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.bandwidth import copy_task
from distributed_ignn.lab.benchmarks.interleaving import finish_device, interleave
from distributed_ignn.lab.planning.hardware import Profile, load_profile, shipped
from tests.gpu.setting import Budget, Setting, keep
from tests.gpu.verdicts import Check, judge, measured

_SHARE = 0.9  # of what the planner counts on for this GPU
_SQUARE = {"full": 8192, "tiny": 128}
_ROWS = {"full": 1_000_000, "tiny": 1_000}
_STARTS = 2000


def look(budget: Budget) -> Iterator[Check]:
    """Every GPU by itself would do the same; the first one is measured."""
    (found,) = budget.ranks(reach, 1)
    copy, expected = found.pop("copy"), expected_copy(found.pop("name"))
    if expected is None:
        yield measured("copy", copy / 1e9, "GB/s", "no data sheet of this GPU in configs/hardware")
    else:
        note = f"{expected / 1e9:,.0f} GB/s is what the planner counts on"
        yield judge(
            "copy", copy / expected, "%", _SHARE, counts=budget.setting.real,
            note=f"{copy / 1e9:,.0f} GB/s; {note}",
        )  # fmt: skip
    keep(budget.setting, "sync_seconds", found["sync"][0] * 1e-6)
    for name, (value, unit) in found.items():
        yield measured(name, value, unit)


def expected_copy(name: str) -> float | None:
    """Bytes per second that the planner counts on for a GPU of this name; None if unknown."""
    sheet = sheet_of(name)
    return None if sheet is None else sheet.stream.each(1e9, 1)


def sheet_of(name: str) -> Profile | None:
    """What the data sheets say of a GPU of this name; None where there is none of them."""
    known = [kind for kind in shipped() if kind.lower() in name.lower().split()]
    return next((p for p in map(load_profile, known) if p.origin == "specification"), None)


@torch.no_grad()
def reach(comm: Communicator, setting: Setting) -> dict[str, object]:
    """Rates of one device."""
    size = "tiny" if setting.sizes.brief else "full"
    side, rows, width = _SQUARE[size], _ROWS[size], setting.sizes.judged
    copy, copied = copy_task(comm, setting.sizes.copy_bytes)
    tasks: dict[str, Callable[[], object]] = {"copy": copy}
    operations: dict[str, float] = {}
    for kind in (torch.float32, torch.bfloat16):
        name = str(kind).removeprefix("torch.")
        square = torch.rand(side, side, device=comm.device).to(kind)
        tall = torch.rand(rows, width, device=comm.device).to(kind)
        weight = torch.rand(width, width, device=comm.device).to(kind)
        for label, left, right in (("square", square, square), ("rows x D x D", tall, weight)):
            tasks[f"{label}, {name}"] = lambda a=left, b=right: a @ b  # type: ignore[misc]
            operations[f"{label}, {name}"] = 2.0 * left.shape[0] * right.numel()
    pinned = torch.empty(copied // 32, dtype=torch.uint8, pin_memory=setting.real)
    there = torch.empty(pinned.shape, dtype=torch.uint8, device=comm.device)
    tasks["host to device"] = lambda: there.copy_(pinned, non_blocking=True)
    tasks["device to host"] = lambda: pinned.copy_(there, non_blocking=True)
    seconds = interleave(tasks, setting.sizes.rounds, comm)
    found: dict[str, object] = {
        "name": torch.cuda.get_device_name(comm.device) if setting.device == "cuda" else "",
        "copy": copied / seconds["copy"],
    }
    found |= {f"matmul {n}": (c / seconds[n] / 1e12, "TFLOP/s") for n, c in operations.items()}
    for way in ("host to device", "device to host"):
        found[way] = (pinned.numel() / seconds[way] / 1e9, "GB/s")
    return found | _starts(comm)


def _starts(comm: Communicator) -> dict[str, object]:
    """Seconds from Python to start an operation, and to ask the device for a number."""
    tiny = torch.zeros(4, device=comm.device)
    found: dict[str, object] = {}
    for name, action, count in (
        ("launch", lambda: tiny.add_(1.0), _STARTS),
        ("sync", lambda: float(tiny[0]), _STARTS // 10),
    ):
        action()
        finish_device(comm)
        started = time.perf_counter()
        for _ in range(count):
            action()
        finish_device(comm)
        found[name] = ((time.perf_counter() - started) / count * 1e6, "us")
    return found
