"""Who starts the ranks of a run: torchrun has, Ray will, or there is only this one."""

from __future__ import annotations

import os
from contextlib import suppress

from distributed_ignn.config import RunConfig, absolute_paths
from distributed_ignn.errors import UserError
from distributed_ignn.launchers.this_rank import on_this_rank
from distributed_ignn.runs.predict import PredictOptions, predict
from distributed_ignn.runs.run import run_training
from distributed_ignn.urls.url import Url


def train(config: RunConfig) -> None:
    """Train as one rank of torchrun, on Ray, or as a single process."""
    if _is_for_ray(config.workers, config.gpus):
        from distributed_ignn.launchers.ray_launch import train_on_ray

        try:
            train_on_ray(config)
        except UserError:
            if not isinstance(config.output, Url):
                with suppress(OSError):  # not empty: it holds a run
                    config.output.rmdir()
            raise
        return
    run = absolute_paths(config)
    on_this_rank(lambda comm: run_training(run, comm), run.device, run.comm)


def predict_run(
    options: PredictOptions, device: str, *, workers: int | None, gpus: int | None
) -> None:
    """Predict as one rank of torchrun, on Ray, or as a single process."""
    if _is_for_ray(workers, gpus):
        from distributed_ignn.launchers.ray_launch import predict_on_ray

        predict_on_ray(options, {"device": device, "workers": workers, "gpus": gpus})
        return
    on_this_rank(lambda comm: predict(options, comm), device)


def _is_for_ray(workers: int | None, gpus: int | None) -> bool:
    """Whether processes are to be started; under torchrun another number would be ignored.

    Raises:
        UserError: there are processes already, and not as many as are asked for.
    """
    started = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else None
    for name, asked in (("workers", workers), ("gpus", gpus)):
        if None not in (asked, started) and str(asked) != started:
            raise UserError(
                f"{name} = {asked} but {started} processes are started already, by torchrun; leave "
                f"out --{name}, or give torchrun --nproc-per-node {asked}"
            )
    return started is None and bool(workers or gpus)
