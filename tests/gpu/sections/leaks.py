"""Memory, handles, threads, tensors and timing events over many epochs of one process."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.interleaving import finish_device
from distributed_ignn.runs.memory.machine import resident
from tests.gpu.quick_run import quick_trainer
from tests.gpu.setting import Budget, Setting
from tests.gpu.verdicts import Check, at_most

_MOST_GROWTH = 0.02  # of the process's memory; of the device's, nothing may be added
_LOOKS = 10
_SETTLED = 500  # epochs


def look(budget: Budget) -> Iterator[Check]:
    """Two ranks; what each holds early and at the end."""
    setting = budget.setting
    ranks = 2
    for rank, (first, last) in enumerate(budget.ranks(held_over_epochs, ranks)):
        epochs = setting.sizes.epochs_watched
        for key, before in first.items():
            note = f"{before:,.0f} at epoch {first_look(epochs)}, {last[key]:,.0f} at {epochs}"
            growth = _MOST_GROWTH if epochs >= _SETTLED else 1.0  # it is still filling its caches
            limit = before * growth if key == "bytes of the process" else 0.0
            yield at_most(f"rank {rank}: more {key}", last[key] - before, limit, note=note)


def first_look(epochs: int) -> int:
    """The epoch by which a run has everything; a short one later in its course."""
    return epochs // (_LOOKS if epochs >= _SETTLED else 2)


def held_over_epochs(
    comm: Communicator, setting: Setting
) -> tuple[dict[str, float], dict[str, float]]:
    """What is held after the first look and at the end."""
    epochs = setting.sizes.epochs_watched
    trainer = quick_trainer(comm, epochs)
    first: dict[str, float] = {}
    for epoch in range(1, epochs + 1):
        trainer.train_epoch()
        if epoch == first_look(epochs):
            first = _held(comm)
    return first, _held(comm)


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
