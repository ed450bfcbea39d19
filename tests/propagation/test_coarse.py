"""The coarse level: an aggregation that keeps the slowest mode, and is the same for every cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.data import csr_from_edges
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.propagation.coarse import CoarseLevel
from distributed_ignn.propagation.propagate import Propagation
from distributed_ignn.solvers import estimator
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import relative_residual
from distributed_ignn.solvers.estimator import ErrorEstimator, coarse_solution
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from distributed_ignn.training.learned.fit import FitSample, SolverFit
from tests.graph.test_sharding import normalised
from tests.parity.cases import CLUSTERS, NODES, assign, config_for, make_data, spread
from tests.ranks import run_ranks

CASES = ("awkward", "channels")
COLUMNS = 3


def _level(case: str, residual: float = 0.0, comm: Communicator | None = None) -> CoarseLevel:
    comm = comm or Communicator()
    data = make_data(case)
    shard = list(build_shards(data, assign(case, comm.world_size), comm.world_size))[comm.rank]
    return CoarseLevel.from_shard(shard, comm, torch.float64, residual)


def _prolongation(case: str) -> Tensor:
    """P [n, N] with rows at global ids."""
    shard = next(iter(build_shards(make_data(case), assign(case, 1), 1)))
    columns = _level(case).prolong(torch.eye(CLUSTERS, dtype=torch.float64))
    return spread(shard, columns)


def _dense(operator: Any) -> Tensor:
    found: Tensor = operator @ torch.eye(CLUSTERS, dtype=torch.float64)
    return found


@pytest.mark.parametrize("case", CASES)
def test_columns_are_orthonormal_and_disjoint(case: str) -> None:
    p = _prolongation(case)
    assert torch.allclose(p.T @ p, torch.eye(CLUSTERS, dtype=torch.float64), rtol=0, atol=1e-14)
    clusters = make_data(case).clusters
    assert clusters is not None
    assert torch.equal((p > 0).nonzero()[:, 1], clusters)


@pytest.mark.parametrize("case", CASES)
def test_the_slowest_mode_is_in_the_range(case: str) -> None:
    """w = sqrt(D~) with A_hat w = w is prolonged from clusters, so 1 stays an eigenvalue."""
    graph = make_data(case).graphs[0]
    p = _prolongation(case)
    w = (graph.to_dense().sum(dim=1) + 1).sqrt()
    assert torch.allclose(normalised(graph) @ w, w)
    assert torch.allclose(p @ (p.T @ w), w, rtol=0, atol=1e-13)
    values = torch.linalg.eigvalsh(_dense(_level(case).operators[0]))
    assert float(values.max()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("residual", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_operators_are_those_of_the_dense_matrices(case: str, residual: float) -> None:
    graphs, p = make_data(case).graphs, _prolongation(case)
    level = _level(case, residual)
    assert len(level.operators) == len(graphs)
    for graph, operator in zip(graphs, level.operators, strict=True):
        whole = (1 - residual) * normalised(graph) + residual * torch.eye(NODES).double()
        assert torch.allclose(_dense(operator), p.T @ whole @ p, rtol=0, atol=1e-14)


def test_an_unused_cluster_is_harmless() -> None:
    data = make_data("plain")
    clusters = 2 * (torch.arange(NODES) // 20)
    shard = next(iter(build_shards(replace(data, clusters=clusters), assign("plain", 1), 1)))
    level = CoarseLevel.from_shard(shard, Communicator(), torch.float64)
    y = torch.randn(NODES, COLUMNS, dtype=torch.float64)
    restricted = level.restrict(y)
    assert restricted.shape == (5, COLUMNS)
    assert not bool(restricted[[1, 3]].any())
    assert bool(torch.isfinite(level.prolong(restricted)).all())


def test_without_clusters_there_is_no_level() -> None:
    shard = next(iter(build_shards(make_data("plain"), assign("plain", 1), 1)))
    with pytest.raises(ValueError, match="no clusters"):
        CoarseLevel.from_shard(shard, Communicator(), torch.float64)


def _cell(case: str, comm: Communicator) -> tuple[EquilibriumCell, Tensor]:
    """The untrained map of a case and b."""
    data = make_data(case)
    shard = list(build_shards(data, assign(case, comm.world_size), comm.world_size))[comm.rank]
    config = config_for("float64").model
    model = ShardModel(shard, comm, config, torch.float64, 0).eval()
    injection = model.injection().detach()
    return model.layer.cell(injection, model.channel_weights()), injection


def _report(comm: Communicator) -> dict[str, Tensor]:
    """What must not depend on the cut; entries of rows are put at their global ids."""
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(NODES, COLUMNS, generator=generator, dtype=torch.float64)
    for case in CASES:
        data = make_data(case)
        shard = list(build_shards(data, assign(case, comm.world_size), comm.world_size))[comm.rank]
        level = _level(case, comm=comm)
        share = 1.0 / comm.world_size  # every rank has the same numbers, and ranks are summed
        for c, operator in enumerate(level.operators):
            found[f"{case} operator {c}"] = _dense(operator) * share
        restricted = level.restrict(rows[shard.owned_nodes])
        found[f"{case} restriction"] = restricted * share
        found[f"{case} prolonged"] = spread(shard, level.prolong(restricted))
        cell, z = _cell(case, comm)
        channels = len(level.operators)
        beta = ErrorEstimator(BasisCache(COLUMNS), 2, channels, 1, coarse=level).double()
        torch.nn.init.normal_(beta.coefficients, generator=generator)
        with torch.no_grad():
            image = cell(z, None).image
            found[f"{case} estimate"] = spread(shard, beta.estimate(cell, image - z, image, 0))
    return found


@pytest.mark.timeout(200)
def test_two_and_four_ranks_have_the_same_level() -> None:
    """Of four parts of ``awkward`` one is empty."""
    assert int(assign("awkward", 4).max()) == 2
    whole = _report(Communicator())
    for world_size in (2, 4):
        reports = run_ranks(_report, world_size, timeout=90)
        for name, value in whole.items():
            cut = torch.stack([report[name] for report in reports]).sum(dim=0)
            assert float((cut - value).abs().max() / value.abs().max()) <= 1e-10, name
            if "operator" in name or "restriction" in name:
                assert all(torch.equal(report[name], reports[0][name]) for report in reports)


def _inner(channels: int) -> Tensor:
    """[C, p, p] whose norms add up to 0.9."""
    inner = torch.randn(channels, COLUMNS, COLUMNS, dtype=torch.float64)
    return 0.9 / channels * inner / torch.linalg.matrix_norm(inner, 2)[:, None, None]


@pytest.mark.parametrize("case", CASES)
def test_the_coarse_equation_is_solved(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    level = _level(case)
    inner = _inner(len(level.operators))
    y = torch.randn(NODES, COLUMNS, dtype=torch.float64)
    right = level.restrict(y)
    dense = [_dense(operator) for operator in level.operators]
    pairs = zip(dense, inner, strict=True)
    linear = torch.stack([torch.kron(a, w.T.contiguous()) for a, w in pairs]).sum(dim=0)
    identity = torch.eye(linear.shape[0], dtype=torch.float64)
    expected = torch.linalg.solve(identity - linear, right.flatten()).view_as(right)
    loose = coarse_solution(level, y, inner)
    image = right + sum(a @ loose @ w for a, w in zip(dense, inner, strict=True))
    assert relative_residual(float((image - loose).square().sum()), float(image.square().sum())) < (
        estimator._COARSE_TOLERANCE
    )
    monkeypatch.setattr(estimator, "_COARSE_TOLERANCE", 1e-14)
    assert torch.allclose(coarse_solution(level, y, inner), expected, rtol=0, atol=1e-11)


LENGTH, PIECES, COUPLING = 300, 75, 0.99


def _steps_on_a_path(with_level: bool) -> int:
    """Evaluations to 1e-8 on a path whose errors spread over hundreds of nodes, fitted solver."""
    comm, source = Communicator(), torch.arange(LENGTH - 1)
    data = replace(
        make_data("embedding"),
        graphs=(csr_from_edges(source, source + 1, LENGTH),),
        labels=torch.zeros(LENGTH, dtype=torch.int64),
        clusters=torch.arange(LENGTH) * PIECES // LENGTH,
    )
    shard = next(iter(build_shards(data, torch.zeros(LENGTH, dtype=torch.int64), 1)))
    b = torch.rand(LENGTH, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = COUPLING * torch.eye(2, dtype=torch.float64)
    cell = EquilibriumCell(Propagation(shard, comm, torch.float64), [weight], b)
    target = solve(cell, b, Anderson(20), comm.sum, tolerance=1e-13, max_steps=5000)
    level = CoarseLevel.from_shard(shard, comm, torch.float64) if with_level else None
    beta = ErrorEstimator(BasisCache(2), 1, 1, 3, coarse=level).double()
    fit = SolverFit(comm, FitSample(None), FitSample(None), 5, 1e-10)
    fit.estimator(beta, cell, b, target.image)
    learned = NeuralSolver(None, LENGTH, 1e-10, None, beta, 5)
    solution = solve(cell, b, learned, comm.sum, tolerance=1e-8, max_steps=1000)
    assert target.converged
    assert solution.converged
    return solution.steps


def test_on_a_long_path_the_coarse_level_saves_evaluations() -> None:
    without, with_level = _steps_on_a_path(False), _steps_on_a_path(True)
    assert with_level <= 0.5 * without, (with_level, without)
