"""A_hat of weighted graphs against dense float64: D~^-1/2 (A_w + I) D~^-1/2, by every kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.constraints import certified_growth
from distributed_ignn.propagation import sparse
from distributed_ignn.propagation.operators import normalised_blocks, square_between_parts
from distributed_ignn.propagation.propagate import Propagation, PropagationOptions
from distributed_ignn.propagation.row_sum import RowSum
from tests.parity.cases import NODES, assign, make_data

CASES = ("weights", "lopsided")
KERNELS: tuple[str, ...] = ("auto", "bag", "reduce", "csr")


def _a_hat(graph: CSRMatrix) -> Tensor:
    looped = graph.to_dense() + torch.eye(graph.num_rows, dtype=torch.float64)
    scale = looped.sum(dim=1).rsqrt()
    return scale[:, None] * looped * scale[None, :]


def _whole(case: str) -> tuple[GraphData, GraphShard]:
    data = make_data(case)
    return data, next(iter(build_shards(data, torch.zeros(NODES, dtype=torch.int64), 1)))


def _dense_of(case: str) -> tuple[list[Tensor], GraphShard]:
    """A_hat of every channel in the order of the shard's rows."""
    data, shard = _whole(case)
    order = shard.owned_nodes
    return [_a_hat(graph)[order][:, order] for graph in data.graphs], shard


@pytest.fixture(params=[7, 4096], autouse=True)
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "BLOCK_ROWS", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_multiplies_by_the_weights(case: str, kernel: str, dtype: torch.dtype) -> None:
    dense, shard = _dense_of(case)
    propagation = Propagation(shard, Communicator(), dtype, PropagationOptions(kernel))
    x = torch.rand(NODES, 5, dtype=dtype)
    exact = 1e-14 if dtype is torch.float64 else 1e-6
    ways = {
        "apply": (propagation.apply(x), [matrix @ x.double() for matrix in dense]),
        "hop": (propagation.hop(x), [matrix @ x.double() for matrix in dense]),
        "home": (propagation.hop_home(x), [matrix.T @ x.double() for matrix in dense]),
        "iterate": (_iterated(propagation, x), [matrix @ x.double() for matrix in dense]),
    }
    for found, expected in ways.values():
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=exact, atol=exact)


def _iterated(propagation: Propagation, x: Tensor) -> list[Tensor]:
    found = [torch.empty_like(x) for _ in range(propagation.num_channels)]

    def finish(rows: slice, sums: list[RowSum]) -> None:
        for whole, part in zip(found, sums, strict=True):
            whole[rows] = part.product()

    propagation.iterate_sums(x, finish)
    return found


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_dense_product(case: str) -> None:
    dense, shard = _dense_of(case)
    propagation = Propagation(shard, Communicator(), torch.float64)
    xs = [torch.rand(NODES, 3, dtype=torch.float64, requires_grad=True) for _ in dense]
    ys = [torch.rand(NODES, 3, dtype=torch.float64) for _ in dense]
    total = sum((out * y).sum() for out, y in zip(propagation(xs), ys, strict=True))
    grads = torch.autograd.grad(torch.as_tensor(total), xs)
    for grad, matrix, y in zip(grads, dense, ys, strict=True):
        torch.testing.assert_close(grad, matrix.T @ y, rtol=1e-13, atol=1e-13)


def test_a_symmetric_owned_block_is_symmetric_to_the_last_bit() -> None:
    """It serves as its own transpose."""
    _, shard = _whole("weights")
    assert shard.channels[0].symmetric
    propagation = Propagation(shard, Communicator(), torch.float32)
    dense = propagation.channels[0].owned.to_dense()
    assert torch.equal(dense, dense.T)


def test_weights_of_one_scale_like_no_weights() -> None:
    data, shard = _whole("plain")
    ones = replace(data.graphs[0], value=torch.ones(data.graphs[0].num_entries))
    valued = replace(data, graphs=(ones,))
    other = next(iter(build_shards(valued, torch.zeros(NODES, dtype=torch.int64), 1)))
    assert other.channels[0].weighted
    for left, right in zip(
        normalised_blocks(shard.channels[0]), normalised_blocks(other.channels[0]), strict=True
    ):
        torch.testing.assert_close(left.to_dense(), right.to_dense(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_what_lies_between_parts_is_counted_with_its_weights(case: str) -> None:
    data = make_data(case)
    part = assign(case, 3)
    apart = part[:, None] != part[None, :]
    shards = list(build_shards(data, part, 3))
    for channel, graph in enumerate(data.graphs):
        found = sum(square_between_parts(shard.channels[channel]) for shard in shards)
        expected = float(_a_hat(graph)[apart].square().sum())
        assert found == pytest.approx(expected, rel=1e-12)
        assert expected > 0.0


@pytest.mark.parametrize("case", CASES)
def test_roots_of_weighted_degrees_certify_a_growth_of_one(case: str) -> None:
    """Directed or not: D~^-1/2 (A + I) D~^-1/2 D~^1/2 1 = D~^1/2 1."""
    data, _ = _whole(case)
    alone = replace(data, graphs=data.graphs[:1])
    shard = next(iter(build_shards(alone, torch.zeros(NODES, dtype=torch.int64), 1)))
    comm = Communicator()
    propagation = Propagation(shard, comm, torch.float64)
    rho, vector = certified_growth(shard, propagation, comm, torch.float64)
    assert rho == 1.0
    assert torch.allclose(propagation.apply(vector[:, None])[0][:, 0], vector, rtol=1e-12)
    radius = float(torch.linalg.eigvals(_a_hat(data.graphs[0])).abs().max())
    assert radius == pytest.approx(1.0, abs=1e-10)


def test_weights_of_any_size_give_a_finite_map() -> None:
    """A_hat is at most 1 everywhere, so the state's format holds it whatever the weights."""
    data, _ = _whole("weights")
    graph = data.graphs[0]
    assert graph.value is not None
    for factor in (1e-200, 1e200):
        huge = replace(graph, value=graph.value * factor)
        scaled = replace(data, graphs=(huge, *data.graphs[1:]))
        shard = next(iter(build_shards(scaled, torch.zeros(NODES, dtype=torch.int64), 1)))
        propagation = Propagation(shard, Communicator(), torch.float32)
        product = propagation.apply(torch.ones(NODES, 1))[0]
        assert bool(product.isfinite().all())
        order = shard.owned_nodes
        expected = _a_hat(huge)[order][:, order].sum(dim=1, keepdim=True)
        torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-6)
