"""The runs of a table on a Ray cluster: so many at a time, each a task in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from functools import partial
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.lab.studies.study_runs import is_finished
from distributed_ignn.lab.studies.tables.cell_training import CellTrainer, train_cell
from distributed_ignn.launchers import ray_cluster as cluster
from distributed_ignn.launchers.local_job import killable
from distributed_ignn.launchers.ray_launch import announce_wait, check_lasting
from distributed_ignn.launchers.this_rank import on_this_rank


def train_on_ray(trainer: CellTrainer, asked: RunConfig) -> None:
    """Train all cells that are not finished, ``workers`` or ``gpus`` of ``asked`` at a time.

    Joins the cluster of RAY_ADDRESS or one that runs on this machine; starts a local one otherwise.
    Ray starts a task again that was lost with its process or machine; its run goes on from its
    checkpoint.

    Raises:
        UserError: Ray is missing or not reachable, or the cluster is too small.
        Stopped: by Ctrl-C or SIGTERM; the same call goes on.
    """
    _prepare(asked)
    import ray

    killed: list[int] = []
    try:
        # in this order: Ray takes SIGTERM for itself once it is joined
        with cluster.joined(), killable() as killed:
            check_lasting("out", trainer.out)
            each = cluster.resources_of_each(asked)
            announce_wait(asked, each, ray.available_resources())
            _train(trainer, _task(each, asked.restarts), asked, "GPU" in each)
    except KeyboardInterrupt as stopped:
        signum = killed[0] if killed else signal.SIGINT
        told = f"stopped by {Stopped.name(signum)}; the same command goes on from here"
        raise Stopped(signum, told) from stopped


def _prepare(asked: RunConfig) -> None:
    if "RANK" in os.environ:
        raise UserError(
            "--workers and --gpus train several runs at once through Ray, and the ranks of "
            "torchrun train one after the other; leave them out, or start without torchrun"
        )
    try:
        cluster.prepare(asked)
    except UserError as error:
        raise UserError(
            "--workers and --gpus train several runs at once through Ray, which is missing; "
            "install it with pip install 'distributed-ignn[ray]', or leave them out to train one "
            "run after the other"
        ) from error


def _train(trainer: CellTrainer, task: Any, asked: RunConfig, on_gpus: bool) -> None:
    import ray

    waiting = [cell for cell in trainer.cells if not is_finished(cell.run)]
    running: dict[Any, Any] = {}
    comm = Communicator()
    while waiting or running:
        while waiting and len(running) < cluster.processes(asked):
            cell = waiting.pop(0)
            run = trainer.sharded(cell, comm)
            if run is not None:
                trainer.begin(cell)
                device = run.device if on_gpus else "cpu"
                running[task.remote(run.model_dump(mode="json"), device)] = cell
        for reference in ray.wait(list(running))[0] if running else ():
            cell = running.pop(reference)
            reason = _reason(reference)
            if reason is not None:
                trainer.give_up(cell, reason)


def _reason(reference: Any) -> str | None:
    """Why a task came to nothing."""
    import ray

    try:
        found: str | None = ray.get(reference)
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    ) as error:
        return f"its process was lost more often than restarts allows ({type(error).__name__})"
    return found


def _task(each: Mapping[str, float], restarts: int) -> Any:
    """What Ray runs for each cell; sent as it is, so that it finds the package by its path."""
    import ray

    path, places = cluster.search_path(), {"num_cpus": each["CPU"], "num_gpus": each.get("GPU", 0)}
    remote: Any = ray.remote(max_calls=1, max_retries=restarts)  # max_calls: memory is given back

    def train(settings: dict[str, Any], device: str) -> str | None:
        import sys

        sys.path[:0] = path.split(":")
        from distributed_ignn.lab.studies.tables import ray_cells

        return ray_cells.train_in_task(settings, device)

    return remote(train).options(**places)


def train_in_task(settings: dict[str, Any], device: str) -> str | None:
    """Train a run in this process alone; what ``train_cell`` returns.

    Args:
        settings: of the run, as JSON has them.
        device: what this process may use.
    """
    run = RunConfig.model_validate(settings)
    train = partial(train_cell, run=run, owns_process=False)  # Ray has set the number of threads
    try:
        return on_this_rank(train, device, run.comm)
    except JobError as error:
        return str(error)
