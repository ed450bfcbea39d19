"""The error estimator and the initialiser on a dense map: what they read, and what they add."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver, Evaluation, Solution
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.initialiser import Initialiser
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from tests.solvers.dense_map import NODES, WIDTH, DenseMap


def _estimator(hops: int = 1, sparsified: bool = False, size: float = 0.1) -> ErrorEstimator:
    """An estimator with random coefficients; untrained with size 0."""
    estimator = ErrorEstimator(BasisCache(3), hops, 2, 3, sparsified).double()
    estimator.coefficients.add_(torch.randn_like(estimator.coefficients), alpha=size)
    return estimator


def _estimate(estimator: ErrorEstimator, the_map: DenseMap, step: int = 0) -> Tensor:
    image = the_map(torch.relu(the_map.offset), None).image
    return estimator.estimate(the_map, _residual(), image, step)


def _residual() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(NODES, WIDTH, generator=generator, dtype=torch.float64)


def _solve(solver: AnySolver, steps: int, tolerance: float = 0.0) -> Solution:
    the_map = DenseMap()
    start = torch.relu(the_map.offset)
    return solve(the_map, start, solver, lambda s: s, tolerance=tolerance, max_steps=steps)


@pytest.mark.parametrize("hops", [0, 1, 2])
def test_untrained_it_returns_the_residual(hops: int) -> None:
    assert torch.equal(_estimate(_estimator(hops, size=0.0), DenseMap()), _residual())


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 20])
def test_untrained_the_solver_is_anderson_iterate_for_iterate(steps: int) -> None:
    learned = NeuralSolver(None, NODES, 1e-10, estimator=_estimator(size=0.0), memory=4)
    found, expected = _solve(learned, steps), _solve(Anderson(4), steps)
    assert found.residuals == pytest.approx(expected.residuals, rel=1e-6, abs=1e-14)
    assert torch.allclose(found.point, expected.point, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("hops", "reached"), [(1, {0, 1, 29, 7, 23}), (2, None)])
def test_an_edge_changes_the_estimate_of_its_ends(hops: int, reached: set[int] | None) -> None:
    """A residual at node 0 alone reaches its neighbours in both graphs, and a new one."""
    changed = DenseMap()
    changed.graphs[0][15, 0] = 0.5
    estimator = _estimator(hops)
    masked = torch.zeros(NODES, WIDTH, dtype=torch.float64)
    masked[0] = 1.0
    found = []
    for the_map in (DenseMap(), changed):
        everywhere = torch.ones_like(masked)
        estimate = estimator.estimate(the_map, masked, everywhere, 0)
        found.append(set(estimate.abs().sum(dim=1).nonzero()[:, 0].tolist()))
    assert 15 in found[1] - found[0]
    if reached is not None:
        assert found[0] == reached


def test_without_hops_it_reads_no_neighbour() -> None:
    the_map, changed = DenseMap(), DenseMap()
    for graph in changed.graphs:
        graph.fill_(1.0)
    estimator = _estimator(0)
    image = the_map(torch.relu(the_map.offset), None).image
    found = [estimator.estimate(m, _residual(), image, 0) for m in (the_map, changed)]
    assert torch.equal(*found)
    assert not torch.allclose(found[0], _residual())
    assert the_map.products == changed.products == 0


def test_thinned_it_reads_the_sparsified_graph_alone() -> None:
    plain, other_graph, other_thin = DenseMap(), DenseMap(), DenseMap()
    image = plain(torch.relu(plain.offset), None).image
    other_graph.graphs[0][15, 0] = 0.5
    other_thin.thin[15, 0] = 0.5
    estimator = _estimator(sparsified=True)
    first, same, changed = (
        estimator.estimate(m, _residual(), image, 0) for m in (plain, other_graph, other_thin)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first[15], changed[15])


def test_inactive_entries_keep_their_residual() -> None:
    the_map = DenseMap()
    image = the_map(torch.relu(the_map.offset), None).image
    change = _estimate(_estimator(), the_map) != _residual()
    assert 0 < int((image > 0).sum()) < image.numel()
    assert torch.equal(change, image > 0)


def test_steps_past_the_last_use_its_coefficients() -> None:
    estimator, the_map = _estimator(), DenseMap()
    found = [_estimate(estimator, the_map, step) for step in (1, 2, 3, 50)]
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(found[1], found[2])
    assert torch.equal(found[1], found[3])


def test_it_needs_a_map_with_weights_and_a_graph() -> None:
    solver = NeuralSolver(None, NODES, 1e-10, estimator=_estimator())
    limits: dict[str, Any] = {"tolerance": 1.0, "max_steps": 1}
    with pytest.raises(UserError, match="shows neither; give a NeuralSolver"):
        solve(lambda z, rider: Evaluation(z, z), _residual(), solver, lambda s: s, **limits)


def _guess(h: Initialiser, the_map: DenseMap) -> Tensor:
    found: Tensor = h(the_map, the_map.offset, the_map.activate)
    return found


def _equilibrium(the_map: DenseMap) -> Tensor:
    start = the_map.activate(the_map.offset)
    found = solve(the_map, start, Anderson(), lambda s: s, tolerance=1e-13, max_steps=500)
    assert found.converged
    return found.image


def test_at_full_rank_more_hops_lead_to_the_linear_equilibrium() -> None:
    the_map = DenseMap(linear=True)
    target = _equilibrium(the_map)
    distances = []
    for hops in (1, 2, 5, 60):
        h = Initialiser(WIDTH, BasisCache(WIDTH), hops, 2).double()
        distances.append(float((_guess(h, the_map) - target).norm() / target.norm()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-9 < distances[1]


def test_untrained_without_hops_it_is_the_image_of_zero() -> None:
    the_map = DenseMap()
    h = Initialiser(WIDTH, BasisCache(3), 0, 2).double()
    assert torch.equal(_guess(h, the_map), torch.relu(the_map.offset))
    assert the_map.products == 0


def test_what_is_learned_does_not_depend_on_the_frame_it_was_learned_in() -> None:
    """The same B, once in the frame of the map and once in a turned one."""
    the_map = DenseMap()
    h = Initialiser(WIDTH, BasisCache(3), 2, 2).double()
    untrained = _guess(h, the_map)
    rows = 0.1 * torch.randn(4, 3, WIDTH, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    frame = h.basis(the_map).frame
    found = []
    for change in (torch.eye(3, dtype=torch.float64), turn):
        h.frame.copy_(frame @ change)
        h.readout.copy_((change.T @ rows).flatten(0, 1))
        found.append(_guess(h, the_map))
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-12)
    assert not torch.allclose(found[0], untrained, atol=1e-3)
