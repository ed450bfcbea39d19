"""Loss and metric against formulas written out, for one and for several labels a node."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.data import GraphData
from distributed_ignn.training.losses.objective import Loss, Objective
from tests.parity.cases import CLASSES, NODES, make_data
from tests.ranks import run_ranks
from tests.training.small_trainers import own_shard, small_config, small_trainer, train


def _objective(data: GraphData, loss: Loss = "auto") -> Objective:
    comm = Communicator()
    return Objective(own_shard(comm, data), comm, loss)


def _multilabel() -> GraphData:
    return replace(
        make_data("plain"), labels=(torch.rand(NODES, CLASSES) > 0.6).float(), task="multilabel"
    )


def _log_sigmoid_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over entries of -t log s(x) - (1 - t) log(1 - s(x)), with s written out."""
    probability = 1 / (1 + torch.exp(-logits))
    return -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()


def test_cross_entropy_is_the_mean_over_training_nodes() -> None:
    data = make_data("plain")
    logits = torch.randn(NODES, CLASSES, dtype=torch.float64, requires_grad=True)
    found = _objective(data).loss(logits)
    nodes = data.train_nodes
    probability = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = -probability[nodes, data.labels[nodes]].log().mean()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    found.backward()
    assert logits.grad is not None
    others = torch.ones(NODES, dtype=torch.bool)
    others[nodes] = False
    assert not logits.grad[others].any()
    assert bool((logits.grad[nodes] != 0).all())


def test_bce_takes_one_hot_labels_or_the_labels_themselves() -> None:
    logits = torch.randn(NODES, CLASSES, dtype=torch.float64)
    single, several = make_data("plain"), _multilabel()
    nodes = single.train_nodes
    one_hot = torch.eye(CLASSES, dtype=torch.float64)[single.labels[nodes]]
    found = float(_objective(single, "bce").loss(logits))
    assert found == pytest.approx(float(_log_sigmoid_loss(logits[nodes], one_hot)), rel=1e-12)
    assert found != pytest.approx(float(_objective(single).loss(logits)), rel=1e-2)
    labels = several.labels[nodes].double()
    for loss in ("auto", "bce"):
        value = float(_objective(several, loss).loss(logits))
        expected = float(_log_sigmoid_loss(logits[nodes], labels))
        assert value == pytest.approx(expected, rel=1e-6), loss


def _prior(comm: Communicator, data: GraphData, loss: Loss) -> Tensor:
    return Objective(own_shard(comm, data), comm, loss).prior_logits()


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_the_prior_is_finite_and_near_the_best_of_all_constant_logits(loss: Loss) -> None:
    data = make_data("plain")
    data = replace(data, labels=data.labels % 2)  # nobody has the last one
    objective = _objective(data, loss)
    prior = objective.prior_logits()
    counts = torch.bincount(data.labels[data.train_nodes], minlength=CLASSES).double()
    if loss == "bce":
        expected = ((counts + 1) / (counts.sum() - counts + 1)).log()
    else:
        expected = ((counts + 1) / (counts.sum() + CLASSES)).log()
    assert torch.allclose(prior, expected, rtol=1e-12)
    least = float(objective.loss(prior.expand(NODES, CLASSES)))
    for change in (-1.0, 1.0):
        for column in torch.eye(CLASSES, dtype=torch.float64)[:2]:
            assert float(objective.loss((prior + change * column).expand(NODES, CLASSES))) > least


def test_the_prior_counts_what_is_known_and_is_the_same_on_every_rank() -> None:
    data = _multilabel()
    labels = data.labels.clone()
    labels[::3, 0] = -1
    data = replace(data, labels=labels)
    own = _prior(Communicator(), data, "auto")
    train = labels[data.train_nodes]
    having, without = ((train == value).sum(dim=0).double() + 1 for value in (1, 0))
    assert torch.allclose(own, (having / without).log(), rtol=1e-12)
    assert float((having + without)[0]) < float((having + without)[1])
    for found in run_ranks(_prior, 2, data, "auto"):
        assert torch.equal(found, own)


def test_training_starts_at_the_prior_where_it_is_asked_for() -> None:
    plain, prior = (
        small_trainer(Communicator(), small_config({"train": {"prior_bias": asked, "loss": "bce"}}))
        for asked in (False, True)
    )
    expected = prior.objective.prior_logits()
    assert torch.allclose(prior.implicit.head.bias.double(), expected, rtol=1e-6)
    assert not torch.allclose(plain.implicit.head.bias.double(), expected, rtol=1e-1)
    assert train(prior, 1)[0].loss < train(plain, 1)[0].loss


def test_labels_that_are_not_known_take_no_part() -> None:
    data, logits = _multilabel(), torch.randn(NODES, CLASSES, dtype=torch.float64)
    unknown = torch.rand(NODES, CLASSES) < 0.5
    logits.requires_grad_()
    found = _objective(replace(data, labels=data.labels.masked_fill(unknown, -1.0))).loss(logits)
    nodes = data.train_nodes
    known = ~unknown[nodes]
    labels = data.labels[nodes].double()[known]
    expected = float(_log_sigmoid_loss(logits[nodes][known], labels).detach())
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[nodes] != 0, known)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_smoothing_spreads_a_share_of_the_target_over_all_classes(loss: Loss) -> None:
    data = make_data("plain")
    comm = Communicator()
    logits = torch.randn(NODES, CLASSES, dtype=torch.float64)
    found = Objective(own_shard(comm, data), comm, loss, 0.3).loss(logits)
    nodes = data.train_nodes
    target = 0.7 * torch.eye(CLASSES, dtype=torch.float64)[data.labels[nodes]] + 0.3 / CLASSES
    if loss == "bce":
        expected = _log_sigmoid_loss(logits[nodes], target)
    else:
        probability = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        expected = -(target * probability[nodes].log()).sum(dim=1).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_smoothing_of_several_labels_moves_each_towards_one_half() -> None:
    data, comm = _multilabel(), Communicator()
    logits = torch.randn(NODES, CLASSES, dtype=torch.float64)
    found = Objective(own_shard(comm, data), comm, "auto", 0.2).loss(logits)
    target = 0.8 * data.labels[data.train_nodes].double() + 0.1
    expected = _log_sigmoid_loss(logits[data.train_nodes], target)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_accuracy_counts_the_likeliest_class_of_each_split() -> None:
    data = make_data("plain")
    logits = torch.full((NODES, CLASSES), -1.0)
    logits[torch.arange(NODES), data.labels] = 1.0
    wrong = data.val_nodes[:5]
    logits[wrong] = -logits[wrong]
    objective = _objective(data)
    assert objective.metric_name == "accuracy"
    found = objective.metrics(logits, ("train", "val", "test"))
    assert found == {"train": 1.0, "val": 15 / 20, "test": 1.0}


def test_micro_f1_is_computed_over_all_entries() -> None:
    data = _multilabel()
    logits = torch.randn(NODES, CLASSES)
    objective = _objective(data)
    assert objective.metric_name == "micro_f1"
    nodes = data.test_nodes
    hits = false_alarms = misses = 0
    for node in nodes.tolist():
        for predicted, actual in zip(logits[node] > 0, data.labels[node] == 1, strict=True):
            hits += bool(predicted and actual)
            false_alarms += bool(predicted and not actual)
            misses += bool(actual and not predicted)
    expected = 2 * hits / (2 * hits + false_alarms + misses)
    assert 0.1 < expected < 0.9
    assert objective.metrics(logits, ("test",)) == {"test": pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("several", [False, True])
def test_blocks_of_nodes_count_as_all_at_once(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed_ignn.training.losses.metrics._BLOCK_ROWS", 7)
    objective = _objective(_multilabel() if several else make_data("plain"))
    logits = torch.randn(NODES, CLASSES)
    asked: list[int] = []

    def read(rows: Tensor) -> Tensor:
        asked.append(rows.numel())
        return logits[rows]

    found = objective.metrics_of(read, ("train", "test"))
    assert found == objective.metrics(logits, ("train", "test"))
    assert asked == [7, 7, 6] * 2


def test_an_empty_split_is_zero_and_not_an_error() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for data in (make_data("plain"), _multilabel()):
        objective = _objective(replace(data, train_nodes=none, val_nodes=none))
        logits = torch.randn(NODES, CLASSES, requires_grad=True)
        loss = objective.loss(logits)
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert logits.grad is not None
        assert not logits.grad.any()
        assert objective.metrics(logits, ("val",)) == {"val": 0.0}
