"""What the kernels between two evaluations find, beside torch's operations; run interpreted."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.anderson_ring import GroupAnderson, Ring
from distributed_ignn.solvers.base import Evaluation, Solution
from distributed_ignn.solvers.captured import Captures
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.groups import Progress, Verdict
from distributed_ignn.solvers.history import History
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from tests.device.triton_runs import counted, without_kernels
from tests.solvers.test_captured import _Grouped

Numbers = list[Any]


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _judged(pairs: list[tuple[float, float]], tolerance: float, most: int) -> Numbers:
    """Everything that is known after evaluations with these squares."""
    found: Numbers = []
    progress = Progress(1, [torch.zeros(2), torch.zeros(2)])
    progress.begin(tolerance, most)
    for number, (square, image_square) in enumerate(pairs):
        sums = torch.tensor([square, 5.0, image_square], dtype=torch.float64)
        mark = torch.full((2,), float(number))
        verdict = progress.judge(0, sums, [mark, mark])
        going = bool(progress._going)
        held = float(progress.held[1][0])
        found.append([float(verdict.residual), float(verdict.best), going, held])
    return found


COURSES = {
    "falls": ([(4.0, 1.0), (1.0, 1.0), (9.0, 1.0), (0.01, 1.0), (0.0, 1.0)], 0.2, 9),
    "ends at the limit": ([(4.0, 1.0), (1.0, 1.0), (0.5, 1.0)], 0.0, 2),
    "not a number": ([(4.0, 1.0), (math.nan, 1.0), (1.0, 1.0)], 0.1, 9),
    "infinite": ([(math.inf, 2.0), (1.0, 1.0)], 0.1, 9),
    "infinite image": ([(1.0, math.inf), (1.0, 1.0)], 0.1, 9),
    "all is infinite": ([(math.inf, math.inf), (0.0, math.inf)], 0.1, 9),
    "image vanishes": ([(3.0, 0.0), (0.0, 0.0), (1.0, 1.0)], 1e-9, 9),
    "both are lost": ([(math.nan, 0.0), (1.0, 1.0)], 1e-9, 9),
}


def _decided(count: int, residual: float, best: float, left_best: float, beta: float) -> Numbers:
    """All that a step decides, for a history of four places."""
    method = GroupAnderson(3, beta, 1e-8, None)
    state: Ring = method.allocate(torch.zeros(2, 2, dtype=torch.float64))
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    gram = rows @ rows.T
    state.gram[:3, :3] = gram[1:, 1:]
    state.count.fill_(count)
    state.left_best.fill_(left_best)
    image = torch.full((2, 2), 7.0, dtype=torch.float64)
    verdict = Verdict(_scalar(residual), _scalar(best), image)
    state.newest = torch.ones_like(image), torch.ones_like(image)
    sums = torch.cat([gram[0], _scalar(3.0)[None]])
    found = method.advance(state, 1, Evaluation(image, image), sums, verdict)
    numbers = [found, state.gram, state.count.double(), state.left_best]
    return [number for array in numbers for number in array.reshape(-1).tolist()]


def small_steps(comm: Communicator) -> tuple[Numbers, Numbers]:
    """By kernels, and by torch's operations."""

    def everything() -> Numbers:
        judged = [_judged(*course) for course in COURSES.values()]
        flat = [[float(x) for row in course for x in row] for course in judged]
        ways = [(1.0, 1.0, 9.0), (3.0, 1.0, 9.0), (3.0, 1.0, 1.0)]
        for count in (0, 1, 2, 3, 4):
            for way in ways:
                flat.append(_decided(count, *way, beta=0.6))
        return [*flat, _decided(2, math.nan, 1.0, 9.0, beta=1.0)]

    found = everything()
    with without_kernels():
        return found, everything()


def whole_solves(comm: Communicator) -> list[tuple[Solution, Solution, int]]:
    """By kernels and by torch's operations, with the launches of kernels."""
    found = []
    for solver in (Anderson(3), Anderson(2, beta=0.7)):

        def solved(solver: Anderson = solver) -> Solution:
            start = torch.ones(30, 6, dtype=torch.float64)
            limits: dict[str, Any] = {"tolerance": 1e-8, "max_steps": 8}
            return Captures(4).solve(_Grouped(), start, solver, lambda sums: sums, **limits)

        with counted() as traffic:
            fused = solved()
        with without_kernels():
            found.append((fused, solved(), traffic.launches))
    return found


def judged_first(comm: Communicator) -> dict[str, list[tuple[Solution, int]]]:
    """Solves by kernels and by torch's operations, and their restarts.

    By kernels no Gram matrix comes to the host.
    """
    found: dict[str, list[tuple[Solution, int]]] = {}
    for name, solver in _judging().items():
        with mock.patch.object(History, "set_newest_gram", side_effect=AssertionError):
            fused = _restarting(name, solver)
        with without_kernels():
            found[name] = [fused, _restarting(name, solver)]
    return found


def _restarting(name: str, solver: Any) -> tuple[Solution, int]:
    made, states = solver.init, []

    def init(*where: Any) -> Any:
        states.append(made(*where))
        return states[-1]

    start = torch.ones(30, 6, dtype=torch.float64)
    limits: dict[str, Any] = {"tolerance": 1e-9, "max_steps": 20}
    with mock.patch.object(solver, "init", init):
        found = solve(_misleading(name), start, solver, lambda sums: sums, **limits)
    state = states[0]
    return found, (state.base if name == "learned" else state).restarts


def _judging() -> dict[str, Any]:
    estimator = ErrorEstimator(BasisCache(3), 1, 2, 3).double()
    estimator.coefficients.fill_(0.02)
    return {
        "anderson": Anderson(3, judge_first=True),
        "anderson, misled": Anderson(1, regularization=1e-3, judge_first=True),
        "anderson, singular": Anderson(3, regularization=0.0, judge_first=True),
        "learned": NeuralSolver(None, 30, 1e-10, None, estimator, 3),
    }


def _misleading(name: str) -> Any:
    the_map = _Grouped(linear=True) if "misled" in name else _Grouped()
    if "misled" in name:
        chain = torch.diag(torch.full((5,), 5.0, dtype=torch.float64), 1)
        chain += 0.5 * torch.eye(6, dtype=torch.float64)
        the_map.weights = chain, torch.zeros_like(chain)
    if "singular" in name:  # z + b: all residuals are the same
        the_map = _Grouped(linear=True)
        the_map.weights = tuple(0.5 * torch.eye(6, dtype=torch.float64) for _ in range(2))
        the_map.graphs = [torch.eye(30, dtype=torch.float64)] * 2
    return the_map
