"""The bound on the weights and the graph's growth factor make the map a contraction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.constraints import (
    certified_growth,
    first_vector,
    growth_vector,
    largest_column_sum,
    project_columns_l1,
)
from distributed_ignn.propagation.propagate import Propagation
from tests.hub_graph import hub_data
from tests.parity.cases import assign, make_data

DOUBLE = torch.float64


def _propagation(case: str) -> tuple[GraphShard, Propagation, torch.Tensor]:
    shard = next(iter(build_shards(make_data(case), assign(case, 1), 1)))
    start = (shard.channels[0].degree_owned + 1).double().sqrt()
    return shard, Propagation(shard, Communicator(), DOUBLE), start


def test_projection_reaches_the_bound_and_leaves_small_columns_alone() -> None:
    weight = torch.tensor([[3.0, 0.1], [-1.0, -0.2], [0.5, 0.0]], dtype=torch.float64)
    projected = project_columns_l1(weight, 1.0)
    assert projected[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(projected[:, 1], weight[:, 1])


def test_projection_is_the_nearest_point_of_the_ball() -> None:
    weight = torch.randn(6, 4, dtype=torch.float64)
    projected = project_columns_l1(weight, 0.8)
    assert largest_column_sum(projected) <= 0.8 + 1e-12
    distance = (projected - weight).norm()
    for _ in range(200):
        other = project_columns_l1(projected + 0.1 * torch.randn_like(weight), 0.8)
        assert (other - weight).norm() >= distance - 1e-12


@pytest.mark.parametrize("case", ["plain", "directed", "weights", "lopsided"])
def test_one_channel_grows_by_one(case: str) -> None:
    """Exactly, and the vector is kept by it: nothing has to be searched for."""
    data = make_data(case)
    data = replace(data, graphs=data.graphs[:1])
    (shard,) = build_shards(data, torch.zeros(data.num_nodes, dtype=torch.int64), 1)
    propagation = Propagation(shard, Communicator(), DOUBLE)
    rho, w = certified_growth(shard, propagation, Communicator(), DOUBLE)
    assert rho == 1.0
    assert torch.allclose(propagation.apply(w[:, None])[0][:, 0], w, rtol=1e-13)


def test_the_factor_is_exact_where_float32_sums_a_hubs_row() -> None:
    data = hub_data(4000, 3000, channels=2)
    (shard,) = build_shards(data, torch.zeros(4000, dtype=torch.int64), 1)
    comm = Communicator()
    single = Propagation(shard, comm, torch.float32)
    rho, w = certified_growth(shard, single, comm, torch.float32)
    assert w.dtype is DOUBLE
    images = torch.cat(Propagation(shard, comm, DOUBLE).apply(w[:, None]), dim=1)
    assert rho == pytest.approx(float((images / w[:, None]).max()), rel=1e-13)
    start = (shard.channels[0].degree_owned + 1).float().sqrt()
    rough, _ = growth_vector(single, start, comm)
    assert rough == pytest.approx(rho, rel=1e-3)
    assert rough != pytest.approx(rho, rel=1e-9)


@pytest.mark.parametrize("case", ["plain", "channels", "lopsided", "both"])
def test_channels_normalised_by_row_all_keep_ones(case: str) -> None:
    (shard,) = build_shards(make_data(case), assign(case, 1), 1)
    shard, comm = shard.normalised("row"), Communicator()
    propagation = Propagation(shard, comm, torch.float64)
    rho, w = growth_vector(propagation, first_vector(shard, comm.device, torch.float64), comm)
    assert (rho, set(w.tolist())) == (1.0, {1.0})
    for product in propagation.apply(w[:, None]):
        assert torch.allclose(product, w[:, None], rtol=1e-14)


def test_several_channels_still_contract_at_the_certified_rate() -> None:
    """Distances shrink by kappa in the weighted norm that the factor was computed for."""
    shard, propagation, start = _propagation("channels")
    rho, _ = certified_growth(shard, propagation, Communicator(), DOUBLE)
    assert rho >= 1.0
    kappa = 0.9
    stacked = project_columns_l1(torch.randn(10, 5, dtype=torch.float64) * 3, kappa / rho)
    first, second = stacked[:5], stacked[5:]

    def apply(z: torch.Tensor) -> torch.Tensor:
        one, two = propagation.apply(z)
        return torch.relu(one @ first + two @ second + 0.3)

    points = [torch.randn(start.numel(), 5, dtype=torch.float64) for _ in range(2)]
    spread = []
    for _ in range(200):
        points = [apply(z) for z in points]
        spread.append(float((points[0] - points[1]).abs().max()))
    # the norms differ by a constant factor, so the rate shows over many steps
    assert spread[120] <= 50 * kappa**120 * spread[0] + 1e-14


def test_the_factor_is_the_joint_growth_of_the_channels() -> None:
    """A long power iteration of w -> max_c A_c w neither exceeds it nor stays far below."""
    shard, propagation, start = _propagation("channels")
    rho, _ = certified_growth(shard, propagation, Communicator(), DOUBLE)
    w, growth = start, 0.0
    for _ in range(400):
        image = torch.stack(propagation.apply(w[:, None])).amax(dim=0)[:, 0]
        growth = float((image / w).max())
        w = image / image.max()
    assert 1.0 < growth <= rho + 1e-9
    assert rho <= 1.01 * growth
