"""Limited-memory Broyden against the dense method, and its restarts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers.base import Evaluation, Iterate
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve

SIZE = 12


def _map(scale: float = 0.9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    matrix *= scale / torch.linalg.matrix_norm(matrix, 2)
    return matrix, torch.randn(SIZE, 2, generator=generator, dtype=torch.float64)


def _dense_broyden(matrix: Tensor, offset: Tensor, steps: int) -> list[Tensor]:
    """The good method with the inverse Jacobian written out (Sherman and Morrison)."""
    z = torch.zeros_like(offset).flatten()

    def g(point: Tensor) -> Tensor:
        shaped = point.view_as(offset)
        return (torch.tanh(matrix @ shaped + offset) - shaped).flatten()

    inverse, value, points = -torch.eye(z.numel(), dtype=z.dtype), g(z), [z]
    for _ in range(steps):
        step = -inverse @ value
        z, before = z + step, value
        value = g(z)
        change = inverse @ (value - before)
        inverse = inverse + torch.outer(step - change, step @ inverse) / torch.dot(step, change)
        points.append(z)
    return [point.view_as(offset) for point in points]


def _points(solver: Broyden, matrix: Tensor, offset: Tensor, steps: int) -> list[Tensor]:
    seen: list[Tensor] = []

    def fixed_point_map(z: Tensor, rider: Tensor | None) -> Evaluation:
        seen.append(z.clone())
        return Evaluation(z, torch.tanh(matrix @ z + offset))

    start = torch.zeros_like(offset)
    solve(fixed_point_map, start, solver, lambda s: s, tolerance=0.0, max_steps=steps)
    return seen


def test_it_takes_the_steps_of_the_dense_method() -> None:
    matrix, offset = _map()
    found = _points(Broyden(10), matrix, offset, 9)
    for mine, dense in zip(found, _dense_broyden(matrix, offset, 8), strict=True):
        assert torch.allclose(mine, dense, rtol=0, atol=1e-9)
    assert not torch.allclose(found[-1], found[-2])


def test_a_full_memory_starts_over_and_still_converges() -> None:
    matrix, offset = _map()
    start = torch.zeros_like(offset)

    def fixed_point_map(z: Tensor, rider: Tensor | None) -> Evaluation:
        return Evaluation(z, torch.tanh(matrix @ z + offset))

    counts = {}
    for name, solver in (("2", Broyden(2)), ("10", Broyden(10)), ("picard", Picard())):
        solution = solve(
            fixed_point_map, start, solver, lambda s: s, tolerance=1e-10, max_steps=300
        )
        assert solution.converged, name
        counts[name] = solution.steps
    assert counts["10"] < counts["2"]
    assert counts["10"] < counts["picard"]


def test_a_growing_residual_goes_back_to_the_best_point_once() -> None:
    solver, z = Broyden(4), torch.zeros(3, 1, dtype=torch.float64)
    state = solver.init(z)
    best = Iterate(Evaluation(z, torch.full_like(z, 7.0)), 0.01)
    residual = solver.observe(state, Evaluation(z, torch.ones_like(z)), lambda s: s)
    assert residual == pytest.approx(1.0)
    point = solver.advance(state, best)
    assert torch.equal(point, best.image)
    assert (state.held, state.restarts) == (0, 1)
    solver.observe(state, Evaluation(point, point + 1.0), lambda s: s)
    point = solver.advance(state, best)
    assert not torch.equal(point, best.image)


def test_it_stands_on_a_fixed_point() -> None:
    offset = torch.ones(SIZE, 2, dtype=torch.float64)

    def constant(z: Tensor, rider: Tensor | None) -> Evaluation:
        return Evaluation(z, offset.clone())

    start = torch.zeros_like(offset)
    solution = solve(constant, start, Broyden(), lambda s: s, tolerance=0.0, max_steps=20)
    assert solution.steps == 2
    assert torch.equal(solution.point, offset)
