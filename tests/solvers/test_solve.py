"""The loop, Picard and Anderson on maps whose fixed point is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers.anderson import Anderson, anderson_weights
from distributed_ignn.solvers.base import (
    AnySolver,
    Evaluation,
    Iterate,
    Outcome,
    Solution,
    relative_residual,
)
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.groups import relative_residual as on_device
from distributed_ignn.solvers.methods import METHODS, SolverSettings
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve


class AffineMap:
    """z -> z S + c with a symmetric S of known spectrum; counts its evaluations."""

    def __init__(self, eigenvalues: list[float], rows: int = 7) -> None:
        width = len(eigenvalues)
        basis, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))
        self.slope = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
        self.offset = torch.randn(rows, width, dtype=torch.float64)
        self.evaluations = 0

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        self.evaluations += 1
        return Evaluation(z, z @ self.slope + self.offset)

    @property
    def fixed_point(self) -> Tensor:
        identity = torch.eye(self.slope.shape[0], dtype=torch.float64)
        return torch.linalg.solve(identity - self.slope, self.offset, left=False)


def _run(
    fixed_point_map: AffineMap, solver: AnySolver, tolerance: float = 1e-10, max_steps: int = 2000
) -> Solution:
    return solve(
        fixed_point_map,
        torch.zeros_like(fixed_point_map.offset),
        solver,
        lambda sums: sums,
        tolerance=tolerance,
        max_steps=max_steps,
    )


SLOW = [0.95, 0.9, 0.5, -0.3, 0.1]


@pytest.mark.parametrize("solver", [Picard(), Picard(0.7), Anderson(4), Anderson(4, beta=0.8)])
def test_finds_the_fixed_point(solver: AnySolver) -> None:
    affine = AffineMap(SLOW)
    solution = _run(affine, solver)
    assert solution.outcome is Outcome.CONVERGED
    assert torch.allclose(solution.image, affine.fixed_point, atol=1e-7)
    assert solution.steps == affine.evaluations == len(solution.residuals)


def test_anderson_needs_far_fewer_evaluations_than_picard() -> None:
    affine = AffineMap(SLOW)
    assert 5 * _run(affine, Anderson(5)).steps < _run(affine, Picard()).steps


def test_anderson_is_exact_once_its_history_spans_the_modes() -> None:
    """On an affine map with k distinct modes, k + 1 residuals determine the fixed point."""
    solution = _run(AffineMap(SLOW), Anderson(6, regularization=0.0), tolerance=1e-8)
    assert solution.steps <= len(SLOW) + 3


def test_running_out_of_steps_is_not_success() -> None:
    solution = _run(AffineMap(SLOW), Picard(), max_steps=3)
    assert solution.outcome is Outcome.MAX_STEPS
    assert not solution.converged
    assert solution.steps == 3


def test_zero_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="max_steps is 0"):
        _run(AffineMap(SLOW), Picard(), max_steps=0)


def test_an_expanding_map_ends_as_diverged_and_keeps_the_best_iterate() -> None:
    solution = _run(AffineMap([1e40, 1e40]), Picard(), max_steps=100)
    assert solution.outcome is Outcome.DIVERGED
    assert torch.isfinite(solution.point).all()


def test_the_best_iterate_is_returned_when_the_last_one_is_worse() -> None:
    """Residuals of z -> -1.5 z + c grow, so the first point stays the best."""
    solution = _run(AffineMap([-1.5, -1.5]), Picard(), max_steps=10)
    assert solution.residual == min(solution.residuals)
    assert solution.residual < solution.residuals[-1]


def test_a_start_at_the_fixed_point_takes_one_evaluation() -> None:
    affine = AffineMap(SLOW)
    solution = solve(
        affine, affine.fixed_point, Anderson(3), lambda s: s, tolerance=1e-8, max_steps=9
    )
    assert solution.steps == 1


def test_weights_sum_to_one_and_minimise_the_mixed_residual() -> None:
    residuals = torch.randn(4, 50, dtype=torch.float64)
    gram = residuals @ residuals.T
    alpha = anderson_weights(gram, 1e-14)
    assert alpha is not None
    assert float(alpha.sum()) == pytest.approx(1.0)
    best = torch.dot(alpha, gram @ alpha)
    for _ in range(20):
        other = alpha + 0.1 * (shift := torch.randn(4, dtype=torch.float64)) - 0.1 * shift.mean()
        assert torch.dot(other, gram @ other) >= best * (1 - 1e-9)


def test_a_singular_history_restarts_instead_of_crashing() -> None:
    """Two identical residuals make the unregularised system singular."""
    assert anderson_weights(torch.ones(2, 2, dtype=torch.float64), 0.0) is None
    constant = AffineMap([0.0, 0.0])
    solver = Anderson(3, regularization=0.0)
    state = solver.init(torch.zeros_like(constant.offset))
    for _ in range(3):  # the same point again and again
        z = torch.zeros_like(constant.offset)
        evaluation = constant(z, None)
        residual = solver.observe(state, evaluation, lambda s: s)

    point = solver.advance(state, Iterate(evaluation, residual))
    assert state.restarts == 1
    assert torch.isfinite(point).all()


def test_growth_of_the_residual_goes_back_to_the_best_iterate_once() -> None:
    affine = AffineMap(SLOW)
    solver = Anderson(3)
    state = solver.init(affine.offset)
    start = affine(affine.offset, None)
    best = Iterate(Evaluation(affine.fixed_point, affine.fixed_point), 1e-6)
    solver.observe(state, start, lambda s: s)
    point = solver.advance(state, best)
    assert point is best.image
    assert len(state.history) == 0
    solver.observe(state, start, lambda s: s)
    point = solver.advance(state, best)
    assert torch.allclose(point, start.image)  # Picard's step
    assert len(state.history) == 1


class DenseRowMap:
    """A contraction in the maximum norm whose residual grows tenfold in the Euclidean one first.

    One row of the weight is dense, so what sits in one column spreads to all of them.
    """

    def __init__(self, width: int = 16) -> None:
        self.weight = torch.zeros(width, width, dtype=torch.float64)
        self.weight[0] = 0.9
        self.offset = torch.zeros(3, width, dtype=torch.float64)
        self.offset[:, 0] = 1.0

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        return Evaluation(z, torch.relu(z @ self.weight + self.offset))


@pytest.mark.parametrize("memory", [1, 3, 5])
def test_a_residual_that_must_grow_first_does_not_trap_anderson(memory: int) -> None:
    dense = DenseRowMap()
    start = torch.zeros_like(dense.offset)
    solution = solve(dense, start, Anderson(memory), lambda s: s, tolerance=1e-10, max_steps=300)
    assert solution.converged


class WatchedMap:
    """A module as a map: autograd watches its parameters, and its images unless told not to."""

    def __init__(self) -> None:
        linear = torch.nn.Linear(4, 4).double()
        torch.nn.init.orthogonal_(linear.weight, gain=0.8)
        self.inner = torch.nn.Sequential(linear, torch.nn.Tanh())
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        image = self.inner(z)
        self.seen.append((z, image, image.detach().clone()))
        return Evaluation(z, image)


@pytest.mark.parametrize("solver", [Picard(), Picard(0.5), Anderson(3), Broyden(4)])
def test_a_map_that_autograd_watches_is_solved_without_a_graph(solver: AnySolver) -> None:
    watched = WatchedMap()
    start = torch.ones(5, 4, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        solution = solve(watched, start, solver, lambda s: s, tolerance=1e-10, max_steps=200)
    assert solution.converged
    assert torch.equal(start, torch.ones_like(start))
    for z, image, before in watched.seen:
        assert not z.requires_grad
        assert not image.requires_grad
        assert torch.equal(image, before), "a solver wrote into an image"
    assert not solution.image.requires_grad


class LendingMap(AffineMap):
    """Keeps twice the point for its caller, in a buffer that every evaluation writes over."""

    def __init__(self, eigenvalues: list[float]) -> None:
        super().__init__(eigenvalues)
        self.buffer = torch.zeros_like(self.offset)

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        torch.mul(z, 2.0, out=self.buffer)
        return replace(super().__call__(z, rider), products=(self.buffer,))


def test_what_a_map_lends_comes_with_the_best_point_or_not_at_all() -> None:
    """Residuals of a contraction shrink, so the last point is the best; of the other they grow."""
    last = _run(LendingMap(SLOW), Picard(), max_steps=5)
    assert last.best.products is not None
    assert torch.equal(last.best.products[0], 2.0 * last.point)
    first = _run(LendingMap([-1.5, -1.5]), Picard(), max_steps=5)
    assert first.residual < first.residuals[-1]
    assert first.best.products is None


class _DeadMap(AffineMap):
    """relu(z S - 1): zero wherever z is small enough, and so its fixed point."""

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        self.evaluations += 1
        return Evaluation(z, (z @ self.slope - 10.0).clamp_min(0.0))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_map_that_is_zero_has_the_fixed_point_zero(method: str, start: float) -> None:
    """Where all ReLUs have died, ||f(z) - z|| / ||f(z)|| is 0 / 0 at the solution."""
    dead = _DeadMap(SLOW)
    first = torch.full_like(dead.offset, start)
    solver = METHODS[method].solver(SolverSettings())
    solution = solve(dead, first, solver, lambda sums: sums, tolerance=1e-6, max_steps=20)
    assert solution.outcome is Outcome.CONVERGED
    assert not solution.image.any()
    assert solution.residual == 0.0
    assert solution.steps == (1 if start == 0.0 else 2)


@pytest.mark.parametrize(
    ("residual", "image", "expected"),
    [
        *[(0.0, 0.0, 0.0), (4.0, 1.0, 2.0), (4.0, 0.0, 1.0), (math.inf, 0.0, math.inf)],
        (4.0, math.inf, math.inf),
        (0.0, math.inf, math.inf),
    ],
)
def test_relative_residuals(residual: float, image: float, expected: float) -> None:
    assert relative_residual(residual, image) == expected
    assert not math.isfinite(relative_residual(math.nan, image))
    device = on_device(*torch.tensor([residual, image], dtype=torch.float64))
    assert float(device) == expected


@pytest.mark.parametrize("factor", [1.2, 3.0])
def test_squares_beyond_float32_do_not_pass_for_a_solution(factor: float) -> None:
    """A finite residual over an image of infinite norm would be 0."""
    affine = AffineMap([factor] * 3)
    affine.slope, affine.offset = affine.slope.float(), affine.offset.float()
    solution = _run(affine, Picard())
    assert solution.outcome is Outcome.DIVERGED
    assert affine.evaluations < 400
    assert solution.image.isfinite().all()
