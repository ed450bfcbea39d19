"""The running mean of the weights against its recursion, and what training does with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.cells.ignn import IgnnWeights
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.training.averaging import WeightAverage
from tests.training.small_trainers import (
    assert_equal,
    everything,
    numbers,
    small_config,
    small_trainer,
    train,
)


def _model(value: float) -> nn.Linear:
    model = nn.Linear(2, 1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def test_mean_follows_the_recursion_and_its_warm_up() -> None:
    model = _model(0.0)
    average = WeightAverage(model, 0.3)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, -3.0, 5.0, 8.0]):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = value if step == 0 else decay * expected + (1 - decay) * value
        assert float(average.mean["weight"][0, 0]) == pytest.approx(expected, rel=1e-12)


def test_the_mean_is_in_use_inside_and_the_weights_are_back_after() -> None:
    model = _model(1.0)
    average = WeightAverage(model, 0.9)
    average.update()
    with torch.no_grad():
        model.weight.fill_(3.0)
    average.update()
    mean = average.mean["weight"].clone()
    assert not torch.equal(mean, model.weight.detach())
    with average.in_use():
        assert torch.equal(model.weight.detach(), mean)
    assert float(model.weight.detach()[0, 0]) == 3.0


def test_switched_off_it_keeps_nothing_and_changes_nothing() -> None:
    model = _model(1.0)
    average = WeightAverage(model, 0.0)
    average.update()
    assert average.mean == {}
    with average.in_use():
        assert float(model.weight.detach()[0, 0]) == 1.0


def test_training_validates_and_keeps_the_mean() -> None:
    config = small_config({"train": {"ema": 0.9}, "forward": {"method": "anderson"}})
    trainer = small_trainer(Communicator(), config)
    train(trainer, 3)
    best = trainer.best
    assert best.weights is not None
    name = "cell_weights.weight"
    cell = trainer.implicit.cell_weights
    assert isinstance(cell, IgnnWeights)
    own = cell.weight.detach().clone()
    assert not torch.allclose(own, trainer.average.mean[name])
    if best.epoch == 3:
        assert torch.equal(best.weights[name], trainer.average.mean[name])
    assert not torch.equal(best.weights[name], own)
    # the mean keeps the bound that makes the map a contraction
    sums = trainer.average.mean[name].abs().sum(dim=(0, 1))
    assert float(sums.max()) <= cell.radius * (1 + 1e-12)


def test_a_resumed_run_goes_on_with_the_same_mean() -> None:
    config = small_config({"train": {"ema": 0.9, "consistency": 0.5}})
    whole, first, second = (small_trainer(Communicator(), config) for _ in range(3))
    records = train(whole, 4)
    train(first, 2)
    restore(second, take_snapshot(first))
    resumed = train(second, 2)
    assert [numbers(r) for r in resumed] == [numbers(r) for r in records[2:]]
    assert second.average.steps == 4
    assert_equal(second.average.mean, whole.average.mean)
    assert_equal(everything(second), everything(whole))
