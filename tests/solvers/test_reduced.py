"""The compressed basis: what it keeps exactly, and what it does where it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers.reduced import RESOLVENTS, BasisCache, one_channel, reduced_basis
from tests.solvers.dense_map import WIDTH


def _weights(inner: int = WIDTH, size: float = 0.4) -> list[Tensor]:
    """Two weights whose columns lie in a common space of ``inner`` dimensions."""
    left = torch.randn(WIDTH, inner, dtype=torch.float64)
    return [size * left @ torch.randn(inner, WIDTH, dtype=torch.float64) / WIDTH for _ in range(2)]


@pytest.mark.parametrize("rank", [1, 3, WIDTH, 2 * WIDTH])
def test_the_frame_is_orthonormal_and_at_most_as_wide_as_the_state(rank: int) -> None:
    basis = reduced_basis(_weights(), rank)
    assert basis.rank == min(rank, WIDTH)
    identity = torch.eye(basis.rank, dtype=torch.float64)
    assert torch.allclose(basis.frame.T @ basis.frame, identity, atol=1e-12)


@pytest.mark.parametrize(("inner", "rank"), [(WIDTH, WIDTH), (2, 2), (2, 4)])
def test_nothing_is_lost_where_the_weights_have_no_higher_rank(inner: int, rank: int) -> None:
    weights = _weights(inner)
    basis = reduced_basis(weights, rank)
    for weight, lifted in zip(weights, basis.lifted[:, 0], strict=True):
        assert torch.allclose(basis.frame @ lifted, weight, atol=1e-12)


def test_a_narrow_frame_keeps_the_most_of_the_weights() -> None:
    """Against the singular values of all weights side by side."""
    weights = _weights()
    basis = reduced_basis(weights, 2)
    side = torch.cat(weights, dim=1)
    lost = side - basis.frame @ (basis.frame.T @ side)
    values = torch.linalg.svdvals(side)
    assert float(lost.square().sum()) == pytest.approx(float(values[2:].square().sum()), rel=1e-9)
    assert float(lost.norm()) > 1e-3


def test_resolvents_and_hops_are_what_they_are_called() -> None:
    weights = _weights()
    basis = reduced_basis(weights, 3)
    total, identity = weights[0] + weights[1], torch.eye(WIDTH, dtype=torch.float64)
    for place, level in enumerate(RESOLVENTS):
        inverted = identity - level * total
        own = (basis.own[place] + basis.frame.T) @ inverted
        assert torch.allclose(own, basis.frame.T, atol=1e-12)
        for channel, weight in enumerate(weights):
            reached = basis.lifted[channel, 1 + place] @ inverted
            assert torch.allclose(reached, basis.frame.T @ weight, atol=1e-12)
    for channel, weight in enumerate(weights):
        assert torch.allclose(basis.inner[channel], basis.frame.T @ weight @ basis.frame)
    alone = one_channel(basis)
    assert torch.allclose(alone.lifted[0, 0], basis.frame.T @ total)
    assert torch.allclose(alone.inner[0], basis.frame.T @ total @ basis.frame)


def test_a_resolvent_that_does_not_exist_is_left_out() -> None:
    singular = torch.eye(WIDTH, dtype=torch.float64) / RESOLVENTS[1]
    basis = reduced_basis([singular], 3)
    assert torch.equal(basis.own[1], torch.zeros_like(basis.own[1]))
    assert float(basis.own[0].abs().max()) > 0.1
    assert torch.equal(basis.lifted[0, 2], basis.lifted[0, 0])


def test_the_cache_follows_the_weights() -> None:
    cache, weights = BasisCache(3), _weights()
    first = cache.get(weights)
    assert cache.get([weight.clone() for weight in weights]) is first
    weights[1] *= 0.5  # in place, as an optimiser does
    second = cache.get(weights)
    assert torch.equal(second.lifted, reduced_basis(weights, 3).lifted)
    assert not torch.allclose(second.lifted, first.lifted)
    assert cache.get(weights[:1]).lifted.shape[0] == 1


def test_weights_that_nobody_has_written_into_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared on a GPU holds the host up."""
    cache, weights = BasisCache(3), _weights()
    cache.get(weights)
    read: list[Tensor] = []

    def equal(weight: Tensor, other: Tensor) -> bool:
        read.append(weight)
        return bool((weight == other).all())

    monkeypatch.setattr(torch, "equal", equal)
    for _ in range(2):
        cache.get([weight.detach() for weight in weights])  # as the map of another solve has them
    assert not read
    copies = [weight.clone() for weight in weights]
    assert [len(read) for _ in range(2) if cache.get(copies)] == [2, 2]  # once, then known
    weights[0].data.mul_(2.0)
    torch.autograd.graph.increment_version(weights[0])
    cache.get(copies)
    assert len(read) == 2
    cache.get(weights)
    assert len(read) == 3
