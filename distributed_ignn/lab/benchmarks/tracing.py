"""Where a method is after each evaluation of the map, and when.

One rule for all methods: after k evaluations a method is at Z_k, the point that it proposes to
evaluate next (IGNN-Solver, Algorithm 1); Z_0 is its starting point. Distance, residual and test
metric are those of Z_k.

Two kinds of runs: in ``trace`` everything is measured and nothing is timed; in ``time_steps`` all
methods run in turn, round by round, and only the clock is read: t_k is when Z_k is there, counted
from before the starting point is made, on the slowest rank.

Letters: O owned rows, D columns.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.interleaving import finish_device
from distributed_ignn.lab.benchmarks.problem import Problem
from distributed_ignn.solvers.base import AnySolver, Evaluation, FixedPointMap, relative_residual
from distributed_ignn.solvers.solve import solve

Now = Callable[[], float]
"""Seconds since some moment."""

Start = Callable[[Tensor], Tensor]
"""Starting point [O, D] from the injection b [O, D]."""


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A solver with its starting point.

    Args:
        name: of the solver.
        start_name: of the starting point.
        start: makes the starting point; its time counts.
        drive: calls the map from a starting point, at most so many times.
        solver: the method, if it obeys our protocol.
    """

    name: str
    start_name: str
    start: Start
    drive: Callable[[FixedPointMap, Tensor, int, Problem], None]
    solver: AnySolver | None = None

    @property
    def label(self) -> str:
        return f"{self.name}, {self.start_name}"


@dataclass(frozen=True, slots=True)
class Step:
    """Where a method is after some evaluations.

    Args:
        evaluations: k, from 0.
        distance: ||Z_k - Z*|| / ||Z*||.
        residual: relative residual of Z_k.
        metric: test metric of the readout at Z_k.
        seconds: until Z_k was there, nan if not timed.
    """

    evaluations: int
    distance: float
    residual: float
    metric: float
    seconds: float = math.nan


def drive_solver(
    solver: AnySolver,
) -> Callable[[FixedPointMap, Tensor, int, Problem], None]:
    """``Method.drive`` of a solver that obeys our protocol."""

    def drive(fixed_point_map: FixedPointMap, z0: Tensor, most: int, problem: Problem) -> None:
        solve(fixed_point_map, z0, solver, problem.comm.sum, tolerance=0.0, max_steps=most + 1)

    return drive


class _EnoughError(Exception):
    """Raised by an observed map to end a run whose method does not stop by itself."""


class _Observed:
    """The map of a problem, with all that a solver may ask of it."""

    def __init__(self, problem: Problem) -> None:
        self._cell = problem.cell()

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return self._cell.weights

    def sum_squares(self) -> None:
        self._cell.sum_squares()

    def gate(self, values: Tensor, image: Tensor, rows: slice = slice(None)) -> Tensor:
        return self._cell.gate(values, image, rows)

    def propagate(self, columns: Tensor, sparsified: bool) -> list[Tensor]:
        return self._cell.propagate(columns, sparsified)


class _Recorder(_Observed):
    """Measures every point that is evaluated."""

    def __init__(self, problem: Problem, most: int, floor: float, tolerance: float) -> None:
        super().__init__(problem)
        self._problem, self._most, self._floor = problem, most, floor
        self._tolerance = tolerance
        self.steps: list[Step] = []

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        evaluation = self._cell(z, rider)
        (distance,) = self._problem.distance(z)
        residual = self._residual(z, evaluation.image)
        metric = self._problem.test_metric(z)
        self.steps.append(Step(len(self.steps), distance, residual, metric))
        # the last point is evaluated for its residual only
        there = distance <= self._floor or residual <= self._tolerance
        if len(self.steps) > self._most or there or not math.isfinite(residual):
            raise _EnoughError
        return evaluation

    def _residual(self, z: Tensor, image: Tensor) -> float:
        squares = torch.stack([(image - z).square().sum(), image.square().sum()])
        return relative_residual(*self._problem.comm.sum(squares.double().cpu()).tolist())


class _Clock(_Observed):
    """Notes when each point is there."""

    def __init__(self, problem: Problem, points: int, now: Now) -> None:
        super().__init__(problem)
        self._comm, self._points, self._now = problem.comm, points, now
        finish_device(self._comm)
        self._started = now()
        self.seconds: list[float] = []

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        finish_device(self._comm)
        self.seconds.append(self._now() - self._started)
        if len(self.seconds) >= self._points:
            raise _EnoughError
        return self._cell(z, rider)


def _run(method: Method, observed: _Recorder | _Clock, problem: Problem, most: int) -> None:
    try:
        method.drive(observed, method.start(problem.injection), most, problem)
    except _EnoughError:
        return


@torch.no_grad()
def trace(
    problem: Problem, method: Method, most: int, floor: float = 0.0, tolerance: float = 0.0
) -> list[Step]:
    """One step per point, the starting point first; not timed. Every rank calls it.

    Args:
        problem: what is solved.
        method: how.
        most: evaluations allowed.
        floor: ends the run once the distance is at or below it.
        tolerance: ends it once the relative residual is.
    """
    recorder = _Recorder(problem, most, floor, tolerance)
    _run(method, recorder, problem, most)
    return recorder.steps


def time_steps(
    problem: Problem,
    methods: Mapping[str, Method],
    lengths: Mapping[str, int],
    rounds: int,
    now: Now = time.perf_counter,
) -> dict[str, list[float]]:
    """Median seconds until each of a method's first points is there; every rank calls it.

    Args:
        problem: what is solved.
        methods: run in turn.
        lengths: points of each method.
        rounds: see ``take_turns``.
        now: the clock that is read.
    """
    runs = {
        name: partial(clocked, problem, each, lengths[name], now) for name, each in methods.items()
    }
    return take_turns(runs, rounds, problem.comm)


@torch.no_grad()
def clocked(
    problem: Problem, method: Method, points: int, now: Now = time.perf_counter
) -> list[float]:
    """Seconds by ``now`` until each of a method's first points is there, on this rank."""
    clock = _Clock(problem, points, now)
    _run(method, clock, problem, points)
    return clock.seconds


def take_turns(
    runs: Mapping[str, Callable[[], list[float]]], rounds: int, comm: Communicator
) -> dict[str, list[float]]:
    """Medians of what runs return, each number that of the slowest rank; every rank calls it.

    Args:
        runs: called in turn in every round, after one round that only warms up; each returns as
            many seconds every time.
        rounds: measured ones.
        comm: this rank's communicator.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            comm.barrier()
            slowest = comm.max(torch.tensor(run(), dtype=torch.float64))
            if round_number:
                found[name].append(slowest.tolist())
    return {
        name: [statistics.median(column) for column in zip(*times, strict=True)]
        for name, times in found.items()
    }
