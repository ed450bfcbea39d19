"""The consistency loss against its formula, its gradient, its masks and its warm-up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import TrainConfig
from distributed_ignn.training.losses.consistency import Consistency
from tests.training.small_trainers import small_config, small_trainer, train

NODES, CLASSES, SAMPLES, TEMPERATURE = 7, 4, 3, 0.4


def _consistency(multilabel: bool = False, **settings: float) -> Consistency:
    values = {
        "consistency": 1.5,
        "consistency_samples": SAMPLES,
        "consistency_temperature": TEMPERATURE,
        **settings,
    }
    return Consistency(TrainConfig.model_validate(values), NODES, multilabel)


def _probabilities() -> list[Tensor]:
    logits = torch.randn(SAMPLES, NODES, CLASSES, dtype=torch.float64)
    return [p.requires_grad_() for p in logits.softmax(dim=2)]


def test_loss_and_gradient_are_those_of_the_formula() -> None:
    passes = _probabilities()
    loss = _consistency().loss(passes, 0)
    expected = 0.0
    for node in range(NODES):
        mean = [sum(float(p.detach()[node, c]) for p in passes) / SAMPLES for c in range(CLASSES)]
        power = [p ** (1 / TEMPERATURE) for p in mean]
        target = torch.tensor([p / sum(power) for p in power], dtype=torch.float64)
        for p in passes:
            expected += 1.5 * float((p.detach()[node] - target).square().sum())
    assert float(loss.detach()) == pytest.approx(expected / (SAMPLES * NODES), rel=1e-12)
    # the target is held fixed: the gradient is that of a plain square, in the last pass of node 6
    loss.backward()
    grad = passes[-1].grad
    assert grad is not None
    difference = passes[-1].detach()[6] - target
    assert torch.allclose(grad[6], difference * (2 * 1.5 / (SAMPLES * NODES)), rtol=1e-10, atol=0)


def test_a_sharper_target_punishes_an_undecided_prediction() -> None:
    same = [torch.tensor([[0.6, 0.4]], dtype=torch.float64)] * 2
    plain = _consistency(consistency_temperature=1.0).loss(same, 0)
    assert float(plain) == pytest.approx(0.0, abs=1e-30)
    assert float(_consistency(consistency_temperature=0.5).loss(same, 0)) > 1e-3


def test_every_class_of_several_labels_is_sharpened_by_itself() -> None:
    same = [torch.tensor([[0.9, 0.8, 0.5]], dtype=torch.float64)]
    found = _consistency(multilabel=True, consistency_temperature=0.5).loss(same, 0)
    target = torch.tensor([0.81 / 0.82, 0.64 / 0.68, 0.5], dtype=torch.float64)
    expected = 1.5 * float((same[0][0] - target).square().sum()) / NODES
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_masks_are_never_drawn_twice_and_one_is_enough_without_consistency() -> None:
    several = _consistency()
    drawn = [draw for epoch in range(50) for draw in several.draws(epoch)]
    assert len(drawn) == len(set(drawn)) == 50 * SAMPLES
    off = _consistency(consistency=0.0)
    assert [off.draws(epoch) for epoch in (0, 1, 9)] == [[0], [1], [9]]
    assert float(off.loss([torch.rand(NODES, CLASSES)], 0)) == 0.0


def test_the_weight_rises_during_the_warm_up() -> None:
    rising = _consistency(consistency_warmup=3)
    assert [rising.weight(epoch) for epoch in range(6)] == [0.375, 0.75, 1.125, 1.5, 1.5, 1.5]
    assert _consistency().weight(0) == 1.5


def test_training_solves_once_for_each_mask() -> None:
    solver = {"method": "anderson", "warm_start": False}
    steps = {}
    for samples in (1, 3):
        changes: dict[str, dict[str, Any]] = {
            "model": {"node_dropout": 0.5, "input_dropout": 0.0},
            "forward": solver,
            "adjoint": solver,
            "train": {"consistency": 1e-9, "consistency_samples": samples},
        }
        trainer = small_trainer(Communicator(), small_config(changes))
        (record,) = train(trainer, 1)
        steps[samples] = record.evaluations_forward, record.evaluations_adjoint
    for one, three in zip(steps[1], steps[3], strict=True):
        assert 2.5 * one < three < 3.5 * one


def test_unlabelled_nodes_and_all_masks_reach_the_gradient() -> None:
    """The first weights after a step differ with the weight of the consistency and its masks."""
    weights = []
    for settings in (
        {"consistency": 0.0},
        {"consistency": 1.0},
        {"consistency": 1.0, "consistency_samples": 3},
        {"consistency": 1.0, "consistency_temperature": 0.9},
    ):
        config = small_config({"model": {"node_dropout": 0.5}, "train": settings})
        trainer = small_trainer(Communicator(), config)
        train(trainer, 2)
        weights.append(trainer.implicit.head.weight.detach().clone())
    for index, left in enumerate(weights):
        assert all(not torch.allclose(left, right) for right in weights[index + 1 :])
