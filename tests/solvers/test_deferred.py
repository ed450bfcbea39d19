"""Evaluations that are judged before they are entered: the same solve with fewer passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers import anderson as rules
from distributed_ignn.solvers import blocks
from distributed_ignn.solvers.anderson import Anderson, AndersonState
from distributed_ignn.solvers.base import AnySolver, Evaluation, Solution
from distributed_ignn.solvers.blocks import residual_squares
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.history import History
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.predictors import NeuralShape, build_predictor
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from tests.solvers.dense_map import NODES, WIDTH, DenseMap

pytestmark = pytest.mark.cheap


class _Summing(DenseMap):
    """Sums squares once it is asked to."""

    summed = False

    def sum_squares(self) -> None:
        self.summed = True

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        found = super().__call__(z, rider)
        squares = residual_squares(z, found.image) if self.summed else None
        return Evaluation(found.point, found.image, squares=squares)


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_ENTRIES", 7 * WIDTH)


def _method(kind: str, nodes: int, *, at_once: bool = False) -> AnySolver:
    if kind.startswith("anderson"):
        return Anderson(3, beta=0.8 if "damped" in kind else 1.0, num_nodes=nodes)
    estimator = ErrorEstimator(BasisCache(3), 1, 2, 3).double()
    # "misled": restarts, and Anderson finishes alone
    estimator.coefficients.fill_(50.0 if "misled" in kind else 0.02)
    solver = NeuralSolver(None, nodes, 1e-10, estimator=estimator, memory=3)
    solver.anderson.judge_first = not at_once
    return solver


def _solved(the_map: DenseMap, solver: AnySolver, start: float = 1.0) -> tuple[Solution, list[int]]:
    """The solution, and the length of every reduction."""
    lengths: list[int] = []

    def reduce(sums: Tensor) -> Tensor:
        lengths.append(sums.numel())
        return sums

    begin = start * the_map.activate(the_map.offset)
    return solve(the_map, begin, solver, reduce, tolerance=1e-9, max_steps=200), lengths


KINDS = ["anderson", "anderson, damped", "neural", "neural, misled"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [1.0, 1e3])
def test_the_solve_is_the_same(kind: str, start: float, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, one_each = _solved(DenseMap(), _method(kind, NODES, at_once=True), start)
    assert len(one_each) == expected.steps
    monkeypatch.setattr(rules, "DEFERRED_FROM", NODES * WIDTH)
    for the_map in (DenseMap(), _Summing()):
        found, lengths = _solved(the_map, _method(kind, NODES), start)
        assert found.converged
        assert found.steps == expected.steps
        assert found.residuals == pytest.approx(expected.residuals, rel=1e-4, abs=1e-12)
        assert torch.allclose(found.image, expected.image, rtol=0, atol=1e-9)
        assert lengths.count(2) >= found.steps
        assert len(lengths) <= 2 * found.steps


@pytest.mark.parametrize("kind", ["anderson", "neural"])
def test_the_last_evaluation_is_not_entered_and_the_first_one_needs_no_dots(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "DEFERRED_FROM", NODES * WIDTH)
    entered: list[int] = []
    enter = History.enter

    def counted(history: History, *given: Any) -> Tensor:
        entered.append(len(history))
        return enter(history, *given)

    monkeypatch.setattr(History, "enter", counted)
    the_map = _Summing()
    found, _ = _solved(the_map, _method(kind, NODES))
    assert the_map.summed
    # the first one is begun with
    assert len(entered) == found.steps - 2
    assert the_map.products == (0 if kind == "anderson" else found.steps - 1)
    again, lengths = _solved(the_map, _method(kind, NODES), start=1.0)
    assert again.steps == found.steps
    assert len(lengths) == again.steps + len(entered) // 2


def test_small_points_and_those_that_s_reads_are_entered_at_once() -> None:
    shape = NeuralShape(WIDTH, 3, 8, 3, 5)
    estimator = ErrorEstimator(BasisCache(3), 1, 2, 3)
    network = NeuralSolver(build_predictor(shape), NODES, 1e-10, estimator=estimator)
    for solver in (Anderson(3), Anderson(3, num_nodes=NODES), network):
        state = solver.init(torch.zeros(NODES, WIDTH, dtype=torch.float64), _Summing())
        base = state if isinstance(state, AndersonState) else state.base
        assert not base.defers
    large = Anderson(3, num_nodes=rules.DEFERRED_FROM)
    assert large.init(torch.zeros(1, 1), DenseMap()).defers
    estimates = NeuralSolver(None, 1, 1e-10, estimator=estimator)
    assert estimates.init(torch.zeros(1, 1), DenseMap()).base.defers
