"""Memory, handles, threads, tensors and timing events over many epochs of one process."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.interleaving import finish_device
from distributed_ignn.runs.memory.machine import resident
from tests.gpu.quick_run import quick_trainer
from tests.gpu.setting import Budget, Setting
from tests.gpu.verdicts import Check, at_most, measured

_MOST_GROWTH = 0.02  # of the process's memory; of the device's, nothing may be added
_LOOKS = 10
_SETTLED = 500  # epochs
_SHARE = 0.8  # of the time that there is


def look(budget: Budget) -> Iterator[Check]:
    """Two ranks; what each holds early and at the end."""
    setting = budget.setting
    ranks = 2
    found = budget.ranks(held_over_epochs, ranks, _SHARE * budget.left())
    epochs = found[0][2]
    yield measured("epochs", epochs, "", f"of {setting.sizes.epochs_watched}, as time allowed")
    for rank, (first, last, _) in enumerate(found):
        for key, before in first.items():
            note = f"{before:,.0f} at first, {last[key]:,.0f} at the end"
            growth = (
                _MOST_GROWTH if not setting.sizes.brief else 1.0
            )  # it is still filling its caches
            limit = before * growth if key == "bytes of the process" else 0.0
            yield at_most(f"rank {rank}: more {key}", last[key] - before, limit, note=note)


def first_look(epochs: int) -> int:
    """The epoch by which a run has everything; a short one later in its course."""
    return epochs // (_LOOKS if epochs >= _SETTLED else 2)


def held_over_epochs(
    comm: Communicator, setting: Setting, seconds: float
) -> tuple[dict[str, float], dict[str, float], int]:
    """What is held after the first look and at the end, and the epochs until then."""
    started = time.monotonic()
    epochs = setting.sizes.epochs_watched
    trainer = quick_trainer(comm, epochs)
    first: dict[str, float] = {}
    for epoch in range(1, epochs + 1):
        trainer.train_epoch()
        if epoch == first_look(epochs):
            first = _held(comm)
        spent = torch.tensor([time.monotonic() - started], dtype=torch.float64)
        if first and float(comm.max(spent)) > seconds:
            break
    return first, _held(comm), epoch


def _held(comm: Communicator) -> dict[str, float]:
    """Right now, when nothing waits to be collected."""
    gc.collect()
    finish_device(comm)
    alive = [type(one) for one in gc.get_objects()]  # asking an object itself may wake a proxy
    found = {
        "bytes of the process": float(resident(torch.device("cpu"))),
        "file handles": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in alive),
        "timing events": sum(issubclass(kind, torch.cuda.Event) for kind in alive),
    }
    if comm.device.type == "cuda":
        found["bytes of the device"] = float(resident(comm.device))
    return found
