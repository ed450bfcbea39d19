"""What the kernels between two evaluations find, beside torch's operations; run interpreted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.anderson_ring import GroupAnderson, Ring
from distributed_ignn.solvers.base import Evaluation, Solution
from distributed_ignn.solvers.captured import Captures
from distributed_ignn.solvers.groups import Progress, Verdict
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
