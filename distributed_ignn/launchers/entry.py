"""The training command: decide who starts the ranks, run this rank, close, report mistakes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

import torch

from distributed_ignn.cli import run_main
from distributed_ignn.comm.communicator import Communicator, joined, start_communicator
from distributed_ignn.comm.watchdog import explained, start_watchdog
from distributed_ignn.config import CommConfig, RunConfig, absolute_paths, parse_args
from distributed_ignn.errors import UserError
from distributed_ignn.runs.run import run_training

T = TypeVar("T")


def main(argv: Sequence[str]) -> int:
    """Exit code of the training command, see ``run_main``."""
    return run_main(lambda: train(parse_args(argv)))


def train(config: RunConfig) -> None:
    """Train as one rank of torchrun, on Ray, or as a single process."""
    if "RANK" not in os.environ and (config.workers or config.gpus):
        from distributed_ignn.launchers.ray_launch import train_on_ray

        try:
            train_on_ray(config)
        except UserError:
            with suppress(OSError):  # not empty: it holds a run
                config.output.rmdir()
            raise
        return
    _check_processes(config)
    run = absolute_paths(config)
    on_this_rank(lambda comm: run_training(run, comm), run.device, run.comm)


def _check_processes(config: RunConfig) -> None:
    """The numbers of processes are for Ray; under torchrun another number would be ignored."""
    started = os.environ.get("WORLD_SIZE", "1")
    for name in ("workers", "gpus"):
        asked = getattr(config, name)
        if asked is not None and str(asked) != started:
            raise UserError(
                f"{name} = {asked} but {started} processes are started already, by torchrun; leave "
                f"out --{name}, or give torchrun --nproc-per-node {asked}"
            )


def on_this_rank(
    action: Callable[[Communicator], T], device: str, config: CommConfig | None = None
) -> T:
    """Join the job that the environment describes, act, and leave it."""
    settings = config or CommConfig()
    comm = join(device, settings)
    comm.watchdog = start_watchdog(comm, settings.hang_seconds)
    try:
        with explained(comm):
            return action(comm)
    except UserError as error:
        error.teller = "job"
        raise
    finally:
        comm.close()


def join(device: str, config: CommConfig | None = None) -> Communicator:
    """Join the job that the environment describes, or the process group that exists already.

    Args:
        device: auto, cpu or cuda.
        config: how ranks talk; the defaults if not given.

    Raises:
        UserError: the environment is no rank's, or there is no such device.
        JobError: another rank did not come.
    """
    settings = config or CommConfig()
    place = _position()
    return start_communicator(
        **place._asdict(),
        device=choose_device(device, place.local_rank),
        backend=settings.backend,
        timeout_seconds=settings.timeout_seconds,
        shares_memory=settings.shared_memory,
    )


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device of a rank; ranks share GPUs when there are fewer of them.

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
    """Of a rank: in the job and on its machine."""

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
        rank, world_size = joined() or (0, 1)
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
