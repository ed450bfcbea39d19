"""Estimates that mislead: what they cost, and that every solve still ends at the fixed point."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import FixedPointMap
from distributed_ignn.solvers.blocks import Rows
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.estimator import ErrorEstimator, StructuredMap
from distributed_ignn.solvers.neural import NeuralSolver, NeuralState
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.reduced import BasisCache, ReducedBasis
from distributed_ignn.solvers.solve import solve
from tests.solvers.dense_map import NODES, WIDTH, DenseMap


class Watched(NeuralSolver):
    """Keeps the state of its solve."""

    state: NeuralState

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap | None = None) -> NeuralState:
        self.state = super().init(z0, fixed_point_map)
        return self.state


class Stretched(ErrorEstimator):
    """H = length_k G + m * (columns N): it can be wrong where all entries are inactive too."""

    lengths: list[float]

    def columns(
        self, fixed_point_map: StructuredMap, basis: ReducedBasis, residual: Rows, like: Tensor
    ) -> list[Tensor]:
        self.residual = residual
        return super().columns(fixed_point_map, basis, residual, like)

    def correction(
        self,
        fixed_point_map: StructuredMap,
        basis: ReducedBasis,
        columns: list[Tensor],
        image: Tensor,
        step: int,
    ) -> Rows:
        found = super().correction(fixed_point_map, basis, columns, image, step)
        length, residual = self.lengths[min(step, len(self.lengths) - 1)], self.residual
        return lambda part: found(part).add_(residual(part), alpha=length - 1.0)


def _solver(lengths: list[float], others: float = 0.0) -> Watched:
    """An estimator with a length per step, and coefficients that are all alike."""
    estimator = Stretched(BasisCache(3), 1, 2, len(lengths)).double()
    estimator.lengths = lengths
    estimator.coefficients.fill_(others)
    return Watched(None, NODES, 1e-10, estimator=estimator, memory=5)


def _run(the_map: DenseMap, solver: Any, tolerance: float = 1e-10, start: float = 1.0) -> Any:
    begin = start * the_map.activate(the_map.offset)
    return solve(the_map, begin, solver, lambda s: s, tolerance=tolerance, max_steps=300)


@pytest.mark.parametrize(
    ("lengths", "others"),
    [
        ([100.0, 100.0, 100.0], 0.0),
        ([1.0, 1.0, 1.0], 50.0),
        ([-30.0, -30.0, -30.0], -5.0),
        ([1.0, 1.0, 1e6], 0.0),
        ([0.0, 0.0, 0.0], 0.0),
        ([1e300, 1e300, 1e300], 0.0),
    ],
    ids=["far too long", "wrong direction", "backwards", "late", "no step", "overflow"],
)
def test_a_harmful_estimator_is_switched_off(lengths: list[float], others: float) -> None:
    solver = _solver(lengths, others)
    solution, anderson = _run(DenseMap(), solver), _run(DenseMap(), Anderson())
    assert solution.converged
    assert solver.state.strikes == 2
    # each strike costs its step, the step before it and what the history has lost
    assert solution.steps <= anderson.steps + 4
    assert torch.allclose(solution.image, anderson.image, rtol=0, atol=1e-8)


def test_it_converges_where_the_image_of_the_best_point_looks_worse() -> None:
    """A shift of the columns: the residual grows threefold for five steps and then vanishes."""
    the_map = DenseMap(linear=True)
    shift = 1.5 * torch.diag(torch.ones(WIDTH - 1, dtype=torch.float64), 1)
    the_map.weights = (shift, shift)
    the_map.graphs = [torch.eye(NODES, dtype=torch.float64)] * 2
    the_map.offset[:, 1:] = 0.0
    for length in (100.0, -30.0):
        solver = _solver([length] * 3)
        solution = _run(the_map, solver)
        assert solution.converged
        assert solver.state.strikes == 2
        assert solution.steps <= _run(the_map, Anderson()).steps + 10


def test_an_estimator_that_helps_has_no_strikes() -> None:
    solver = _solver([1.1, 1.1, 1.1])
    assert _run(DenseMap(), solver).converged
    assert solver.state.strikes == 0


@pytest.mark.parametrize("linear", [False, True])
def test_the_fixed_point_does_not_depend_on_who_finds_it(linear: bool) -> None:
    solvers = [
        Picard(),
        Broyden(5),
        _solver([1.0, 1.0, 1.0]),
        _solver([1.2, 1.1, 1.1], 0.05),
        _solver([0.9], -0.02),
        _solver([1e3, 1e3, 1e3]),
    ]
    expected = _run(DenseMap(linear=linear), Anderson(), 1e-13).image
    for solver in solvers:
        for start in (0.0, 1.0, 100.0):
            found = _run(DenseMap(linear=linear), solver, start=start)
            assert found.converged
            assert float((found.image - expected).norm() / expected.norm()) < 1e-8
