"""The Ray cluster of a run: joining it, and what of it each process gets."""

from __future__ import annotations

import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError

_POLL_SECONDS = "0.5"  # a report waits until the one before was fetched; Ray's 2 s is long
_NOTICE_SECONDS = "2"  # how often Ray looks whether a machine is about to be taken away
_REACH_SECONDS = 10.0
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
_ROUNDING = 1e-6  # of shares of a CPU or GPU


def prepare(config: RunConfig) -> None:
    """Import Ray Train once, so that a missing part shows here and as one line.

    Raises:
        UserError: Ray Train is not installed.
    """
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"  # the default since Ray 2.51
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_SECONDS)
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", _NOTICE_SECONDS)
    # Ray's own collectives would wait for a lost process without end
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(config.comm.timeout_seconds))
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            "workers and gpus need Ray Train; install it with pip install "
            "'distributed-ignn[ray]', or start with torchrun --nproc-per-node N"
        ) from error


@contextmanager
def joined() -> Iterator[bool]:
    """Be in a cluster, see ``connect``; one that this process was in before is not left.

    Yields:
        Whether it is left in the end, which gives back whatever was held there.
    """
    import ray

    ours = connect()
    try:
        yield ours
    finally:
        if ours:
            ray.shutdown()


def connect() -> bool:
    """Join a running cluster or start a local one; Ray's own messages stay in its log files.

    Returns:
        Whether this call has joined it; False where the process was in a cluster already.

    Raises:
        UserError: the cluster cannot be joined.
    """
    import ray

    if ray.is_initialized():
        _refuse_client()
        return False
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS = {address} reaches a cluster from outside; send the run there with ray "
            "job submit, or unset RAY_ADDRESS"
        )
    if ":" in address:
        _check_reachable(address)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except RuntimeError as error:
        ray.shutdown()  # of what has begun
        _refuse_other_versions(error, address)
        raise
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        named = f" at RAY_ADDRESS = {address}" if address else ""
        raise UserError(
            f"cannot join the Ray cluster{named} ({reason}); give this shell the cluster's token, "
            "or end it with ray stop and start it again"
        ) from error
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        raise UserError(
            f"the path of the folder for Ray's temporary files, {folder}, is too long for its "
            "sockets; name a shorter one with RAY_TMPDIR, as in RAY_TMPDIR=/tmp"
        ) from error
    return True


def _refuse_client() -> None:
    """Ray Train's controller has to run beside the program that waits for it."""
    from ray.util.client import ray as client

    if client.is_connected():
        raise UserError(
            "this program has reached its Ray cluster from outside, by ray.init('ray://...'); send "
            "it there with ray job submit, or call ray.init on a machine of the cluster"
        )


def _refuse_other_versions(error: RuntimeError, address: str) -> None:
    """Tell in a line that the cluster has another Ray or Python, if that is what the error says."""
    found = _VERSIONS.findall(str(error))
    if len(found) != 2:
        return
    (ray_there, python_there), (ray_here, python_here) = found
    where = f"at RAY_ADDRESS = {address}" if address else "on this machine"
    raise UserError(
        f"the Ray cluster {where} has Ray {ray_there} and Python {python_there}, and this program "
        f"Ray {ray_here} and Python {python_here}; start both in the same environment, or set "
        "RAY_ADDRESS=local to start a cluster of its own here"
    ) from error


def _check_reachable(address: str) -> None:
    """Ray itself tries for more than a minute before it gives up."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS = {address} ({error}); correct it, or unset "
            "it to start a local one"
        ) from error


def scaling(config: RunConfig, each: dict[str, float]) -> Any:
    """Ray's ScalingConfig for the processes of a run.

    Args:
        config: with ``workers`` or ``gpus``.
        each: what a process takes, see ``resources_of_each``.
    """
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=processes(config), use_gpu="GPU" in each, resources_per_worker=each
    )


def resources_of_each(config: RunConfig) -> dict[str, float]:
    """What each process of the run takes of the cluster.

    Raises:
        UserError: the cluster has too little of it, even when nobody else uses it.
    """
    import ray

    found = ray.cluster_resources()
    share = choose_gpu_share(config, int(found.get("GPU", 0)))
    each = {"CPU": 1.0} | ({"GPU": share} if share else {})
    asked = "gpus" if config.gpus else "workers"
    check_room(asked, processes(config), each)
    return each


def check_room(asked: str, number: int, each: Mapping[str, float]) -> None:
    """Refuse what the machines of the cluster can never hold, also when nobody else uses them.

    Args:
        asked: what the user calls the processes.
        number: of them.
        each: what each takes.

    Raises:
        UserError: with the numbers.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if sum(_held(machine, each) for machine in machines) >= number:
        return
    for kind, amount in each.items():
        found = sum(machine.get(kind, 0.0) for machine in machines)
        if found < number * amount - _ROUNDING:
            raise UserError(
                f"{asked} = {number} needs {count(number * amount, kind)} but Ray found "
                f"{count(found, kind)}; ask for fewer processes, or join a larger cluster"
            )
    wanted = " and ".join(count(amount, kind) for kind, amount in each.items() if amount)
    raise UserError(
        f"{asked} = {number} with {wanted} each do not fit on the machines of the Ray cluster, "
        f"which hold {sum(_held(machine, each) for machine in machines)} such; ask for fewer "
        "processes or less for each"
    )


def _held(machine: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many processes an empty machine has room for."""
    rooms = [
        int(machine.get(kind, 0.0) / amount + _ROUNDING) for kind, amount in each.items() if amount
    ]
    return min(rooms, default=10**9)


def choose_gpu_share(config: RunConfig, found: int) -> float:
    """GPUs of each process: 1, a fraction where processes outnumber GPUs, or 0 for CPUs.

    Args:
        config: the run.
        found: GPUs in the cluster.

    Raises:
        UserError: GPUs were asked for and there are too few, or this torch cannot use them.
    """
    if config.gpus and config.gpus > found:
        fewer = f"use --gpus {found} or less" if found else "use --workers N --device cpu"
        raise UserError(f"gpus = {config.gpus} but Ray found {count(found, 'GPU')}; {fewer}")
    if config.device == "cpu" or (found == 0 and config.device == "auto"):
        return 0.0
    if found == 0:
        raise UserError("device = cuda but Ray found no GPU; use --device cpu")
    if not (torch.version.cuda or torch.version.hip):
        if config.device == "auto" and config.gpus is None:
            return 0.0
        raise UserError(
            f"torch {torch.__version__} is built without GPU support; install a CUDA build, or "
            "use --workers N --device cpu"
        )
    return 1.0 / -(-processes(config) // found)


def choose_group_backend(config: RunConfig, number: int, share: float) -> str:
    """nccl where every process has a GPU of its own, gloo otherwise.

    Args:
        config: the run.
        number: of processes.
        share: GPUs of each.

    Raises:
        UserError: nccl was asked for where it cannot work.
    """
    if config.comm.backend == "nccl" and share < 1:
        raise UserError(
            f"comm.backend = nccl needs one GPU for each of the {number} processes; "
            "use --comm.backend gloo"
        )
    if config.comm.backend != "auto":
        return config.comm.backend
    return "nccl" if share >= 1 else "gloo"


def shortage(config: RunConfig, each: dict[str, float], free: dict[str, float]) -> str | None:
    """What the run waits for while others use the cluster or a machine is gone; None if nothing.

    Args:
        config: the run.
        each: what each process takes.
        free: what nobody uses; Ray leaves out what is used up.
    """
    for kind, amount in each.items():
        wanted, left = processes(config) * amount, free.get(kind, 0.0)
        if left < wanted:
            return f"{wanted:g} {kind}s of the Ray cluster, {left:g} free"
    return None


def processes(config: RunConfig) -> int:
    """How many the run consists of."""
    return config.gpus or config.workers or 1


def count(number: float, what: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def search_path() -> str:
    """Where workers find this package when it runs from a folder that is not installed."""
    folders = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, folders))
