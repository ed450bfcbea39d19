"""The certified distance is a bound on the true one, and not a vacuous one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.certificate import Certificate, certify, settled_nodes
from distributed_ignn.models.constraints import first_vector, growth_vector
from distributed_ignn.models.implicit import SolvePlan
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve
from tests.hub_graph import hub_data
from tests.parity.cases import assign, make_data
from tests.ranks import run_ranks

CASES = (
    ("plain", {"cell": "ignn"}),
    ("channels", {"cell": "ignn", "residual": 0.2}),
    ("directed", {"cell": "ignn"}),
    ("plain", {"cell": "eignn"}),
    ("channels", {"cell": "eignn"}),
    ("directed", {"cell": "eignn"}),
    ("plain", {"cell": "mignn"}),
    ("plain", {"cell": "mignn", "skew": 0.0}),
    ("channels", {"cell": "mignn", "skew": 0.5}),
    ("weights", {"cell": "ignn"}),
    ("weights", {"cell": "mignn"}),
    ("lopsided", {"cell": "ignn"}),
    ("lopsided", {"cell": "eignn"}),
    ("both", {"cell": "ignn"}),
    ("both", {"cell": "eignn", "residual": 0.2}),
    ("channels", {"cell": "ignn", "normalisation": "row"}),
)


def _model(comm: Communicator, case: str, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model with weights far from their start, and this rank's shard."""
    data = make_data(case)
    shard = list(build_shards(data, assign(case, comm.world_size), comm.world_size))[comm.rank]
    config = ModelConfig.model_validate({"hidden": 8, "kappa": 0.9, **settings})
    model = ShardModel(shard, comm, config, dtype, seed=0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.cell_weights.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(2.0 * drawn)
    model.project()
    return model, shard


def _state(model: ShardModel, steps: int) -> Tensor:
    start = torch.zeros_like(model.injection())
    plan = SolvePlan(Picard(), lambda cell, driver: start, 0.0, steps, lambda solution: None)
    return model.solve(plan).image


def _truth(cell: EquilibriumCell, comm: Communicator, start: Tensor) -> Tensor:
    found = solve(cell, start, Picard(), comm.sum, tolerance=1e-13, max_steps=20_000)
    assert found.converged
    return found.image


def _compare(
    model: ShardModel, shard: GraphShard, certificate: Certificate, state: Tensor, truth: Tensor
) -> dict[str, float]:
    """True distance in the certificate's norm, and the largest part of a row's bound."""
    comm = model.propagation.halo.comm
    error = (state.double() - truth).abs()
    length = error.amax(dim=1) if certificate.norm == "max" else error.norm(dim=1)
    share = float(comm.max((length / certificate.rows).max().reshape(1)))
    if certificate.norm == "frobenius":
        true = float(comm.sum(error.square().sum().reshape(1)).sqrt())
    else:
        start = first_vector(shard, comm.device, torch.float64)
        vector = growth_vector(model.propagation, start, comm)[1]
        true = float(comm.max((length / vector).max().reshape(1)))
    rows = float(comm.sum(certificate.rows.sum().reshape(1)))
    return {
        "row share": share,
        "rows": rows / float(comm.sum(length.sum().reshape(1))),
        "true": true,
        "bound": certificate.distance,
        "contraction": certificate.contraction,
        "relative": certificate.relative,
    }


def _report(comm: Communicator) -> list[dict[str, float]]:
    reports = []
    for case, settings in CASES:
        model, shard = _model(comm, case, settings, torch.float64)
        for steps in (1, 6):
            state = _state(model, steps)
            certificate = certify(model, shard, comm, state)
            assert certificate is not None, (case, settings)
            cell = model.layer.cell(model.injection(), model.channel_weights())
            truth = _truth(cell, comm, state)
            reports.append(_compare(model, shard, certificate, state, truth))
    return reports


def _check(report: dict[str, float]) -> None:
    """||f(Y) - Y|| is at most (1 + c) ||Y - Z*||: the bound exceeds the truth by no more."""
    assert report["contraction"] < 1.0
    most = (1 + report["contraction"]) / (1 - report["contraction"])
    assert 0.0 < report["true"] <= report["bound"] <= 1.001 * most * report["true"]
    assert 0.0 < report["row share"] <= 1.0


def test_the_true_distance_is_below_the_bound_for_every_cell() -> None:
    for report in _report(Communicator()):
        _check(report)


@pytest.mark.slow
def test_two_ranks_certify_the_same() -> None:
    alone, ranks = _report(Communicator()), run_ranks(_report, 2, timeout=60)
    assert ranks[0] == ranks[1]
    for one, two in zip(alone, ranks[0], strict=True):
        _check(two)
        assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize(("case", "settings"), CASES)
def test_rounding_is_in_the_bound(case: str, settings: dict[str, Any]) -> None:
    """A float32 state that can get no closer, against the equilibrium of the same map."""
    comm = Communicator()
    model, shard = _model(comm, case, settings, torch.float32)
    state = _state(model, 400)
    certificate = certify(model, shard, comm, state)
    assert certificate is not None
    exact, shard = _model(comm, case, settings, torch.float64)
    weights = [weight.double() for weight in model.channel_weights()]
    cell = exact.layer.cell(model.injection().double(), weights)
    report = _compare(exact, shard, certificate, state, _truth(cell, comm, state.double()))
    assert 0.0 < report["true"] <= report["bound"]
    assert report["row share"] <= 1.0
    assert report["relative"] < 0.01


def test_the_present_weights_count_and_not_their_bound() -> None:
    comm = Communicator()
    model, shard = _model(comm, "plain", {"cell": "ignn"}, torch.float64)
    state = _state(model, 3)
    before = certify(model, shard, comm, state)
    with torch.no_grad():
        model.cell_weights.weight.mul_(0.5)
    after = certify(model, shard, comm, state)
    assert before is not None
    assert after is not None
    assert after.contraction == pytest.approx(0.5 * before.contraction)
    assert model.cell_weights.contraction() == 0.9


def test_a_hub_does_not_take_the_contraction_beyond_kappa() -> None:
    """A row of 5,000 numbers is what rounding the evaluation depends on, and not c."""
    nodes = 6_000
    (shard,) = build_shards(hub_data(nodes, 5_000), torch.zeros(nodes, dtype=torch.int64), 1)
    comm = Communicator()
    config = ModelConfig(hidden=32, kappa=0.95)
    model = ShardModel(shard, comm, config, torch.float32, seed=0)
    with torch.no_grad():
        for parameter in model.cell_weights.parameters():
            parameter.mul_(10.0)
    model.project()
    certificate = certify(model, shard, comm, _state(model, 3))
    assert certificate is not None
    assert 0.95 * (1 - 1e-6) < certificate.contraction < 0.95 * (1 + 1e-6)


def test_weights_that_do_not_contract_certify_nothing() -> None:
    comm = Communicator()
    settings = {"cell": "ignn", "constraint": "none"}
    model, shard = _model(comm, "plain", settings, torch.float64)
    state = _state(model, 2)
    assert certify(model, shard, comm, state) is None
    with torch.no_grad():
        model.cell_weights.weight.mul_(0.01)
    # without a constraint they may contract all the same
    assert certify(model, shard, comm, state) is not None


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("cell", ["ignn", "eignn", "mignn"])
def test_settled_labels_are_those_of_the_equilibrium(cell: str, multilabel: bool) -> None:
    comm = Communicator()
    model, shard = _model(comm, "plain", {"cell": cell, "skew": 0.0}, torch.float64)
    settled = []
    for steps in (1, 60):
        state = _state(model, steps)
        certificate = certify(model, shard, comm, state)
        assert certificate is not None
        chosen = settled_nodes(model, certificate, state, multilabel)
        truth = _truth(model.layer.cell(model.injection(), model.channel_weights()), comm, state)
        found, expected = model.read_out(state), model.read_out(truth)
        same = found.argmax(dim=1) == expected.argmax(dim=1)
        if multilabel:
            same = ((found > 0) == (expected > 0)).all(dim=1)
        assert bool(same[chosen].all())
        settled.append(int(chosen.sum()))
    assert settled[0] < settled[1]
    assert settled[1] > 0.5 * shard.num_owned
