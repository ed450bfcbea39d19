"""The learned solver: what its weights depend on, and that it never does worse than Anderson."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver, Evaluation, Iterate
from distributed_ignn.solvers.history import History
from distributed_ignn.solvers.neural import NeuralSolver, NeuralState
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.predictors import (
    NETWORKS,
    SCOPES,
    NeuralShape,
    Predictor,
    WeightPredictor,
    build_predictor,
)
from distributed_ignn.solvers.solve import solve

NODES, WIDTH = 30, 6
SHAPE = NeuralShape(width=WIDTH, memory=3, steps=8, compress=3, hidden=5)


class RingMap:
    """relu(A z W + b) on a ring; riders are multiplied by ``thin``."""

    def __init__(self, thin: Tensor | None = None, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(1)
        ring = torch.roll(torch.eye(NODES, dtype=torch.float64), 1, 0)
        self.graph = (ring + ring.T + torch.eye(NODES, dtype=torch.float64)) / 3
        self.thin = self.graph if thin is None else thin
        weight = torch.rand(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
        self.weight = 0.95 * weight / weight.sum(dim=0)
        self.offset = scale * torch.randn(NODES, WIDTH, generator=generator, dtype=torch.float64)
        self.riders = 0

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        self.riders += rider is not None
        image = torch.relu(self.graph @ z @ self.weight + self.offset)
        return Evaluation(z, image, None if rider is None else self.thin @ rider)


def _predictor(head_scale: float) -> WeightPredictor:
    torch.manual_seed(2)
    predictor = WeightPredictor(SHAPE).double()
    for head in (predictor.head_alpha, predictor.head_beta):
        torch.nn.init.normal_(head.weight, std=head_scale)
    return predictor.requires_grad_(False)


class WatchedSolver(NeuralSolver):
    """Remembers alpha and beta of every step; beta is None where Anderson decided."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(predictor, NODES, 1e-10)
        self.seen: list[tuple[Tensor | None, Tensor | None]] = []

    def advance(self, state: NeuralState, best: Iterate) -> Tensor:
        z = super().advance(state, best)
        self.seen.append((state.alpha, state.beta))
        return z


def _watch(
    fixed_point_map: RingMap, predictor: Predictor, steps: int
) -> list[tuple[Tensor | None, Tensor | None]]:
    """alpha and beta of every step from relu(b)."""
    solver = WatchedSolver(predictor)
    solve(
        fixed_point_map,
        torch.relu(fixed_point_map.offset),
        solver,
        lambda sums: sums,
        tolerance=0.0,
        max_steps=steps,
    )
    return solver.seen


def _learned(
    fixed_point_map: RingMap, predictor: Predictor, steps: int
) -> list[tuple[Tensor, Tensor]]:
    """alpha and beta of the steps that the network decided."""
    return [
        (alpha, beta)
        for alpha, beta in _watch(fixed_point_map, predictor, steps)
        if alpha is not None and beta is not None
    ]


def test_untrained_it_is_anderson() -> None:
    predictor = WeightPredictor(SHAPE).double().requires_grad_(False)
    start = torch.relu(RingMap().offset)
    runs = [
        solve(RingMap(), start, solver, lambda s: s, tolerance=1e-9, max_steps=100)
        for solver in (NeuralSolver(predictor, NODES, 1e-10), Anderson(SHAPE.memory))
    ]
    assert runs[0].steps == runs[1].steps
    assert torch.allclose(runs[0].point, runs[1].point, rtol=0, atol=1e-12)


def test_weights_sum_to_one_and_beta_is_positive() -> None:
    steps = _learned(RingMap(), _predictor(0.1), 6)
    assert len(steps) >= 3
    for alpha, beta in steps:
        assert abs(float(alpha.sum()) - 1.0) < 1e-12
        assert 0.0 < float(beta) < 2.0


def test_an_edge_of_the_sparsified_graph_changes_alpha_and_beta() -> None:
    """The map is the same; only what riders are multiplied by differs."""
    changed = RingMap().graph.clone()
    changed[0, 15] = changed[15, 0] = 0.5
    plain = _learned(RingMap(), _predictor(0.05), 5)
    other = _learned(RingMap(thin=changed), _predictor(0.05), 5)
    # the first learned step has seen no neighbour yet: its residual is exchanged one step later
    assert torch.equal(plain[0][0], other[0][0])
    assert not torch.equal(plain[1][0], other[1][0])
    assert not torch.equal(plain[1][1], other[1][1])


def test_weights_do_not_depend_on_the_scale_of_the_state() -> None:
    plain = _learned(RingMap(), _predictor(0.05), 5)
    large = _learned(RingMap(scale=1000.0), _predictor(0.05), 5)
    assert len(plain) == len(large) >= 3
    for (alpha, beta), (alpha_large, beta_large) in zip(plain, large, strict=True):
        assert torch.allclose(alpha, alpha_large, atol=1e-9)
        assert torch.allclose(beta, beta_large, atol=1e-9)


def test_a_harmful_network_is_switched_off_and_the_solve_still_converges() -> None:
    harmful = _predictor(3.0)
    start = torch.relu(RingMap().offset)
    solution = solve(
        RingMap(),
        start,
        NeuralSolver(harmful, NODES, 1e-10),
        lambda s: s,
        tolerance=1e-8,
        max_steps=100,
    )
    anderson = solve(
        RingMap(), start, Anderson(SHAPE.memory), lambda s: s, tolerance=1e-8, max_steps=100
    )
    assert solution.converged
    # two learned steps were taken back, each at the price of its evaluation
    assert solution.steps <= anderson.steps + 2


def test_it_hands_over_to_anderson_after_its_trained_steps() -> None:
    seen = _watch(RingMap(), _predictor(0.01), SHAPE.steps + 6)
    assert all(beta is None for _, beta in seen[SHAPE.steps :])
    assert any(beta is not None for _, beta in seen[: SHAPE.steps])


def test_nothing_rides_once_the_network_is_out() -> None:
    ring = RingMap()
    solve(
        ring,
        torch.relu(ring.offset),
        NeuralSolver(_predictor(0.01), NODES, 1e-10),
        lambda s: s,
        tolerance=0.0,
        max_steps=SHAPE.steps + 6,
    )
    assert 0 < ring.riders <= SHAPE.steps


VARIANTS = [
    replace(SHAPE, network=network, alpha=alpha)
    for network in NETWORKS
    for alpha in SCOPES
    if (network, alpha) != ("table", "node")
]


def _named(shape: NeuralShape) -> str:
    return f"{shape.network}-{shape.alpha}"


def _shaken(shape: NeuralShape, scale: float) -> Predictor:
    """A predictor of that shape whose heads, or whose table, are random."""
    torch.manual_seed(2)
    predictor = build_predictor(shape).double()
    for name, parameter in predictor.named_parameters():
        if name.startswith("head") or shape.network == "table":
            torch.nn.init.normal_(parameter, std=scale)
    return predictor.requires_grad_(False)


@pytest.mark.parametrize("shape", VARIANTS, ids=_named)
def test_every_variant_mixes_with_weights_that_sum_to_one(shape: NeuralShape) -> None:
    steps = _learned(RingMap(), _shaken(shape, 0.02), 6)
    assert len(steps) >= 3
    for alpha, beta in steps:
        assert torch.allclose(alpha.sum(dim=-1), torch.ones_like(alpha.sum(dim=-1)))
        assert 0.0 < float(beta) < 2.0
        assert (alpha.dim() == 2) == (shape.alpha == "node")
    if shape.alpha == "node":
        assert steps[-1][0].shape[0] == NODES
        assert float(steps[-1][0].std(dim=0).max()) > 1e-4, "all nodes have the same weights"


@pytest.mark.parametrize("shape", VARIANTS, ids=_named)
def test_every_variant_is_safeguarded(shape: NeuralShape) -> None:
    start = torch.relu(RingMap().offset)
    scale = 0.3 if shape.network == "table" else 5.0
    learned = NeuralSolver(_shaken(shape, scale), NODES, 1e-10)
    solution = solve(RingMap(), start, learned, lambda s: s, tolerance=1e-8, max_steps=100)
    plain = Anderson(SHAPE.memory)
    anderson = solve(RingMap(), start, plain, lambda s: s, tolerance=1e-8, max_steps=100)
    assert solution.converged
    assert solution.steps <= anderson.steps + 4


@pytest.mark.parametrize("shape", VARIANTS, ids=_named)
def test_only_the_graph_layer_sends_riders(shape: NeuralShape) -> None:
    ring = RingMap()
    start = torch.relu(ring.offset)
    solver = NeuralSolver(_shaken(shape, 0.01), NODES, 1e-10)
    solve(ring, start, solver, lambda s: s, tolerance=0.0, max_steps=6)
    assert (ring.riders > 0) == (shape.network == "graph")


@pytest.mark.parametrize("shape", VARIANTS, ids=_named)
def test_an_untrained_network_is_anderson_and_an_untrained_table_picard(shape: NeuralShape) -> None:
    start = torch.relu(RingMap().offset)
    predictor = build_predictor(shape).double().requires_grad_(False)
    solver = NeuralSolver(predictor, NODES, 1e-10)
    rival: AnySolver = Picard() if shape.network == "table" else Anderson(SHAPE.memory)
    found = [
        solve(RingMap(), start, method, lambda s: s, tolerance=0.0, max_steps=6)
        for method in (solver, rival)
    ]
    assert found[0].residuals == pytest.approx(found[1].residuals, rel=1e-9)


@pytest.mark.parametrize("network", ["mlp", "tcn", "gru", "graph"])
def test_a_network_reads_every_residual_it_is_given(network: str) -> None:
    predictor = _shaken(replace(SHAPE, network=network), 0.1)
    blocks = [torch.randn(NODES, SHAPE.compress, dtype=torch.float64) for _ in range(SHAPE.slots)]
    features = predictor.read(blocks, [])
    for index in range(SHAPE.slots):
        changed = list(blocks)
        changed[index] = changed[index] + 1.0
        assert not torch.allclose(predictor.read(changed, []), features), index


@pytest.mark.parametrize("beta", [0.8, 1.0])
@pytest.mark.parametrize("enter", [History.push, History.enter])
def test_rows_with_equal_weights_mix_as_one_vector_does(
    enter: Callable[[History, Tensor, Tensor], Tensor], beta: float
) -> None:
    z = torch.randn(NODES, WIDTH, dtype=torch.float64)
    history = History(2)
    for _ in range(4):  # the ring has been written over
        history.set_newest_gram(enter(history, torch.randn_like(z), torch.randn_like(z)))
    alpha = torch.tensor([0.7, -0.2, 0.5], dtype=torch.float64)
    rows = alpha.expand(NODES, 3)
    assert torch.allclose(history.mix(rows, beta), history.mix(alpha, beta), rtol=0, atol=1e-12)
