"""A step without estimate, where the map alone will do: when it is taken, and that it is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers.base import Iterate, Solution
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.neural import _SAFE, NeuralSolver
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from tests.solvers.dense_map import NODES, DenseMap

RATE = 0.25


def _solver(tolerance: float, rate: float = RATE) -> NeuralSolver:
    estimator = ErrorEstimator(BasisCache(3), 1, 2, 3).double()
    estimator.coefficients.fill_(0.02)
    estimator.plain_rate.fill_(rate)
    return NeuralSolver(None, NODES, 1e-10, estimator=estimator, memory=3, tolerance=tolerance)


def _start(the_map: DenseMap) -> Tensor:
    return the_map.activate(the_map.offset)


def _solved(solver: NeuralSolver, tolerance: float) -> tuple[Solution, int]:
    """The solution, and how many estimates it took."""
    the_map = DenseMap()
    found = solve(the_map, _start(the_map), solver, lambda s: s, tolerance=tolerance, max_steps=100)
    return found, the_map.products


def _first_step(share: float, rate: float = RATE) -> tuple[bool, bool]:
    """Whether the first step is the image, and is said to be.

    Args:
        share: of what the map is expected to leave of the residual, which the tolerance is.
        rate: see ``plain_rate``.
    """
    the_map = DenseMap()
    evaluation = the_map(_start(the_map), None)
    residual = float((evaluation.image - evaluation.point).norm() / evaluation.image.norm())
    solver = _solver(share * RATE * residual / _SAFE, rate)
    state = solver.init(evaluation.point, the_map)
    assert solver.observe(state, evaluation, lambda s: s) == pytest.approx(residual)
    z = solver.advance(state, Iterate(evaluation, residual))
    assert the_map.products == (0 if state.plain else 1)
    return torch.equal(z, evaluation.image), state.plain


def test_the_step_is_the_image_where_that_is_expected_to_reach_the_tolerance() -> None:
    assert _first_step(1.01) == (True, True)
    assert _first_step(0.99) == (False, False)


def test_a_tolerance_that_has_been_reached_says_nothing_about_the_next_step() -> None:
    """The solve goes on, so somebody wants more than the tolerance."""
    assert _first_step(1.01 * _SAFE / RATE) == (False, False)


def test_unfitted_and_without_a_tolerance_every_step_is_estimated() -> None:
    assert _first_step(1.01, rate=1.0) == (False, False)
    for solver in (_solver(0.0), _solver(1e-6, rate=1.0)):
        found, estimates = _solved(solver, 1e-6)
        assert found.converged
        assert estimates == found.steps - 1


def test_it_is_taken_once_in_a_solve() -> None:
    """With a rate of 0 it always seems enough, and never is."""
    found, estimates = _solved(_solver(1e-6, rate=1e-12), 1e-6)
    assert found.converged
    assert estimates == found.steps - 2


def test_the_fixed_point_is_the_same() -> None:
    exact, _ = _solved(_solver(0.0), 1e-12)
    for tolerance in (1e-3, 1e-6, 1e-9):
        found, _ = _solved(_solver(tolerance, rate=1e-12), tolerance)
        assert found.converged
        error = float((found.image - exact.image).norm() / exact.image.norm())
        assert error < 20 * tolerance
