"""Who starts the ranks of a training run: torchrun has, Ray will, or there is only this one."""

from __future__ import annotations

import os
from contextlib import suppress

from distributed_ignn.config import RunConfig, absolute_paths
from distributed_ignn.errors import UserError
from distributed_ignn.launchers.this_rank import on_this_rank
from distributed_ignn.runs.run import run_training
from distributed_ignn.urls.url import Url


def train(config: RunConfig) -> None:
    """Train as one rank of torchrun, on Ray, or as a single process."""
    if "RANK" not in os.environ and (config.workers or config.gpus):
        from distributed_ignn.launchers.ray_launch import train_on_ray

        try:
            train_on_ray(config)
        except UserError:
            if not isinstance(config.output, Url):
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
