"""This process as one rank: where it stands in the job, its device, and its way in and out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from distributed_ignn.comm.communicator import Communicator, joined, start_communicator
from distributed_ignn.comm.lost_ranks import explained, start_watchdog
from distributed_ignn.config import CommConfig
from distributed_ignn.errors import Stopped, UserError
from distributed_ignn.launchers.precision import full_precision, refuse_override

T = TypeVar("T")

_TASKS = {
    "srun": "SLURM_STEP_NUM_TASKS",
    "mpirun": "OMPI_COMM_WORLD_SIZE",
    "mpiexec": "PMI_SIZE",
}
"""What tells a task how many there are, by who starts it; sbatch itself sets none of them."""


def on_this_rank(
    action: Callable[[Communicator], T], device: str, config: CommConfig | None = None
) -> T:
    """Join the job that the environment describes, act, and leave it."""
    settings = config or CommConfig()
    comm = join(device, settings)
    comm.watchdog = start_watchdog(comm, settings.hang_seconds)
    failed = True
    try:
        with explained(comm), full_precision(comm.device):
            result = action(comm)
        failed = False
        return result
    except UserError as error:
        error.teller, failed = "job", False
        if comm.is_main and comm.watchdog is not None:
            comm.watchdog.see_off()
        raise
    except Stopped:
        failed = False
        raise
    finally:
        comm.close(failed=failed)


def join(device: str, config: CommConfig | None = None) -> Communicator:
    """Join the job that the environment describes, or the process group that exists already.

    Args:
        device: auto, cpu or cuda.
        config: how ranks talk; the defaults if not given.

    Raises:
        UserError: the environment is no rank's, there is no such device, or the environment rounds
            its products.
        JobError: another rank did not come.
    """
    settings = config or CommConfig()
    place = _position()
    chosen = choose_device(device, place.local_rank)
    refuse_override(chosen)
    return start_communicator(
        **place._asdict(),
        device=chosen,
        backend=settings.backend,
        timeout_seconds=settings.timeout_seconds,
        hang_seconds=settings.hang_seconds,
        shares_memory=settings.shared_memory,
    )


def started_ranks() -> int | None:
    """How many ranks this process is one of, started by somebody already; None outside a job."""
    if "RANK" in os.environ:
        return _position().world_size
    world_size = (joined() or (0, 1))[1]
    return world_size if world_size > 1 else None


def choose_device(name: str, local_rank: int) -> torch.device:
    """Choose the device of a rank; ranks share GPUs when there are fewer of them.

    Raises:
        UserError: cuda was asked for and there is none.
    """
    count = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise UserError("device = cuda but no GPU was found; use --device cpu")
    return torch.device("cuda", local_rank % count)


class _Position(NamedTuple):
    """Where a rank stands in the job and on its machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def _position() -> _Position:
    """From torchrun's environment, else from a process group that exists, or a single process.

    Raises:
        UserError: a variable is missing, not a number, or too large.
    """
    if "RANK" not in os.environ:
        group = joined()
        if group is None:
            _check_alone()
        rank, world_size = group or (0, 1)
        return _Position(rank, world_size, rank, world_size)
    values = []
    # starters other than torchrun may leave it out
    texts = {"LOCAL_WORLD_SIZE": os.environ.get("WORLD_SIZE", ""), **os.environ}
    for name in map(str.upper, _Position._fields):
        text = texts.get(name, "")
        if not text.isdecimal():
            raise UserError(
                f"{name} = {text!r} in the environment is not a rank; start with torchrun"
            )
        values.append(int(text))
    place = _Position(*values)
    for below, limit in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        number, most = getattr(place, below.lower()), getattr(place, limit.lower())
        if number >= most:
            raise UserError(
                f"{below} = {number} in the environment is not below {limit} = {most}; start with "
                "torchrun"
            )
    if place.world_size > 1:
        _check_address()
    return place


def _check_alone() -> None:
    """Refuse to be one of several tasks that know nothing of each other and would all do the same.

    Raises:
        UserError: srun or mpirun has started several.
    """
    for starter, name in _TASKS.items():
        tasks = os.environ.get(name, "1")
        if tasks.isdecimal() and int(tasks) > 1:
            raise UserError(
                f"{starter} has started {tasks} tasks ({name} = {tasks}) that know nothing of each "
                "other: let it start one torchrun on each machine, as configs/slurm/train.sbatch "
                "does, or give every task RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
            )


def _check_address() -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(f"{name} is missing in the environment; start with torchrun")
    port = os.environ["MASTER_PORT"]
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(
            f"MASTER_PORT = {port!r} in the environment is not a port; give a number from 1 to "
            "65535, or start with torchrun"
        )
