"""Solves in groups of evaluations: those of the ordinary loop, evaluation for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers.anderson import Anderson, AndersonState, anderson_weights
from distributed_ignn.solvers.anderson_ring import masked_weights
from distributed_ignn.solvers.base import (
    AnySolver,
    Evaluation,
    FixedPointMap,
    Iterate,
    Outcome,
    Solution,
)
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.captured import Captures
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve
from tests.solvers.dense_map import NODES, WIDTH, DenseMap

pytestmark = pytest.mark.cheap


class _Grouped(DenseMap):
    """A dense map for groups; ``points`` are those it was evaluated at.

    Args:
        gain: what the image is multiplied by; above 1 the map may not contract.
    """

    def __init__(self, bound: float = 0.9, linear: bool = False, gain: float = 1.0) -> None:
        super().__init__(bound, linear)
        self.gain = gain
        self.points: list[Tensor] = []

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        self.points.append(z.clone())
        found = super().__call__(z, rider)
        image = self.gain * found.image
        return Evaluation(z, image, products=(found.image,))

    def arrays(self) -> tuple[Tensor, ...]:
        return *self.weights, self.offset

    def reading(self, arrays: Sequence[Tensor]) -> FixedPointMap:
        other = _Grouped(linear=self.linear, gain=self.gain)
        *weights, other.offset = arrays
        other.weights, other.points = tuple(weights), self.points
        return other

    def constants(self) -> Hashable:
        return self.linear, self.gain


def _start(seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NODES, WIDTH, generator=generator, dtype=torch.float64)


def _both(
    the_map: _Grouped,
    solver: AnySolver,
    captures: Captures,
    tolerance: float,
    max_steps: int,
    close: float = 1e-12,
) -> tuple[Solution, Solution]:
    """The solution of the ordinary loop and that in groups, whose iterates have been compared."""

    def solved(by: Callable[..., Solution]) -> tuple[Solution, list[Tensor]]:
        the_map.points.clear()
        found = by(the_map, _start(), solver, _alone, tolerance=tolerance, max_steps=max_steps)
        return found, list(the_map.points)

    plain, expected = solved(solve)
    grouped, seen = solved(captures.solve)
    assert len(expected) == plain.steps == grouped.steps
    assert len(seen) == -(-len(expected) // captures.size) * captures.size
    for one, other in zip(expected, seen, strict=False):
        assert _close(one, other)
    return plain, grouped


def _close(one: Tensor, other: Tensor) -> bool:
    """To 1e-12, or to 1e-11 of the largest entry where a map makes much of rounding errors."""
    largest = float(one.abs().max())
    return torch.allclose(one, other, rtol=0.0, atol=1e-12 if largest < 5.0 else 1e-11 * largest)


def _alone(sums: Tensor) -> Tensor:
    return sums


def _assert_alike(plain: Solution, grouped: Solution) -> None:
    assert grouped.outcome is plain.outcome
    assert grouped.residuals == pytest.approx(plain.residuals, rel=1e-9, abs=1e-15, nan_ok=True)
    assert grouped.residual == pytest.approx(plain.residual, rel=1e-9, abs=1e-15)
    assert _close(grouped.point, plain.point)
    assert _close(grouped.image, plain.image)


class _Watched(Anderson):
    """Remembers which ways out of the ordinary it has taken."""

    def __init__(self, memory: int, beta: float, regularization: float) -> None:
        super().__init__(memory, beta, regularization)
        self.seen: set[str] = set()

    def go_back(self, state: AndersonState, best: Iterate) -> Tensor:
        before = state.left_best
        found = super().go_back(state, best)
        if state.left_best < before:
            self.seen.add("go_back")
        return found

    def start_over(self, state: AndersonState) -> Tensor:
        self.seen.add("start_over")
        return super().start_over(state)


METHODS: dict[str, Callable[[], AnySolver]] = {
    "picard": lambda: Picard(),
    "picard, damped": lambda: Picard(0.7),
    "anderson": lambda: Anderson(3),
    "anderson, damped": lambda: Anderson(4, beta=0.6),
    "anderson, one": lambda: Anderson(1, regularization=0.0),
    "anderson, rounded": lambda: Anderson(2, storage=torch.bfloat16),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1, 3, 4])
def test_iterates_are_those_of_the_ordinary_loop(name: str, size: int) -> None:
    captures, the_map = Captures(size), _Grouped()
    plain, grouped = _both(the_map, METHODS[name](), captures, 1e-7, 60)
    _assert_alike(plain, grouped)
    assert plain.converged
    assert grouped.best.products is not None
    assert torch.allclose(grouped.best.products[0], plain.image, atol=1e-12)


@pytest.mark.parametrize("size", [2, 5])
def test_one_recording_serves_solves_of_other_weights(size: int) -> None:
    captures, the_map = Captures(size), _Grouped()
    for number in range(3):
        the_map.weights = tuple((1.0 - 0.2 * number) * weight for weight in the_map.weights)
        the_map.offset = the_map.offset.roll(number, 0)
        plain, grouped = _both(the_map, Anderson(3), captures, 1e-9, 50)
        _assert_alike(plain, grouped)
    assert len(captures._loops) == 1
    kept = grouped.image.clone()
    captures.solve(the_map, _start(), Anderson(3), _alone, tolerance=1e-2, max_steps=9)
    assert torch.equal(grouped.image, kept)  # a solution is nobody's memory


@pytest.mark.parametrize("limit", [1, 4, 7])
def test_the_step_limit_is_kept_inside_of_a_group(limit: int) -> None:
    plain, grouped = _both(_Grouped(), Anderson(3), Captures(4), 1e-14, limit)
    assert plain.outcome is Outcome.MAX_STEPS
    _assert_alike(plain, grouped)


@pytest.mark.parametrize(("memory", "beta", "feed"), [(1, 1.0, 5.0), (2, 0.5, 2.0)])
def test_restarts_and_ways_back_are_taken_where_the_loop_takes_them(
    memory: int, beta: float, feed: float
) -> None:
    """A column feeds the next one, so residuals grow for a while, and mixing misleads."""
    the_map = _Grouped(linear=True)
    chain = torch.diag(torch.full((WIDTH - 1,), feed, dtype=torch.float64), 1)
    chain += 0.5 * torch.eye(WIDTH, dtype=torch.float64)
    the_map.weights = chain, torch.zeros_like(chain)
    solver = _Watched(memory, beta=beta, regularization=1e-3)
    plain, grouped = _both(the_map, solver, Captures(3), 1e-10, 20)
    _assert_alike(plain, grouped)
    assert {"go_back", "start_over"} <= solver.seen


def test_a_solve_that_diverges_leaves_nothing_behind() -> None:
    captures, the_map = Captures(4), _Grouped(linear=True)
    healthy = the_map.offset
    the_map.offset = torch.full_like(healthy, float("nan"))
    found = captures.solve(the_map, _start(), Anderson(3), _alone, tolerance=1e-8, max_steps=20)
    assert found.outcome is Outcome.DIVERGED
    assert found.steps == 1
    the_map.offset = healthy
    _assert_alike(*_both(the_map, Anderson(3), captures, 1e-9, 40))


def test_a_map_whose_image_vanishes_is_solved_alike() -> None:
    the_map = _Grouped()
    the_map.offset = -the_map.offset.abs() * 10.0
    for solver in (Picard(), Anderson(3)):
        plain, grouped = _both(the_map, solver, Captures(3), 1e-9, 20)
        _assert_alike(plain, grouped)
        assert plain.residuals[-1] == 0.0


def _identity(count: int) -> Tensor:
    return torch.eye(count, dtype=torch.float64)


@pytest.mark.parametrize("regularization", [0.0, 1e-10, 1e-3])
def test_weights_are_those_of_the_host(regularization: float) -> None:
    generator = torch.Generator().manual_seed(5)
    for count in range(1, 7):
        rows = torch.randn(6, 40, generator=generator, dtype=torch.float64)
        rows *= 10.0 ** -torch.arange(6, dtype=torch.float64).flip(0)[:, None]
        gram = rows @ rows.T
        gram[count:] = gram[:, count:] = 7.0  # of iterates that do not count any more
        found, usable = masked_weights(gram, torch.tensor(count), _identity(6), regularization)
        expected = anderson_weights(gram[:count, :count].clone(), regularization)
        assert expected is not None
        assert bool(usable)
        assert torch.allclose(found[:count], expected, rtol=1e-9, atol=0.0)
        assert not found[count:].any()


def test_a_system_without_solution_leaves_the_newest_iterate_alone() -> None:
    gram = torch.ones(3, 3, dtype=torch.float64)
    assert anderson_weights(gram.clone(), 0.0) is None
    found, usable = masked_weights(gram, torch.tensor(3), _identity(3), 0.0)
    assert not bool(usable)
    assert found.tolist() == [1.0, 0.0, 0.0]
    found, usable = masked_weights(torch.zeros_like(gram), torch.tensor(1), _identity(3), 1e-8)
    assert bool(usable)
    assert found.tolist() == [1.0, 0.0, 0.0]


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(TypeError, match="_Grouped by Broyden cannot be solved in groups"):
        Captures(2).solve(_Grouped(), _start(), Broyden(), _alone, tolerance=0.1, max_steps=3)
    with pytest.raises(TypeError, match="DenseMap by Picard"):
        Captures(2).solve(DenseMap(), _start(), Picard(), _alone, tolerance=0.1, max_steps=3)
    with pytest.raises(ValueError, match="max_steps is 0"):
        Captures(2).solve(_Grouped(), _start(), Picard(), _alone, tolerance=0.1, max_steps=0)
    with pytest.raises(ValueError, match="a group of 0 evaluations"):
        Captures(0)
