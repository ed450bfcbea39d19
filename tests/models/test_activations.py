"""Activations: those of the cells, and a third one that nothing in the package knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.activations import IDENTITY, RELU, Activation
from distributed_ignn.models.constraints import project_columns_l1
from distributed_ignn.models.implicit import Cell, ImplicitLayer, SolvePlan
from distributed_ignn.models.maps import CellForm
from distributed_ignn.propagation.propagate import Propagation
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.broyden import Broyden
from tests.additions.tanh_cell import Tanh
from tests.parity.cases import NODES, assign, make_data, spread
from tests.ranks import run_ranks

WIDTH = 3
ALL = [RELU, IDENTITY, Tanh()]


@pytest.mark.parametrize("activation", ALL, ids=lambda a: type(a).__name__)
def test_the_slope_follows_from_the_image(activation: Activation) -> None:
    x = torch.randn(40, WIDTH, dtype=torch.float64, requires_grad=True)
    image = activation(x)
    (expected,) = torch.autograd.grad(image.sum(), x)
    slope = activation.slope(image.detach())
    whole = torch.ones_like(x) if slope is None else slope.to(x)
    assert torch.allclose(whole, expected)
    assert float(whole.abs().max()) <= activation.steepest <= 1.0
    values = torch.randn_like(x.detach())
    assert torch.allclose(activation.gate(values.clone(), image.detach()), values * expected)
    written = torch.empty_like(values)
    activation.write(x.detach().clone(), written)
    assert torch.equal(written, image.detach())
    held = 0 if slope is None else slope.element_size()
    assert activation.slope_bytes(image.element_size()) == held


def test_steps_and_steep_slopes_are_refused_where_they_change_the_equilibrium() -> None:
    class Steep(Tanh):
        steepest = 1.5

    with pytest.raises(ValueError, match="changes the fixed points of Tanh"):
        CellForm(Tanh(), step=0.5)
    with pytest.raises(ValueError, match=r"Steep has a slope of up to 1\.5"):
        CellForm(Steep())
    assert CellForm(IDENTITY, step=0.5).step == 0.5


def _layer(case: str, comm: Communicator, form: CellForm) -> tuple[ImplicitLayer, Tensor, Any]:
    """The layer on this rank's part, b of its nodes, and the part."""
    shards = list(build_shards(make_data(case), assign(case, comm.world_size), comm.world_size))
    shard = shards[comm.rank]
    generator = torch.Generator().manual_seed(2)
    whole = torch.randn(NODES, WIDTH, generator=generator, dtype=torch.float64)
    layer = ImplicitLayer(Propagation(shard, comm, torch.float64), comm.sum, form=form)
    return layer, whole[shard.owned_nodes].to(comm.device), shard


def _weights(channels: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(channels * WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return list(project_columns_l1(drawn, 0.6).to(device).chunk(channels))


def _plan(solver: Any) -> SolvePlan:
    def start(cell: Cell, driver: Tensor) -> Tensor:
        return torch.zeros_like(driver)

    return SolvePlan(solver, start, 1e-13, 500, lambda solution: None)


@pytest.mark.parametrize("activation", ALL, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(
    ("case", "residual"), [("plain", 0.0), ("directed", 0.0), ("channels", 0.3)]
)
def test_gradients_agree_with_finite_differences(
    activation: Activation, case: str, residual: float
) -> None:
    form = CellForm(activation, residual=residual)
    layer, injection, shard = _layer(case, Communicator(), form)
    weights = _weights(len(shard.channels), injection.device)

    def equilibrium(injection: Tensor, *weights: Tensor) -> Tensor:
        return layer(injection, list(weights), _plan(Anderson()), _plan(Broyden(6)))

    inputs = tuple(tensor.clone().requires_grad_() for tensor in (injection, *weights))
    assert torch.autograd.gradcheck(
        equilibrium, inputs, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True
    )


def _report(comm: Communicator) -> dict[str, Tensor]:
    """Z* and gradients of sum(sin(i) Z*) for tanh, with the error against finite differences."""
    layer, injection, shard = _layer("channels", comm, CellForm(Tanh()))
    weights = [w.requires_grad_() for w in _weights(2, injection.device)]
    probe = shard.owned_nodes.to(injection).sin()[:, None]

    def value(injection: Tensor, weights: list[Tensor]) -> Tensor:
        return (probe * layer(injection, weights, _plan(Anderson()), _plan(Anderson()))).sum()

    injection.requires_grad_()
    grads = torch.autograd.grad(value(injection, weights), [injection, *weights])
    along = [torch.cos(torch.arange(t.numel()).to(t)).view_as(t) for t in (injection, *weights)]
    along[0] = along[0] * probe  # the same however the graph is cut is not needed: any will do
    with torch.no_grad():
        step, ends = 1e-5, []
        for sign in (1.0, -1.0):
            moved = [t + sign * step * a for t, a in zip((injection, *weights), along, strict=True)]
            ends.append(value(moved[0], moved[1:]))
        measured = comm.sum((ends[0] - ends[1]).reshape(1).cpu() / (2 * step))
    shares = torch.stack([(g * a).sum() for g, a in zip(grads, along, strict=True)]).sum()
    slope = comm.sum(shares.reshape(1).detach().cpu())
    with torch.no_grad():
        state = layer(injection, weights, _plan(Anderson()), _plan(Anderson()))
    return {
        "<error>": (slope - measured).abs() / comm.world_size,
        "state": spread(shard, state),
        "grad b": spread(shard, grads[0]),
        **{f"grad W {c}": grad.cpu() for c, grad in enumerate(grads[1:])},
    }


def test_tanh_has_the_same_gradient_on_one_and_two_ranks() -> None:
    """And on both that of central differences, whose direction moves all ranks at once."""
    whole = _report(Communicator())
    parts = run_ranks(_report, 2)
    assert float(whole["grad W 0"].abs().max()) > 1e-2
    for name, expected in whole.items():
        found = torch.stack([part[name] for part in parts]).sum(dim=0)
        if name == "<error>":
            assert float(expected) < 1e-7
            assert float(found) < 1e-7
        else:
            assert torch.allclose(found, expected, rtol=0, atol=1e-10), name
