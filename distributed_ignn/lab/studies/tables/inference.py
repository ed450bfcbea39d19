"""The test metric over inference time, as in Figures 2 and 6, of runs that are finished.

The time of an explicit model is that of one forward pass over the graph. An implicit model has a
point for every evaluation of its map, with the method that it was trained with: what it predicts at
Z_k, and when, with b(X) and the readout in the time; until the relative residual is at most 1e-3,
or for 50 evaluations. Models of one dataset and seed take turns, one round that only warms up
first; a time is the median over rounds, and that of the slowest rank.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.interleaving import finish_device
from distributed_ignn.lab.benchmarks.problem import Problem, pose
from distributed_ignn.lab.benchmarks.solver import ZERO, learned_method, learned_starts
from distributed_ignn.lab.benchmarks.tracing import (
    Method,
    Step,
    clocked,
    drive_solver,
    take_turns,
    trace,
)
from distributed_ignn.runs.predict import load_run
from distributed_ignn.solvers.methods import METHODS, SolverSettings
from distributed_ignn.training.trainer import Trainer

TOLERANCE, MOST, ROUNDS = 1e-3, 50, 11


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """A trained model that predicts.

    Args:
        steps: what it predicts after each evaluation; a single one for an explicit model.
        run: predicts once more; the seconds until each step was there.
    """

    steps: Sequence[Step]
    run: Callable[[], list[float]]


def measure(runs: Mapping[str, Path], comm: Communicator) -> list[dict[str, Any]]:
    """A row per model and step; every rank calls it.

    Args:
        runs: folders of finished runs on one dataset, by model; all are held at once.
        comm: this rank's communicator.

    Raises:
        UserError: see ``load_run``.
    """
    found = {name: _inference(load_run(path, comm)) for name, path in runs.items()}
    times = take_turns({name: each.run for name, each in found.items()}, ROUNDS, comm)
    gc.collect()
    return [
        {
            "model": name,
            "evaluations": step.evaluations,
            "milliseconds": 1e3 * seconds,
            "metric": step.metric,
            "residual": step.residual,
        }
        for name, each in found.items()
        for step, seconds in zip(each.steps, times[name], strict=True)
    ]


def _inference(trainer: Trainer) -> Inference:
    trainer.model.eval()
    return _solved(trainer) if trainer.model.solves else _passed(trainer)


def _passed(trainer: Trainer) -> Inference:
    """Of a model that goes through its layers."""
    model, comm = trainer.model, trainer.comm

    @torch.no_grad()
    def predict() -> torch.Tensor:
        return model.read_out(model(None))

    def run() -> list[float]:
        started = _now(comm)
        predict()
        return [_now(comm) - started]

    metric = trainer.objective.metrics(predict(), ("test",)).get("test", math.nan)
    return Inference([Step(0, math.nan, 0.0, metric)], run)


def _solved(trainer: Trainer) -> Inference:
    """Of a model that solves for its state."""
    problem, model, comm = pose(trainer, exact=False), trainer.implicit, trainer.comm
    method = _method(problem)
    steps = trace(problem, method, MOST, tolerance=TOLERANCE)

    @torch.no_grad()
    def run() -> list[float]:
        started = _now(comm)
        model.injection()
        injected = _now(comm)
        seconds = clocked(problem, method, len(steps))
        solved = _now(comm)
        model.read_out(problem.target)
        around = injected - started + _now(comm) - solved
        return [around + each for each in seconds]

    return Inference(steps, run)


def _method(problem: Problem) -> Method:
    """The one that the run was trained with, from the point that it starts from."""
    trainer = problem.trainer
    name, learned, limits = trainer.config.forward.method, trainer.learned, trainer.config.forward
    if learned is not None and learned.ready:
        start_name, start = learned_starts(problem, learned)[-1]
        return learned_method(name, start_name, start, learned)
    settings = SolverSettings(
        limits.memory, limits.beta, limits.regularization, num_nodes=trainer.shard.num_nodes
    )
    return Method(name, ZERO, torch.zeros_like, drive_solver(METHODS[name].solver(settings)))


def _now(comm: Communicator) -> float:
    finish_device(comm)
    return time.perf_counter()


def mean_curve(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[float, float]]:
    """Milliseconds and metric in per cent after each evaluation, means over seeds.

    A seed whose solve has ended stays where it is.

    Args:
        seeds: rows of ``measure``, in order, of one model.
    """
    longest = max(map(len, seeds))
    curve = []
    for step in range(longest):
        rows = [rows[min(step, len(rows) - 1)] for rows in seeds]
        milliseconds = sum(row["milliseconds"] for row in rows) / len(rows)
        curve.append((milliseconds, 100.0 * sum(row["metric"] for row in rows) / len(rows)))
    return curve
