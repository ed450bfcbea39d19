"""The penalties against dense matrices, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.training.losses.regularizer import spectral_norm
from distributed_ignn.training.trainer import Trainer
from tests.training.small_trainers import small_config, small_trainer, train

CELLS = [
    ("plain", {}),
    ("channels", {"residual": 0.2}),
    ("channels", {"cell": "eignn"}),
    ("plain", {"cell": "mignn"}),
]


def _trainer(case: str, model: dict[str, Any], **weights: float) -> Trainer:
    config = small_config({"model": model, "train": weights, "forward": {"method": "anderson"}})
    return small_trainer(Communicator(), config, case)


def _state(trainer: Trainer) -> Tensor:
    return trainer.implicit.state(0, trainer.planner).detach()


def _dense_jacobian(trainer: Trainer, state: Tensor) -> Tensor:
    """df/dZ of the plain map at Z*, [n D, n D]."""
    injection = trainer.implicit.injection(0).detach()
    weights = [w.detach() for w in trainer.implicit.channel_weights()]
    identity = torch.eye(state.shape[0], dtype=torch.float64)
    dense = trainer.implicit.layer.products(identity)

    def plain(z: Tensor) -> Tensor:
        total = injection + torch.stack(
            [a @ z @ w for a, w in zip(dense, weights, strict=True)]
        ).sum(dim=0)
        return trainer.implicit.layer.form.activate(total)

    found: Tensor = torch.autograd.functional.jacobian(plain, state)
    return found.reshape(state.numel(), state.numel())


@pytest.mark.parametrize(("case", "model"), CELLS)
def test_the_estimate_is_unbiased(case: str, model: dict[str, Any]) -> None:
    """Its mean over many draws of signs is the Jacobian's square."""
    trainer = _trainer(case, model)
    state = _state(trainer)
    jacobian = _dense_jacobian(trainer, state)
    expected = float(jacobian.square().sum()) / state.numel()
    with torch.no_grad():
        draws = [float(trainer.regularizer.jacobian(state, step)) for step in range(300)]
    estimates = torch.tensor(draws, dtype=torch.float64)
    error = float(estimates.std()) / 300**0.5
    assert error < 0.05 * expected
    assert abs(float(estimates.mean()) - expected) < 4 * error
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(("case", "model"), CELLS)
def test_its_gradient_agrees_with_finite_differences(case: str, model: dict[str, Any]) -> None:
    trainer = _trainer(case, model)
    state = _state(trainer)
    name, parameter = next(iter(trainer.implicit.cell_weights.named_parameters()))
    trainer.regularizer.jacobian(state, 1).backward()
    assert parameter.grad is not None
    direction = torch.randn_like(parameter)
    values = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            parameter.add_(sign * 1e-6 * direction)
            values.append(float(trainer.regularizer.jacobian(state, 1)))
            parameter.sub_(sign * 1e-6 * direction)
    slope = (values[0] - values[1]) / 2e-6
    assert abs(slope) > 1e-4, name
    assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-5)


def test_spectral_norm_and_its_gradient() -> None:
    torch.manual_seed(1)
    for shape in ((8, 8), (3, 3)):
        weight = torch.randn(shape, dtype=torch.float64)
        left, values, right = torch.linalg.svd(weight)
        values[0] *= 2.0  # a gap, so that few steps reach the end
        weight = (left @ torch.diag(values) @ right).requires_grad_()
        found = spectral_norm(weight)
        assert float(found.detach()) == pytest.approx(float(values[0]), rel=1e-9)
        (gradient,) = torch.autograd.grad(found, weight)
        assert torch.allclose(gradient, torch.outer(left[:, 0], right[0]), atol=1e-4)


def test_spectral_norm_of_zero_is_zero() -> None:
    weight = torch.zeros(4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(spectral_norm(weight), weight)
    assert bool(torch.isfinite(gradient).all())


def test_a_penalty_costs_one_exchange_and_none_when_off() -> None:
    exchanges = []
    for weights in ({}, {"jacobian_weight": 1.0}, {"spectral_weight": 1.0}):
        trainer = _trainer("plain", {}, **weights)
        state, before = _state(trainer), trainer.comm.traffic.snapshot()
        share = trainer.regularizer.penalty(state, 0)
        exchanges.append(trainer.comm.traffic.since(before).exchanges)
        assert (float(torch.as_tensor(share).detach()) > 0.0) == bool(weights)
    assert exchanges == [0, 1, 0]


@pytest.mark.parametrize("cell", ["ignn", "mignn"])
def test_training_with_penalties_makes_the_map_smaller(cell: str) -> None:
    found = []
    for weights in ({}, {"jacobian_weight": 5.0}, {"spectral_weight": 1.0}):
        trainer = _trainer("plain", {"cell": cell, "dropout": 0.0}, lr=0.02, **weights)
        train(trainer, 15)
        (weight,) = trainer.implicit.channel_weights()
        state = _state(trainer)
        with torch.no_grad():
            jacobian = float(trainer.regularizer.jacobian(state, 100))
            found.append((jacobian, float(torch.linalg.matrix_norm(weight, 2))))
    assert found[1][0] < 0.7 * found[0][0]
    assert found[2][1] < 0.9 * found[0][1]
