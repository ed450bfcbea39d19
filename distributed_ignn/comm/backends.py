"""How ranks that meet choose their transport, and what NCCL is told before it starts.

NCCL moves rows between GPUs, of which every rank must have one of its own. What a rank's GPU is
called says nothing about that: a launcher may show each rank one GPU (``srun --gpus-per-task=1``),
which all of them then call ``cuda:0``. So each rank tells the others which GPU it has, by the
number that the driver knows it by, and all of them read the same list.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from distributed_ignn.comm.rendezvous import join
from distributed_ignn.device.triton_seam import SWITCH, kernels_obstacle, leave_to_torch
from distributed_ignn.errors import UserError

logger = logging.getLogger(__name__)

_NCCL_DEFAULTS = {
    # torch would end the process with SIGABRT where NCCL or the GPU reports an error, before
    # anybody can say which rank was lost; the watchdog does that, and the thread that trains meets
    # the GPU's errors itself (torch 2.13, ProcessGroupNCCL.hpp: 0 is NoHandling)
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
}
_OLD_NAMES = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "NCCL_ASYNC_ERROR_HANDLING"}
_STREAMS = {
    # rows of an exchange start at once beside a product that fills the GPU
    "TORCH_NCCL_HIGH_PRIORITY": "1",
}


_GPUS = "ignn/gpu/"
_PATIENCE_SECONDS = 5.0


class Gpu(NamedTuple):
    """The GPU of a rank.

    Args:
        name: with the driver's number, the same whatever a process is shown of the machine.
        host: its machine, for messages.
    """

    name: str
    host: str


def meet(rank: int, world_size: int, init_method: str, seconds: float) -> dist.Store:
    """Open the store where the ranks of a job meet; every rank calls it.

    Args:
        rank, world_size: position of this one.
        init_method: ``env://``, or another address that torch knows.
        seconds: how long to wait for the others.

    Raises:
        UserError, JobError: see ``join``.
    """
    if init_method == "env://":
        return join(rank, world_size, seconds)
    found: dist.Store
    found, _, _ = next(dist.rendezvous(init_method, rank, world_size))
    found.set_timeout(timedelta(seconds=seconds))
    return found


def agreed_backend(
    store: dist.Store, rank: int, world_size: int, backend: str, device: torch.device
) -> str:
    """Choose the transport of a job, see ``choose_backend``; every rank calls it.

    Whether kernels are used is settled on the way, see ``settle_kernels``.

    Raises:
        UserError: the same on every rank.
    """
    own = {"gpu": _own_gpu(device), "kernels": kernels_obstacle(device)}
    store.set(f"{_GPUS}{rank}", json.dumps(own))
    texts = store.multi_get([f"{_GPUS}{other}" for other in range(world_size)])
    found = [json.loads(text) for text in texts]
    settle_kernels([one["kernels"] for one in found], rank)
    gpus = [None if one["gpu"] is None else Gpu(*one["gpu"]) for one in found]
    try:
        return choose_backend(backend, gpus)
    except UserError as error:
        error.teller = "job"
        _let_all_read(store, rank, world_size)
        raise


def settle_kernels(obstacles: Sequence[str | None], rank: int) -> None:
    """Leave to torch on every rank what some rank leaves to it; every rank calls it.

    Ranks with and without kernels would reduce different numbers.

    Args:
        obstacles: of every rank, see ``kernels_obstacle``.
        rank: this one; rank 0 says so.
    """
    without = [other for other, obstacle in enumerate(obstacles) if obstacle is not None]
    uneven = 0 < len(without) < len(obstacles)
    leave_to_torch(uneven)
    if uneven and rank == 0:
        first = without[0]
        logger.warning(
            "rank %d has no GPU kernels: %s; all ranks use torch's operations, as with %s=0",
            first,
            obstacles[first],
            SWITCH,
        )


def _own_gpu(device: torch.device) -> Gpu | None:
    if device.type != "cuda":
        return None
    host = socket.gethostname()
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    # without one, GPUs of the same name on a machine count as the same
    return Gpu(f"{host}'s {device}" if uuid is None else f"GPU {uuid}", host)


def _let_all_read(store: dist.Store, rank: int, world_size: int) -> None:
    """Keep rank 0, whose process may hold the store, until the others know as much."""
    store.add(f"{_GPUS}read", 1)
    until = time.monotonic() + _PATIENCE_SECONDS
    while rank == 0 and store.add(f"{_GPUS}read", 0) < world_size and time.monotonic() < until:
        time.sleep(0.02)


def choose_backend(backend: str, gpus: Sequence[Gpu | None]) -> str:
    """Resolve ``auto``: nccl where every rank has a GPU of its own, gloo otherwise.

    Args:
        backend: auto, gloo or nccl.
        gpus: of every rank; None for one that computes on a CPU.

    Raises:
        UserError: nccl was asked for and cannot work, or only some ranks have a GPU: they would
            exchange and reduce other bytes than the rest; the same on every rank.
    """
    problem = _against_nccl(gpus)
    without = [rank for rank, gpu in enumerate(gpus) if gpu is None]
    if 0 < len(without) < len(gpus):
        rank, gpu = next((rank, gpu) for rank, gpu in enumerate(gpus) if gpu is not None)
        raise UserError(
            f"rank {without[0]} computes on a CPU and rank {rank} on {gpu.name} of {gpu.host}; "
            f"repair the driver of the machine of rank {without[0]}, or use --device cpu for all"
        )
    if backend == "auto":
        return "gloo" if problem else "nccl"
    if backend == "nccl" and problem:
        raise UserError(
            f"comm.backend nccl needs one GPU per rank, and {problem}; use --comm.backend gloo"
        )
    return backend


def _against_nccl(gpus: Sequence[Gpu | None]) -> str | None:
    """Why NCCL cannot connect the ranks; None if it can."""
    first: dict[str, int] = {}
    for rank, gpu in enumerate(gpus):
        if gpu is None:
            return f"rank {rank} computes on a CPU"
        other = first.setdefault(gpu.name, rank)
        if other != rank:
            return f"ranks {other} and {rank} share {gpu.name} of {gpu.host}"
    return None


def check_interfaces() -> None:
    """Refuse network interfaces of gloo that this machine has not.

    gloo would say so only once all ranks are there, in words of its own, and not on all of them.

    Raises:
        UserError: the environment names one.
    """
    named = os.environ.get("GLOO_SOCKET_IFNAME", "")
    present = [interface for _, interface in socket.if_nameindex()]
    absent = [name for name in named.split(",") if name not in present]
    if named and absent:
        raise UserError(
            f"GLOO_SOCKET_IFNAME = {named} names no network interface of {socket.gethostname()}; "
            f"it has {', '.join(present)}; name one of them, or unset the variable"
        )


def nccl_environment(*, watched: bool) -> dict[str, str]:
    """Return the variables that NCCL's group is to find, without those that are set already.

    Args:
        watched: whether a watchdog of ours ends the process when ranks are lost; where none does,
            torch goes on doing it.
    """
    wanted = _STREAMS | (_NCCL_DEFAULTS if watched else {})
    said = os.environ.keys()
    return {k: v for k, v in wanted.items() if k not in said and _OLD_NAMES.get(k) not in {*said}}


def group_arguments(backend: str, device: torch.device) -> dict[str, Any]:
    """Return what ``init_process_group`` is told besides: NCCL connects the ranks at once."""
    return {"device_id": device} if backend == "nccl" else {}
