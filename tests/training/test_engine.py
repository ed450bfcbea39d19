"""One optimiser step: the bound on W, Adam against torch's own, which parameters move."""

from __future__ import annotations

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.cells import IgnnWeights
from distributed_ignn.models.constraints import largest_column_sum
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.training.engines.torch import TorchEngine
from tests.training.small_trainers import small_config, small_trainer

# ten times what a step needs to leave the bound
FAST = {"train": {"lr": 0.1, "weight_decay": 0.0}}


def _weights(model: ShardModel) -> IgnnWeights:
    assert isinstance(model.cell_weights, IgnnWeights)
    return model.cell_weights


def test_every_step_ends_inside_the_bound() -> None:
    for case in ("plain", "channels"):
        trainer = small_trainer(Communicator(), small_config(FAST), case)
        bound = _weights(trainer.implicit).radius
        reached = []
        for _ in range(6):
            trainer.train_epoch()
            reached.append(largest_column_sum(_weights(trainer.implicit).weight.flatten(0, 1)))
        assert max(reached) <= bound * (1 + 1e-12)
        assert max(reached) > 0.999 * bound, "the bound was never active"


def test_without_the_constraint_the_same_steps_leave_it() -> None:
    config = small_config({**FAST, "model": {"constraint": "none"}})
    trainer = small_trainer(Communicator(), config)
    for _ in range(6):
        trainer.train_epoch()
    assert (
        largest_column_sum(_weights(trainer.implicit).weight.flatten(0, 1))
        > _weights(trainer.implicit).radius
    )


def test_a_step_is_adam_and_then_the_projection() -> None:
    trainer = small_trainer(Communicator(), small_config({"train": {"weight_decay": 0.02}}))
    model, config = trainer.implicit, trainer.config.train
    assert isinstance(trainer.engine, TorchEngine)
    twins = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    adam = torch.optim.Adam(twins.values(), lr=config.lr, weight_decay=float(config.weight_decay))
    for step in range(4):
        logits = model(step, trainer.planner.train(), trainer.planner.adjoint())
        trainer.engine.step(trainer.objective.loss(logits))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.any()), f"{name} has no gradient"
            twins[name].grad = parameter.grad.clone()
        adam.step()
        with torch.no_grad():
            projected = _weights(model).weight.clone()
            _weights(model).weight.copy_(twins["cell_weights.weight"])
            model.project()
            assert torch.equal(_weights(model).weight, projected)
            twins["cell_weights.weight"].copy_(projected)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, twins[name]), name


def test_gradients_are_scaled_down_to_the_largest_norm() -> None:
    trainer = small_trainer(Communicator(), small_config({"train": {"clip_norm": 0.5}}))
    engine, bias = trainer.engine, trainer.implicit.head.bias
    shape = torch.arange(1.0, bias.numel() + 1.0, dtype=bias.dtype)
    for size, is_long in ((3.0, True), (0.01, False), (3.0, True)):
        engine.step((size * shape * bias).sum())
        assert bias.grad is not None
        expected = (size * shape).clone().requires_grad_()
        expected.grad = size * shape
        torch.nn.utils.clip_grad_norm_([expected], 0.5)
        torch.testing.assert_close(bias.grad, expected.grad, rtol=1e-5, atol=0.0)
        assert bool(torch.equal(bias.grad, size * shape)) is not is_long
        # what is told is how long it was
        assert engine.gradient_norm() == pytest.approx(float((size * shape).norm()))


def test_gradients_do_not_pile_up() -> None:
    trainer = small_trainer(Communicator(), small_config())
    seen = []
    for _ in range(2):
        trainer.engine.step(trainer.implicit.head.bias.sum())
        assert trainer.implicit.head.bias.grad is not None
        seen.append(trainer.implicit.head.bias.grad.tolist())
    assert seen[0] == seen[1] == [1.0] * len(seen[0])
