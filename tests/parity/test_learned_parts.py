"""Initialiser, error estimator and their fits are the same however the graph is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import NeuralSolverConfig
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.propagation.sparsify import sparsify
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import Iterate
from distributed_ignn.solvers.blocks import residual_squares
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.initialiser import Initialiser
from distributed_ignn.solvers.neural import _SAFE, NeuralSolver
from distributed_ignn.solvers.paper_solver import PaperNetwork, PaperSolver
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from distributed_ignn.training.engines.gradients import sum_gradients
from distributed_ignn.training.learned.fit import FitSample, SolverFit
from distributed_ignn.training.learned.paper_training import PaperRollout
from tests.parity.cases import NODES, WIDTH, assign, config_for, make_data, spread
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

# awkward: isolated nodes, a part without halo, and of four parts an empty one
CASES = ("awkward", "channels", "directed")


def _report(comm: Communicator) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for case in CASES:
        data = make_data(case)
        shards = list(build_shards(data, assign(case, comm.world_size), comm.world_size))
        shard = shards[comm.rank]
        parts: dict[str, Tensor] = _parts(shard, comm)
        found.update({f"{case}: {name}": value for name, value in parts.items()})
    return found


def _random(shard: GraphShard, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(NODES, WIDTH, generator=generator, dtype=torch.float64)
    return whole[shard.owned_nodes]


@torch.no_grad()
def _parts(shard: GraphShard, comm: Communicator) -> dict[str, Tensor]:
    """Rows at their global ids, and numbers that all ranks have divided by their count."""
    kind, channels = torch.float64, len(shard.channels)
    thin = sparsify(shard, comm, "pri", 0.5, kind)
    model = ShardModel(shard, comm, config_for("float64").model, kind, 0, thin)
    injection = model.injection().detach()
    cell = model.layer.cell(injection, model.channel_weights())
    start = torch.relu(injection)
    solved = solve(cell, start, Anderson(), comm.sum, tolerance=1e-13, max_steps=300)
    target = solved.image
    sample = FitSample.draw(shard.owned_nodes, NODES, 30)
    marks = torch.zeros(shard.num_owned, dtype=kind)
    marks[slice(None) if sample.rows is None else sample.rows] = 1.0
    found = {"sample": spread(shard, marks)}
    backward = model.layer.adjoint_cell(target, model.channel_weights(), _random(shard, 6))
    share = 1.0 / comm.world_size
    for name, hops, thinned in (("graph", 2, False), ("own", 0, False), ("thin", 1, True)):
        torch.manual_seed(3)
        estimator = ErrorEstimator(BasisCache(3), hops, channels, 2, thinned).to(kind)
        estimator.coefficients.add_(torch.randn_like(estimator.coefficients), alpha=0.2)
        image = cell(start, None).image
        residual = _random(shard, 5)
        found[name] = spread(shard, estimator.estimate(cell, residual, image, 0))
        if not thinned:
            found[f"{name}, adjoint"] = spread(
                shard, estimator.estimate(backward, residual, image, 0)
            )
        for rows, who in ((FitSample(None), "all"), (sample, "sample")):
            fit = SolverFit(comm, rows, rows, 3, 1e-10)
            point = fit.estimator(estimator, cell, start, target)
            found[f"fit {name}, {who}"] = estimator.coefficients * share
            found[f"fit {name}, {who}, point"] = spread(shard, point)
            found[f"fit {name}, {who}, plain rate"] = estimator.plain_rate * share
        found |= _plain_first(estimator, cell, shard, comm, start)
    for hops in (0, 2):
        h = Initialiser(WIDTH, BasisCache(3), hops, channels).to(kind)
        found[f"h {hops}"] = spread(shard, h(cell, injection, torch.relu))
        SolverFit(comm, sample, sample, 3, 1e-10).initialiser(h, cell, injection, target)
        found[f"fit h {hops}"] = h.readout * share
        found[f"fitted h {hops}"] = spread(shard, h(cell, injection, torch.relu))
    found |= _paper(model, shard, comm, target)
    return {name: value.detach().clone() for name, value in found.items()}


def _plain_first(
    estimator: ErrorEstimator,
    cell: EquilibriumCell,
    shard: GraphShard,
    comm: Communicator,
    z: Tensor,
) -> dict[str, Tensor]:
    """A solve whose first step is expected to reach the tolerance without an estimate."""
    squares = comm.sum(residual_squares(z, cell(z, None).image))
    first = float(squares[0] / squares[1]) ** 0.5
    rate = float(estimator.plain_rate)
    tolerance = 1.01 * rate * first / _SAFE
    assert 0.0 < tolerance < 0.99 * first
    solver = NeuralSolver(None, NODES, 1e-10, estimator=estimator, memory=3, tolerance=tolerance)
    state = solver.init(z, cell)
    for step in range(4):
        evaluation = cell(z, None)
        residual = solver.observe(state, evaluation, comm.sum)
        z = solver.advance(state, Iterate(evaluation, residual))
        assert state.plain
        assert state.learned == (step > 0)
    return {f"plain first, {estimator.hops} hops": spread(shard, z)}


def _paper(
    model: ShardModel, shard: GraphShard, comm: Communicator, target: Tensor
) -> dict[str, Tensor]:
    """What the paper's own solver gives in a solve, and the gradients of its training."""
    kind, share = torch.float64, 1.0 / comm.world_size
    torch.manual_seed(4)
    network = PaperNetwork(WIDTH, 3, 4, 5).to(kind)
    for head in (network.head_alpha, network.head_beta):
        head.weight.add_(torch.randn_like(head.weight), alpha=0.1)
    injection = model.injection().detach()
    cell = model.layer.cell(injection, model.channel_weights())
    solver = PaperSolver(network, NODES, 3, 1e-10, safeguard=False)
    z = torch.relu(injection)
    found: dict[str, Tensor] = {}
    state = solver.init(z, cell)
    for step in range(5):
        evaluation = cell(z, None)
        residual = solver.observe(state, evaluation, comm.sum)
        z = solver.advance(state, Iterate(evaluation, residual))
        assert state.alpha is not None
        assert state.beta is not None
        found |= {f"alpha {step}": state.alpha * share, f"beta {step}": state.beta * share}
    found["paper, point"] = spread(shard, z)
    if not shard.channels[0].symmetric:
        return found
    for training in ("unrolled", "one_step"):
        section = NeuralSolverConfig(
            kind="paper", steps=4, lambda1=1.0, lambda3=0.5, training=training
        )
        network.first_scale.data.fill_(1.0)
        network.zero_grad()
        with torch.enable_grad():
            rollout = PaperRollout(network, section, comm, target, NODES)
            loss = torch.stack(list(rollout.losses(cell, torch.relu(injection), 0.5))).sum()
            (loss * share).backward()
        trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        assert sum_gradients(trained.values(), comm)
        for name, parameter in trained.items():
            assert parameter.grad is not None
            found[f"{training} gradient of {name}"] = parameter.grad * share
        found[f"{training} loss"] = loss * share
    return found


def test_two_and_four_ranks_agree_with_one_process() -> None:
    whole = _report(Communicator())
    for name in (f"{case}: sample" for case in CASES):
        assert 15 < float(whole[name].sum()) < 45
    for world_size in (2, 4):
        reports = run_ranks(_report, world_size, timeout=90)
        for name, value in whole.items():
            cut = torch.stack([report[name] for report in reports]).sum(dim=0)
            scale = float(value.abs().max())
            assert scale > 0.0, name
            # the normal equations square the condition of the features
            tolerance = 1e-8 if "fit" in name else 1e-10
            assert float((cut - value).abs().max()) <= tolerance * scale, (world_size, name)
        missing = reports[0]["channels: graph"]
        assert not torch.allclose(missing, whole["channels: graph"])
