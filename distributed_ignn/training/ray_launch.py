"""Ray Train as launcher: workers on a Ray cluster run what a rank runs under torchrun.

The driver, which is the process that a person started, checks what it can before any worker
starts, hands the settings to the workers and shows what rank 0 prints. The workers come back by
themselves after a crash, from the newest checkpoint of the run.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import socket
import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from distributed_ignn.cli import shown_log
from distributed_ignn.config import RunConfig, absolute_paths
from distributed_ignn.errors import UserError
from distributed_ignn.training.entry import on_this_rank
from distributed_ignn.training.output import SETTINGS, claim_output
from distributed_ignn.training.records import EpochRecord
from distributed_ignn.training.run import run_training

RESTARTS = 2
"""How often the workers are started again after one of them has crashed."""

# Ray's list of reported checkpoints. It names folders that our own retention has removed since,
# which a later start on the same output would take for damage.
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_POLL_SECONDS = "0.5"  # a report waits until the one before was fetched; Ray's 2 s is long
_REACH_SECONDS = 10.0


def train_on_ray(config: RunConfig) -> None:
    """Train with ``config.workers`` or ``config.gpus`` processes on a Ray cluster.

    Joins the cluster of RAY_ADDRESS or one that runs on this machine; starts a local one otherwise.

    Raises:
        UserError: Ray is missing or not reachable, the cluster is too small, or a worker met a
            mistake of the user.
    """
    _check_installed()
    run = absolute_paths(config)
    check_output(run)
    import ray

    _connect()
    try:
        _check_folder(config)
        share = choose_gpu_share(run, int(ray.cluster_resources().get("GPU", 0)))
        resources = {"CPU": 1.0} | ({"GPU": share} if share else {})
        _check_size(run, resources, ray.cluster_resources())
        announce_wait(run, resources, ray.available_resources())
        if not share:
            run = run.model_copy(update={"device": "cpu"})
        _fit(run, resources)
    finally:
        ray.shutdown()


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
        raise UserError(f"gpus = {config.gpus} but Ray found {_count(found, 'GPU')}; {fewer}")
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
    return 1.0 / -(-_processes(config) // found)


def choose_group_backend(config: RunConfig, share: float) -> str:
    """nccl where every process has a GPU of its own, gloo otherwise.

    Raises:
        UserError: nccl was asked for where it cannot work.
    """
    if config.comm.backend == "nccl" and share < 1:
        raise UserError(
            f"comm.backend = nccl needs one GPU for each of the {_processes(config)} processes; "
            "use --comm.backend gloo"
        )
    if config.comm.backend != "auto":
        return config.comm.backend
    return "nccl" if share == 1 else "gloo"


def _processes(config: RunConfig) -> int:
    return config.gpus or config.workers or 1


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _check_installed() -> None:
    """Import Ray Train once, so that a missing part shows here and as one line."""
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"  # the default since Ray 2.51
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_SECONDS)
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--workers and --gpus need Ray Train; install it with pip install "
            "'distributed-ignn[ray]', or start with torchrun --nproc-per-node N"
        ) from error


def check_output(config: RunConfig) -> None:
    """Refuse an output folder that holds another run or cannot be written.

    Workers take settings that they find in the folder for those of a crashed attempt of their own.
    """
    try:
        claim_output(config)
        (config.output / _SNAPSHOT).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to output = {config.output}: {error.strerror}") from error


def _check_folder(config: RunConfig) -> None:
    """Refuse to write results into the copy of a working folder that Ray removes after the job."""
    import ray

    copied = ray.get_runtime_context().runtime_env.get("working_dir")
    if copied and not config.output.is_absolute():
        raise UserError(
            f"output = {config.output} is relative, and a job with a working folder runs in a "
            "temporary copy of it; give an absolute --output"
        )


def _connect() -> None:
    """Join a running cluster or start a local one; Ray's own messages stay in its log files."""
    import ray

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
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        named = f" at RAY_ADDRESS = {address}" if address else ""
        raise UserError(
            f"cannot join the Ray cluster{named} ({reason}); give this shell the cluster's token, "
            "or end it with ray stop and start it again"
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


def _check_size(config: RunConfig, each: dict[str, float], found: dict[str, float]) -> None:
    needed, cpus = _processes(config), int(found.get("CPU", 0))
    if needed * each["CPU"] > cpus:
        asked = "gpus" if config.gpus else "workers"
        raise UserError(
            f"{asked} = {needed} needs {_count(needed, 'CPU')} but Ray found "
            f"{_count(cpus, 'CPU')}; ask for fewer processes, or join a larger cluster"
        )


def announce_wait(config: RunConfig, each: dict[str, float], free: dict[str, float]) -> None:
    """Say why nothing happens while other programs use the cluster."""
    for kind, amount in each.items():
        wanted, left = _processes(config) * amount, free.get(kind, 0.0)
        if left < wanted:
            print(
                f"waiting for {wanted:g} {kind}s of the Ray cluster, {left:g} free ...", flush=True
            )


def _fit(config: RunConfig, resources: dict[str, float]) -> None:
    """Start the workers, show what rank 0 says, and wait for the end."""
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray_run_config: Any = ray.train.RunConfig  # type checkers see the old API's
    screen = _Screen()
    share = resources.get("GPU", 0.0)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "run": config.model_dump(mode="json"),
            "lines": screen.lines,
            "columns": shutil.get_terminal_size().columns,
            "encoding": sys.stdout.encoding,
        },
        torch_config=TorchConfig(
            backend=choose_group_backend(config, share), timeout_s=config.comm.timeout_seconds
        ),
        scaling_config=ScalingConfig(
            num_workers=_processes(config), use_gpu=share > 0, resources_per_worker=resources
        ),
        # Its folder is the run's own, so that Ray refers to our checkpoints and copies none.
        run_config=ray_run_config(
            storage_path=str(config.output.parent),
            name=config.output.name,
            failure_config=FailureConfig(max_failures=RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=None),  # we remove old ones ourselves
            worker_runtime_env={"env_vars": {"PYTHONPATH": _search_path()}},
        ),
    )
    print(f"starting {_count(_processes(config), 'worker')} on Ray ...", flush=True)
    try:
        trainer.fit()
    finally:
        screen.close()
        if screen.mistake is not None:
            raise UserError(screen.mistake)


def _search_path() -> str:
    """Where workers find this package when it runs from a folder that is not installed."""
    folders = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, folders))


# Workers send the driver pairs of kind and text. Plain ones, because the process between them that
# holds the queue would have to import this package, and torch with it, to read a class of ours.
_OUTPUT, _MISTAKE, _END = "output", "mistake", "end"


class _Screen:
    """Prints on the driver what rank 0 prints, and keeps the first mistake reported."""

    def __init__(self) -> None:
        import ray
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Beside the driver: it must outlive any machine that the run can lose.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.lines = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.mistake: str | None = None
        self._thread = Thread(target=self._show, daemon=True)
        self._thread.start()

    def _show(self) -> None:
        import ray

        while True:
            try:
                kind, text = self.lines.get()
            except ray.exceptions.RayError:
                return
            if kind == _END:
                return
            if kind == _MISTAKE:
                self.mistake = self.mistake or text
            else:
                print(text, end="", flush=True)

    def close(self) -> None:
        """Return when everything sent before has been shown."""
        import ray

        try:
            self.lines.put((_END, ""))
        except ray.exceptions.RayError:
            return
        self._thread.join()


class _Lines(io.TextIOBase):
    """A text file whose lines appear on the driver's screen."""

    def __init__(self, lines: Any, encoding: str) -> None:
        self._lines = lines
        self._encoding = encoding
        self._pending = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the driver's screen; decides whether tables may have drawn borders."""
        return self._encoding

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        whole, newline, self._pending = (self._pending + text).rpartition("\n")
        if newline:
            self._lines.put((_OUTPUT, whole + newline))
        return len(text)


def _train_worker(settings: dict[str, Any]) -> None:
    """One rank, as Ray Train calls it in each worker process."""
    import ray.train

    context = ray.train.get_context()
    rank = context.get_world_rank()
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "COLUMNS": str(settings["columns"]),
    }
    with ExitStack() as screen:
        if rank == 0:
            lines = _Lines(settings["lines"], settings["encoding"])
            screen.enter_context(redirect_stdout(lines))
            screen.enter_context(shown_log(lines))
        config = _continue_own_run(RunConfig.model_validate(settings["run"]), rank)
        # A mistake is known to all ranks, so they all return. Raising it would make Ray try again.
        try:
            on_this_rank(
                lambda comm: run_training(config, comm, _report), config.device, config.comm
            )
        except UserError as error:
            settings["lines"].put((_MISTAKE, str(error)))


def _continue_own_run(config: RunConfig, rank: int) -> RunConfig:
    """The settings, with ``resume: auto`` when an earlier attempt of this run has crashed."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    again = ray.train.get_checkpoint() is not None
    if rank == 0 and config.resume is None:
        again = again or (config.output / SETTINGS).exists()
    if not broadcast_from_rank_zero(again):
        return config
    if rank == 0:
        # not print, which Ray replaces by one that also writes to its own log
        sys.stdout.write("a worker failed; starting again ...\n")
    return config.model_copy(update={"resume": "auto"})


def _report(record: EpochRecord, checkpoint: Path | None) -> None:
    """Tell Ray about a checkpoint and the epoch it belongs to; every rank calls it in step.

    Ray keeps metrics only together with a checkpoint, and each report is a barrier that may wait
    for Ray's next poll, so epochs without one are not reported.
    """
    import ray.train

    if checkpoint is None:
        return
    folder = None
    if ray.train.get_context().get_world_rank() == 0:
        folder = ray.train.Checkpoint.from_directory(checkpoint)
    ray.train.report(
        asdict(record),
        checkpoint=folder,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )
