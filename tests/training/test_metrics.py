"""Metrics against libraries: F1 of scikit-learn, areas of scipy's rank statistic and of both."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config.training import Metric
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData, Task
from distributed_ignn.training.losses.metrics import _area
from distributed_ignn.training.losses.objective import Objective
from distributed_ignn.training.state import State
from tests.parity.cases import CLASSES, NODES, make_data
from tests.training.small_trainers import own_shard, small_config, small_trainer

SPLITS = ("train", "val", "test")


def _objective(data: GraphData, metric: Metric) -> Objective:
    comm = Communicator()
    return Objective(own_shard(comm, data), comm, "auto", metric=metric)


def _data(classes: int = CLASSES, *, several: bool = False) -> GraphData:
    """Random labels, every class in every split."""
    generator = torch.Generator().manual_seed(1)
    labels: Tensor = torch.randint(0, classes, (NODES,), generator=generator)
    if several:
        labels = (torch.rand(NODES, classes, generator=generator) > 0.5).float()
    task: Task = "multilabel" if several else "multiclass"
    return replace(make_data("plain"), labels=labels, num_classes=classes, task=task)


def _logits(classes: int = CLASSES) -> Tensor:
    """Few different numbers, so that many scores are tied."""
    drawn = torch.randn(NODES, classes, generator=torch.Generator().manual_seed(2))
    return drawn.mul(2.0).round().div(2.0)


def _nodes(data: GraphData, split: str) -> Tensor:
    nodes: Tensor = getattr(data, f"{split}_nodes")
    return nodes


def _mann_whitney(scores: Tensor, positive: Tensor) -> float:
    above, below = scores[positive], scores[~positive]
    found = mannwhitneyu(above.numpy(), below.numpy(), method="asymptotic").statistic
    return float(found) / (above.numel() * below.numel())


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_is_that_of_scikit_learn(average: str, several: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data, logits = _data(several=several), _logits()
    objective = _objective(data, "macro_f1" if average == "macro" else "micro_f1")
    predicted = (logits > 0).long() if several else logits.argmax(dim=1)
    for split, found in objective.metrics(logits, SPLITS).items():
        nodes = _nodes(data, split)
        expected = metrics.f1_score(data.labels[nodes], predicted[nodes], average=average)
        assert found == pytest.approx(expected, abs=1e-12)
        assert 0.1 < found < 0.9


def test_macro_f1_is_a_mean_over_the_classes_that_occur() -> None:
    """Of five classes the last has neither nodes nor predictions; the fourth is never predicted."""
    data = replace(_data(4), num_classes=5)
    logits = torch.full((NODES, 5), -1.0)
    logits[torch.arange(NODES), data.labels] = 1.0
    assert _objective(data, "macro_f1").metrics(logits, ("test",)) == {"test": 1.0}
    logits[data.labels == 3] = -logits[data.labels == 3]
    assert 0.0 < _objective(data, "macro_f1").metrics(logits, ("test",))["test"] < 0.8


def test_the_area_for_two_classes_is_the_statistic_of_mann_and_whitney() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data, logits = _data(2), _logits(2)
    objective = _objective(data, "roc_auc")
    assert objective.metric_name == objective.unusual_metric == "roc_auc"
    lead = logits[:, 1] - logits[:, 0]
    for split, found in objective.metrics(logits, SPLITS).items():
        nodes = _nodes(data, split)
        positive = data.labels[nodes] == 1
        assert found == pytest.approx(_mann_whitney(lead[nodes], positive), abs=1e-12)
        assert found == pytest.approx(metrics.roc_auc_score(positive, lead[nodes]), abs=1e-12)
        assert found not in (0.0, 0.5, 1.0)
    turned = objective.metrics(-logits, ("val",))["val"]
    assert turned == pytest.approx(1.0 - objective.metrics(logits, ("val",))["val"], abs=1e-12)


def test_the_area_for_several_labels_is_a_mean_over_columns_with_both_values() -> None:
    data, logits = _data(several=True), _logits()
    labels = data.labels.clone()
    labels[data.val_nodes, 0] = 1.0  # nothing to compare in this column
    found = _objective(replace(data, labels=labels), "roc_auc").metrics(logits, ("val",))
    columns = [
        _mann_whitney(logits[data.val_nodes, c], labels[data.val_nodes, c] == 1)
        for c in range(1, CLASSES)
    ]
    assert found == {"val": pytest.approx(sum(columns) / len(columns), abs=1e-12)}


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1", "roc_auc"])
def test_labels_that_are_not_known_take_no_part(metric: Metric) -> None:
    """Nodes whose labels are all unknown change nothing; the others count by column."""
    data, logits = _data(several=True), _logits()
    unknown = torch.rand(NODES, CLASSES, generator=torch.Generator().manual_seed(5)) < 0.4
    labels = data.labels.masked_fill(unknown, -1.0)
    found = _objective(replace(data, labels=labels), metric).metrics(logits, ("test",))["test"]
    nodes = data.test_nodes
    columns = []
    for c in range(CLASSES):
        known = nodes[~unknown[nodes, c]]
        positive, scores = data.labels[known, c] == 1, logits[known, c]
        if metric == "roc_auc":
            columns.append((_mann_whitney(scores, positive), 1.0))
        else:
            hits = int((positive & (scores > 0)).sum())
            columns.append((2.0 * hits, float(positive.sum() + (scores > 0).sum())))
    above, below = (sum(part) for part in zip(*columns, strict=True))
    micro, macro = above / below, sum(a / b for a, b in columns) / CLASSES
    assert found == pytest.approx(micro if metric == "micro_f1" else macro, abs=1e-12)
    whole = _objective(data, metric).metrics(logits, ("test",))["test"]
    assert found != pytest.approx(whole, abs=1e-3)


def test_the_order_of_nodes_does_not_change_a_bit_of_the_area() -> None:
    positive, negative = torch.randn(999).half().float(), torch.randn(501).half().float()
    areas = {_area(positive[torch.randperm(999)], negative[torch.randperm(501)]) for _ in range(5)}
    assert len(areas) == 1


@pytest.mark.parametrize(
    ("metric", "data", "message"),
    [
        ("roc_auc", _data(3), r"roc_auc is for two classes .* has 3 classes; choose accuracy or "),
        ("accuracy", _data(several=True), r"accuracy is for one label a node, .* choose micro_f1"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(
    metric: Metric, data: GraphData, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _objective(data, metric)
    assert "\n" not in str(caught.value)


def test_a_loss_that_does_not_fit_is_refused() -> None:
    comm = Communicator()
    shard = own_shard(comm, _data(several=True))
    with pytest.raises(UserError, match=r"cross_entropy is for one label a node, .* or bce$"):
        Objective(shard, comm, "cross_entropy")


def test_one_class_in_the_validation_split_is_refused_and_elsewhere_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = _data(2)
    labels = data.labels.clone()
    labels[data.val_nodes] = 0
    with pytest.raises(UserError, match=r"validation nodes of one class only, .* accuracy"):
        _objective(replace(data, labels=labels), "roc_auc")
    labels = data.labels.clone()
    labels[data.test_nodes] = 1
    with caplog.at_level(logging.WARNING):
        objective = _objective(replace(data, labels=labels), "roc_auc")
    assert caplog.messages == ["the test nodes are all of one class: they have no roc_auc"]
    assert list(objective.metrics(_logits(2), ("val", "test"))) == ["val"]
    assert objective.usual_metrics(lambda rows: _logits(2)[rows], ("test",))["test"] > 0.0


def test_nodes_without_labels_have_no_figure() -> None:
    """As on a graph that a model is only used on."""
    nobody = torch.zeros(0, dtype=torch.int64)
    data = replace(
        _data(2), train_nodes=nobody, val_nodes=nobody, test_nodes=nobody,
        labels=torch.full((NODES,), -1),
    )  # fmt: skip
    for metric in ("roc_auc", "macro_f1", "auto"):
        assert _objective(data, metric).scores(_logits(2)) == {}


def test_a_run_that_chose_by_another_metric_cannot_go_on() -> None:
    data = _data(2)
    trainer = small_trainer(Communicator(), small_config({"train": {"metric": "roc_auc"}}), data)
    state = trainer.state()
    assert state.values["metric"] == "roc_auc"
    trainer.load_state(state)
    with pytest.raises(UserError, match=r"train.metric = auto, not roc_auc.*; resume with that"):
        trainer.load_state(State({"epoch": 1}))
    usual = small_trainer(Communicator(), small_config({}), data)
    assert "metric" not in usual.state().values
    with pytest.raises(UserError, match=r"train.metric = roc_auc, not auto"):
        usual.load_state(state)
