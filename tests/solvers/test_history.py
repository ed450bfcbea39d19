"""The history of a solve: mixing, inner products, restarts, and what bfloat16 does to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers import blocks
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.history import History
from distributed_ignn.solvers.solve import solve
from tests.solvers.dense_map import DenseMap

ROWS, WIDTH, MEMORY = 50, 4, 3


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_ENTRIES", 7 * WIDTH)


def _pushed(history: History, count: int, how: str = "push") -> tuple[list[Tensor], list[Tensor]]:
    """Points and residuals of random iterates, newest first; the Gram rows are entered."""
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(count):
        z, image = (torch.randn(ROWS, WIDTH, dtype=torch.float64) for _ in range(2))
        points, residuals = [z, *points], [image - z, *residuals]
        dots = _entered(history, z, image, how)
        held = len(history)
        expected = torch.stack([(residuals[0] * old).sum() for old in residuals[:held]])
        assert torch.allclose(dots, expected, rtol=0, atol=1e-11)
        history.set_newest_gram(dots)
    return points[: len(history)], residuals[: len(history)]


def _entered(history: History, z: Tensor, image: Tensor, how: str) -> Tensor:
    if how == "push":
        return history.push(z, image)
    if how == "enter":
        return history.enter(z, image)
    # the image is another one, and corrected
    return history.enter(z, image.cos(), lambda rows: image[rows] - image[rows].cos())


@pytest.mark.parametrize("how", ["push", "enter", "enter an estimate"])
@pytest.mark.parametrize("count", [1, 2, MEMORY + 1, 2 * MEMORY + 3])
def test_iterates_come_back_from_their_differences(count: int, how: str) -> None:
    history = History(MEMORY)
    points, residuals = _pushed(history, count, how)
    assert len(history) == min(count, MEMORY + 1)
    gram = torch.stack([torch.stack([(a * b).sum() for b in residuals]) for a in residuals])
    assert torch.allclose(history.ordered_gram(), gram, rtol=0, atol=1e-11)
    alpha = torch.rand(len(history), dtype=torch.float64)
    alpha /= alpha.sum()
    for beta in (1.0, 0.6):
        pairs = zip(alpha, points, residuals, strict=True)
        expected = torch.stack([weight * (z + beta * g) for weight, z, g in pairs]).sum(dim=0)
        assert torch.allclose(history.mix(alpha, beta), expected, rtol=0, atol=1e-11)
    other = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    for dots, rows, arrays in zip(
        history.dots(other), history.row_dots(other), (points, residuals), strict=True
    ):
        expected = torch.stack([(array * other).sum(dim=1) for array in arrays], dim=1)
        assert torch.allclose(rows, expected, rtol=0, atol=1e-11)
        assert torch.allclose(dots, expected.sum(dim=0), rtol=0, atol=1e-11)


@pytest.mark.parametrize("how", ["push", "enter"])
def test_an_iterate_taken_back_leaves_no_trace(how: str) -> None:
    history, alpha = History(MEMORY), torch.tensor([0.5, 0.2, 0.3])
    _pushed(history, 3, how)
    before = history.ordered_gram(), history.mix(alpha, 0.7)
    z = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    history.set_newest_gram(_entered(history, z, z.cos(), how))
    history.drop_newest()
    assert torch.equal(history.ordered_gram(), before[0])
    assert torch.allclose(history.mix(alpha, 0.7), before[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("forget", "kept"), [(History.forget_all_but_newest, 1), (History.clear, 0)]
)
def test_a_restart_uses_memory_again_and_reads_nothing_of_it(
    forget: Callable[[History], None], kept: int
) -> None:
    history = History(MEMORY)
    _, residuals = _pushed(history, MEMORY + 1)
    forget(history)
    assert len(history) == kept
    for slot in history._free:
        slot.residual.fill_(torch.nan)
        slot.estimate.fill_(torch.nan)
    z = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    dots = history.push(z, 2 * z)
    expected = torch.stack([(z * g).sum() for g in [z, *residuals[:kept]]])
    assert torch.allclose(dots, expected, rtol=0, atol=1e-11)
    assert len(history._free) == MEMORY - kept


def test_memory_is_taken_when_it_is_needed() -> None:
    history = History(MEMORY, torch.bfloat16)
    z = torch.randn(ROWS, WIDTH)
    for count in range(1, 7):
        history.set_newest_gram(history.push(z * count, z.cos() * count))
        assert len(history._older) == min(count - 1, MEMORY)
    assert {slot.estimate.dtype for slot in history._older} == {torch.bfloat16}
    with pytest.raises(ValueError, match="the history is empty"):
        History(MEMORY).newest()


def _steps(storage: torch.dtype | None, tolerance: float) -> int:
    the_map = DenseMap()
    solution = solve(
        the_map,
        torch.zeros_like(the_map.offset),
        Anderson(5, storage=storage),
        lambda sums: sums,
        tolerance=tolerance,
        max_steps=200,
    )
    assert solution.converged
    return solution.steps


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8, 1e-12])
def test_rounded_differences_do_not_limit_the_accuracy(tolerance: float) -> None:
    assert _steps(torch.bfloat16, tolerance) <= 1.25 * _steps(None, tolerance) + 1


def test_rounded_points_do_limit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the differences avoid, and the comparison above can fail."""
    exact = History.mix

    def rounded(self: History, alpha: Tensor, beta: float) -> Tensor:
        return exact(self, alpha, beta).bfloat16().double()

    monkeypatch.setattr(History, "mix", rounded)
    the_map = DenseMap()
    start = torch.zeros_like(the_map.offset)
    solution = solve(the_map, start, Anderson(5), lambda sums: sums, tolerance=1e-8, max_steps=200)
    assert not solution.converged
    assert solution.residual > 1e-4


def test_a_first_iterate_begins_without_a_pass_and_the_step_from_it_is_its_image() -> None:
    history, one = History(MEMORY), torch.ones(1, dtype=torch.float64)
    _pushed(history, 2, "enter")
    z, image = (torch.randn(ROWS, WIDTH, dtype=torch.float64) for _ in range(2))
    history.begin(z, image)
    assert len(history) == 1
    assert history.mix(one, 1.0) is image
    assert torch.equal(history.newest()[1], image - z)
    history.set_newest_gram((image - z).square().sum()[None])
    other = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    dots = history.enter(other, other.cos())
    assert dots[1].item() == pytest.approx(((other.cos() - other) * (image - z)).sum().item())


def test_what_was_entered_may_be_pushed_onto() -> None:
    history = History(MEMORY)
    z, image = (torch.randn(ROWS, WIDTH, dtype=torch.float64) for _ in range(2))
    history.begin(z, image)
    dots = history.push(image, z)
    assert dots[1].item() == pytest.approx(-(image - z).square().sum().item())
    alpha = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(history.mix(alpha, 0.5), z + 0.5 * (image - z), rtol=0, atol=1e-12)
