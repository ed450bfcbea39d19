"""The paper's own solver: what it mixes, what it reads, and when it is overruled."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver, FixedPointMap, Iterate, Solution
from distributed_ignn.solvers.mlp_initialiser import MlpInitialiser
from distributed_ignn.solvers.paper_solver import PaperNetwork, PaperSolver, PaperState
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve
from tests.solvers.dense_map import NODES, WIDTH, DenseMap

MEMORY = 3


def _network(spread: float = 0.0) -> PaperNetwork:
    """Heads of ``spread`` times random numbers; untrained they are zero."""
    torch.manual_seed(5)
    network = PaperNetwork(WIDTH, MEMORY, 4, 5).double()
    for head in (network.head_alpha, network.head_beta):
        head.weight.data.add_(torch.randn_like(head.weight), alpha=spread)
    return network


class Watched(PaperSolver):
    """Keeps what s gave in a solve."""

    def __init__(self, network: PaperNetwork, *, safeguard: bool = True) -> None:
        super().__init__(network, NODES, MEMORY, 1e-10, safeguard=safeguard)
        self.given: list[tuple[Tensor, Tensor]] = []
        self.state: PaperState

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap | None = None) -> PaperState:
        self.state = super().init(z0, fixed_point_map)
        return self.state

    def advance(self, state: PaperState, best: Iterate) -> Tensor:
        point = super().advance(state, best)
        if state.alpha is not None and state.beta is not None:
            self.given.append((state.alpha, state.beta))
        return point


def _solve(the_map: DenseMap, solver: AnySolver, steps: int = 200) -> Solution:
    start = the_map.activate(the_map.offset)
    return solve(the_map, start, solver, lambda sums: sums, tolerance=1e-10, max_steps=steps)


def test_an_untrained_network_takes_picards_steps() -> None:
    found, plain = _solve(DenseMap(), Watched(_network()), 9), _solve(DenseMap(), Picard(), 9)
    assert found.residuals == pytest.approx(plain.residuals, rel=1e-12)


def test_weights_sum_to_one_and_mix_points_and_residuals() -> None:
    the_map, solver = DenseMap(), Watched(_network(0.1), safeguard=False)
    z = the_map.activate(the_map.offset)
    points: list[Tensor] = []
    images: list[Tensor] = []
    state = solver.init(z, the_map)
    for step in range(6):
        evaluation = the_map(z, None)
        residual = solver.observe(state, evaluation, lambda sums: sums)
        points, images = [z, *points][: MEMORY + 1], [evaluation.image, *images][: MEMORY + 1]
        z = solver.advance(state, Iterate(evaluation, residual))
        alpha, beta = solver.given[step]
        assert alpha.numel() == min(step, MEMORY) + 1
        assert float(alpha.sum()) == pytest.approx(1.0, abs=1e-14)
        assert float(beta) != 1.0
        mixed = torch.stack(
            [a * (p + beta * (i - p)) for a, p, i in zip(alpha, points, images, strict=True)]
        ).sum(0)
        assert torch.allclose(z, mixed, atol=1e-13)


def test_the_sparsified_graph_reaches_alpha_and_beta() -> None:
    given = []
    for thin in (1.0, 2.0):
        the_map, solver = DenseMap(), Watched(_network(0.1))
        the_map.thin[0, 1] = thin
        _solve(the_map, solver, 4)
        given.append(solver.given[-1])
        assert the_map.products >= 3  # an exchange of compressed columns for every evaluation
    (alpha, beta), (other_alpha, other_beta) = given
    assert not torch.equal(alpha, other_alpha)
    assert not torch.equal(beta, other_beta)


def test_a_network_without_its_graph_layer_asks_no_neighbour() -> None:
    given = []
    for thin in (1.0, 2.0):
        the_map, network = DenseMap(), _network(0.1)
        network.reads_graph = False
        the_map.thin[0, 1] = thin
        solver = Watched(network)
        _solve(the_map, solver, 4)
        given.append(solver.given[-1])
        assert the_map.products == 0
    assert torch.equal(given[0][0], given[1][0])
    assert not torch.equal(given[0][0], torch.eye(given[0][0].numel(), dtype=torch.float64)[0])


@pytest.mark.parametrize("bias", [9.0, math.nan])
def test_the_safeguard_lets_anderson_finish(bias: float) -> None:
    network = _network()
    network.head_beta.bias.data.fill_(bias)
    solver = Watched(network)
    found = _solve(DenseMap(), solver)
    assert found.converged
    assert solver.state.strikes == 2
    assert found.steps <= _solve(DenseMap(), Anderson(MEMORY)).steps + 6
    alone = _solve(DenseMap(), Watched(network, safeguard=False), 60)
    assert not alone.converged


def test_a_step_that_is_taken_back_leaves_the_history_as_it_was() -> None:
    the_map, network = DenseMap(), _network()
    solver = Watched(network)
    z = the_map.activate(the_map.offset)
    state = solver.init(z, the_map)
    best = None
    for step in range(4):
        network.head_beta.bias.data.fill_(30.0 if step == 2 else 0.0)
        evaluation = the_map(z, None)
        residual = solver.observe(state, evaluation, lambda sums: sums)
        if best is None or residual < best.residual:
            best = Iterate(evaluation, residual)
        kept = len(state.base.history), len(state.blocks), state.norm
        z = solver.advance(state, best)
    assert (state.failed, state.strikes, state.mean) == (True, 1, None)
    assert kept[:2] == (3, 3)
    # the next step is that of Anderson from the same history
    evaluation = the_map(z, None)
    solver.observe(state, evaluation, lambda sums: sums)
    assert state.norm < kept[2]
    assert not state.failed
    assert state.mean is not None


def test_a_map_without_a_graph_is_refused() -> None:
    with pytest.raises(UserError, match="from the weights and the graph of a run's model"):
        Watched(_network()).init(torch.zeros(NODES, WIDTH))


def test_the_initialiser_reads_features_or_what_stands_in_for_them() -> None:
    the_map, features = DenseMap(), torch.randn(NODES, 9, dtype=torch.float64)
    torch.manual_seed(0)
    h = MlpInitialiser(9, 2, WIDTH, lambda matrix: features @ matrix).double()
    start = h(the_map, the_map.offset, torch.relu)
    expected = torch.relu(features @ h.inner + h.bias) @ h.outer.weight.T + h.outer.bias
    assert torch.allclose(start, expected)
    assert torch.linalg.matrix_rank(start - h.outer.bias) <= 2
    embedded = MlpInitialiser(WIDTH, 2, WIDTH).double()
    leaf = the_map.offset.clone().requires_grad_()
    embedded(the_map, leaf, torch.relu).sum().backward()
    assert leaf.grad is None
    assert embedded.inner.grad is not None
