"""The implicit layer against finite differences, and what one iteration costs in messages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.constraints import project_columns_l1
from distributed_ignn.models.implicit import Cell, ImplicitLayer, SolvePlan
from distributed_ignn.models.maps import AdjointCell
from distributed_ignn.propagation.propagate import Propagation
from distributed_ignn.propagation.sparsify import sparsify
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver, FixedPointMap
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.predictors import NeuralShape, WeightPredictor
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from tests.parity.cases import WIDTH, assign, make_data
from tests.ranks import run_ranks


def _shard(case: str) -> GraphShard:
    data = make_data(case)
    return next(iter(build_shards(data, assign(case, 1), 1)))


def _plan(solver: AnySolver) -> SolvePlan:
    def start(cell: Cell, driver: Tensor) -> Tensor:
        return torch.zeros_like(driver)

    return SolvePlan(solver, start, 1e-13, 500, lambda solution: None)


def _inputs(case: str, channels: int) -> tuple[Tensor, list[Tensor]]:
    rows = make_data(case).num_nodes
    injection = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(3, 3, dtype=torch.float64) for _ in range(channels)]
    stacked = project_columns_l1(torch.cat(weights), 0.5)
    return injection, [w.clone().requires_grad_() for w in stacked.chunk(channels)]


@pytest.mark.parametrize(("case", "channels"), [("plain", 1), ("directed", 1), ("channels", 2)])
def test_gradients_agree_with_finite_differences(case: str, channels: int) -> None:
    comm = Communicator()
    layer = ImplicitLayer(Propagation(_shard(case), comm, torch.float64), comm.sum)
    injection, weights = _inputs(case, channels)

    def equilibrium(injection: Tensor, *weights: Tensor) -> Tensor:
        return layer(injection, list(weights), _plan(Anderson()), _plan(Anderson()))

    # fast mode compares along random directions, which sees every entry
    assert torch.autograd.gradcheck(
        equilibrium, (injection, *weights), eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True
    )


def test_weights_get_the_gradient_of_the_unrolled_map() -> None:
    """As many applications as the map needs to converge, differentiated one by one."""
    comm = Communicator()
    propagation = Propagation(_shard("plain"), comm, torch.float64)
    layer = ImplicitLayer(propagation, comm.sum)
    injection, (weight,) = _inputs("plain", 1)
    probe = torch.randn(injection.shape, dtype=torch.float64)
    implicit = layer(injection, [weight], _plan(Anderson()), _plan(Picard()))
    found = torch.autograd.grad((implicit * probe).sum(), [weight, injection])
    z = torch.zeros_like(injection)
    for _ in range(80):
        z = torch.relu(propagation([z])[0] @ weight + injection)
    expected = torch.autograd.grad((z * probe).sum(), [weight, injection])
    assert float(expected[0].abs().max()) > 1e-3
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def _solver(name: str, nodes: int) -> AnySolver:
    if name == "picard":
        return Picard()
    if name == "anderson":
        return Anderson(3)
    if name == "broyden":
        return Broyden(4)
    if name == "estimator":
        estimator = ErrorEstimator(BasisCache(3), 1, 2, 3).double()
        return NeuralSolver(None, nodes, 1e-10, estimator=estimator)
    predictor = WeightPredictor(NeuralShape(WIDTH, 3, 20, 2, 4)).double().requires_grad_(False)
    return NeuralSolver(predictor, nodes, 1e-10)


def _count_messages(comm: Communicator) -> dict[str, tuple[int, int, int]]:
    """Evaluations, exchanges and reductions of a solve, per method and for the adjoint."""
    data = make_data("channels")
    shard = list(build_shards(data, assign("channels", comm.world_size), comm.world_size))
    mine = shard[comm.rank]
    propagation = Propagation(mine, comm, torch.float64)
    layer = ImplicitLayer(propagation, comm.sum, sparsify(mine, comm, "random", 0.5, torch.float64))
    torch.manual_seed(0)
    weights = list(project_columns_l1(torch.randn(2 * WIDTH, WIDTH).double(), 0.4).chunk(2))
    injection = torch.ones(mine.num_owned, WIDTH, dtype=torch.float64)
    counts = {}
    for name in ("picard", "anderson", "broyden", "neural", "estimator", "adjoint"):
        cell: FixedPointMap = layer.cell(injection, weights)
        if name == "adjoint":
            cell = AdjointCell(propagation, weights, injection > 0, injection)
        before = comm.traffic.snapshot()
        solution = solve(
            cell,
            torch.zeros_like(injection),
            _solver(name, data.num_nodes),
            comm.sum,
            tolerance=0.0,
            max_steps=9,
        )
        sent = comm.traffic.since(before)
        counts[name] = (solution.steps, sent.exchanges, sent.reductions)
    return counts


def test_one_exchange_and_one_reduction_per_iteration() -> None:
    """An estimate costs one of either besides, but none follows the last evaluation."""
    for counts in (_count_messages(Communicator()), *run_ranks(_count_messages, 2)):
        for name, (steps, exchanges, reductions) in counts.items():
            assert steps == 9
            estimates = steps - 1 if name == "estimator" else 0
            assert exchanges == steps + estimates
            assert reductions == steps + max(estimates - 1, 0)  # the first one needs no Gram matrix
