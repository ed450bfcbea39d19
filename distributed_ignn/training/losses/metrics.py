"""Metrics of a task over the nodes of all ranks: what can be counted, and what has to be ranked.

Accuracy and F1 follow from counts, which ranks add up. The area under the ROC curve does not: it is
the share of pairs of a positive and a negative node in which the positive one scores higher, ties
counting one half (Mann and Whitney 1947). For it every column of scores is sent to one rank, the
columns being dealt out, one number a node: 4 bytes a node and column in float32. The pairs are
counted in whole numbers, so the area does not depend on how the graph is cut.

Letters: R rows, C classes, K columns that are ranked, P ranks.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config.training import Metric
from distributed_ignn.errors import UserError

logger = logging.getLogger(__name__)

ReadOut = Callable[[Tensor], Tensor]
"""From owned ids [R] to their logits [R, C]."""

_BLOCK_ROWS = 1 << 14  # nodes that are read out at a time


@dataclass(frozen=True, slots=True, eq=False)
class LabelledNodes:
    """What a metric knows of the nodes of one rank.

    Args:
        name: of the dataset, for messages.
        labels: int64 [O], or [O, C] of 0, 1 and -1, which means that a label is not known.
        splits: owned ids by the name of the split, ``val`` among them.
        classes: C.
        multilabel: whether a node may have several labels.
        comm: adds up and gathers over ranks.
    """

    name: str
    labels: Tensor
    splits: Mapping[str, Tensor]
    classes: int
    multilabel: bool
    comm: Communicator

    def predictions(self, logits: Tensor) -> Tensor:
        """Labels that logits [R, C] stand for: classes [R], or which of several, bool [R, C]."""
        return logits > 0 if self.multilabel else logits.argmax(dim=1)

    def blocks(self, split: str) -> tuple[Tensor, ...]:
        """The owned ids of a split, so many at a time as are read out together; at least one."""
        return self.splits[split].split(_BLOCK_ROWS)


class Measure(ABC):
    """One metric; every rank calls it alike and gets the same numbers.

    Args:
        nodes: of this rank.
        name: of the metric.
    """

    def __init__(self, nodes: LabelledNodes, name: Metric) -> None:
        self.nodes = nodes
        self.name = name

    @abstractmethod
    def __call__(self, read: ReadOut, splits: Sequence[str]) -> dict[str, float]:
        """The metric by split, without those splits on which it is not defined."""


def usual_metric(nodes: LabelledNodes) -> Metric:
    """What ``auto`` takes: accuracy for one label a node, micro-F1 for several."""
    return "micro_f1" if nodes.multilabel else "accuracy"


def choose_measure(metric: Metric, nodes: LabelledNodes) -> Measure:
    """The metric that is asked for; every rank calls it.

    Args:
        metric: see ``usual_metric`` for ``auto``.
        nodes: of this rank.

    Raises:
        UserError: it does not fit the labels (on every rank alike).
    """
    metric = usual_metric(nodes) if metric == "auto" else metric
    if metric == "accuracy" and nodes.multilabel:
        raise UserError(
            f"train.metric = accuracy is for one label a node, and {nodes.name} has several; "
            "choose micro_f1, macro_f1 or roc_auc"
        )
    if metric != "roc_auc":
        return CountedMeasure(nodes, metric)
    if not nodes.multilabel and nodes.classes != 2:
        raise UserError(
            f"train.metric = roc_auc is for two classes (or several labels a node), and "
            f"{nodes.name} has {nodes.classes} classes; choose accuracy or macro_f1"
        )
    return RocAuc(nodes)


class CountedMeasure(Measure):
    """Accuracy, micro-F1 or macro-F1: a function of counts.

    Micro-F1 of one label a node is the accuracy. Macro-F1 is the mean over the classes that occur
    among labels or predictions.
    """

    def __call__(self, read: ReadOut, splits: Sequence[str]) -> dict[str, float]:
        """See ``Measure``; one reduction for all splits."""
        if not splits:
            return {}
        counts = torch.stack([self._count(read, name) for name in splits])
        sums = self.nodes.comm.sum(counts.double())
        return {name: _value(self.name, row) for name, row in zip(splits, sums, strict=True)}

    def _count(self, read: ReadOut, split: str) -> Tensor:
        counts = [self._counts(read(rows), rows) for rows in self.nodes.blocks(split)]
        return torch.stack(counts).sum(dim=0)

    def _counts(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Numbers of the nodes ``rows`` that add up, int64 on the CPU."""
        nodes = self.nodes
        predicted, labels = nodes.predictions(logits), nodes.labels[rows]
        if self.name != "macro_f1" and not nodes.multilabel:
            hits = (predicted == labels).sum()
            return torch.stack([hits, hits.new_tensor(rows.numel())]).cpu()
        if not nodes.multilabel:
            predicted, labels = (_columns(ids, nodes.classes) for ids in (predicted, labels))
        else:
            predicted = predicted & (labels >= 0)
        actual = labels > 0.5
        # F1 = 2 TP / (2 TP + FP + FN), of every class
        twice_hits = 2 * (predicted.bool() & actual).sum(dim=0)
        both = torch.stack([twice_hits, predicted.sum(dim=0) + actual.sum(dim=0)]).cpu()
        return both if self.name == "macro_f1" else both.sum(dim=1)


def _columns(ids: Tensor, classes: int) -> Tensor:
    """Classes [R] as columns [R, C] of 0 and 1."""
    return functional.one_hot(ids, classes)


def _value(name: Metric, sums: Tensor) -> float:
    """Numerator over denominator: of all nodes, or the mean over the classes that occur."""
    if name == "macro_f1":
        known = sums[1] > 0
        return float((sums[0][known] / sums[1][known]).mean()) if bool(known.any()) else 0.0
    return float(sums[0]) / max(float(sums[1]), 1.0)


class RocAuc(Measure):
    """Area under the ROC curve: of the second class of two, or the mean over columns of labels.

    Nodes whose label of a column is not known take no part in it. Columns of which all nodes of the
    split have the same value are left out of the mean (as OGB does for ogbn-proteins). A split that
    has no other columns has no figure; the validation split must have one, since it chooses the
    epoch.

    Args:
        nodes: of this rank; every rank makes one.

    Raises:
        UserError: the validation nodes are all of one class (on every rank alike).
    """

    def __init__(self, nodes: LabelledNodes) -> None:
        super().__init__(nodes, "roc_auc")
        self._width = nodes.classes if nodes.multilabel else 1
        self._sides = {name: self._targets(rows) for name, rows in nodes.splits.items()}
        self._counts = self._count_all()
        self._check_splits()

    def _targets(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which nodes of ``rows`` are positive and which negative, bool [R, K] each.

        One whose label is not known is neither.
        """
        labels = self.nodes.labels[rows]
        labels = labels if self.nodes.multilabel else labels[:, None]
        return labels == 1, labels == 0

    def _scores(self, logits: Tensor) -> Tensor:
        """What columns [R, K] nodes are ranked by; of two classes the lead of the second."""
        return logits if self.nodes.multilabel else logits[:, 1:] - logits[:, :1]

    def _count_all(self) -> dict[str, Tensor]:
        """By split, how many positive and negative nodes each rank has, int64 [P, K, 2]."""
        comm = self.nodes.comm
        counts = torch.zeros(len(self._sides), comm.world_size, self._width, 2, dtype=torch.int64)
        for number, sides in enumerate(self._sides.values()):
            for side, members in enumerate(sides):
                counts[number, comm.rank, :, side] = members.sum(dim=0).cpu()
        return dict(zip(self._sides, comm.sum(counts), strict=True))

    def _check_splits(self) -> None:
        for name, counts in self._counts.items():
            if int(counts.sum()) == 0 or bool(self._defined(name).any()):
                continue
            if name == "val":
                raise UserError(
                    "train.metric = roc_auc has no value on validation nodes of one class only, as "
                    f"those of {self.nodes.name} are; move nodes of another class into the split, "
                    f"or choose {'micro_f1' if self.nodes.multilabel else 'accuracy'}"
                )
            if self.nodes.comm.is_main:
                logger.warning("the %s nodes are all of one class: they have no roc_auc", name)

    def _defined(self, split: str) -> Tensor:
        """Columns of which the split has both values, bool [K]."""
        return (self._counts[split].sum(dim=0) > 0).all(dim=1)

    def __call__(self, read: ReadOut, splits: Sequence[str]) -> dict[str, float]:
        """See ``Measure``; an exchange a split and one reduction for all of them."""
        if not splits:
            return {}
        areas = torch.stack([self._areas(read, name) for name in splits])
        sums = self.nodes.comm.sum(areas)
        found = {name: row[self._defined(name)] for name, row in zip(splits, sums, strict=True)}
        return {name: float(row.mean()) for name, row in found.items() if row.numel()}

    def _areas(self, read: ReadOut, split: str) -> Tensor:
        """The areas of the columns that this rank was dealt, float64 [K]; 0 for the others."""
        scores = torch.cat([self._scores(read(rows)) for rows in self.nodes.blocks(split)])
        areas = torch.zeros(self._width, dtype=torch.float64)
        for column, (positive, negative) in self._gathered(scores, split).items():
            areas[column] = _area(torch.cat(positive), torch.cat(negative))
        return areas

    def _gathered(self, scores: Tensor, split: str) -> dict[int, tuple[list[Tensor], list[Tensor]]]:
        """Of the columns dealt to this rank, the scores of positive and of negative nodes by rank.

        Args:
            scores: [R, K] of this rank.
            split: of the nodes.
        """
        comm = self.nodes.comm
        dealt = [range(rank, self._width, comm.world_size) for rank in range(comm.world_size)]
        halves = [self._halves(scores, split, columns) for columns in dealt]
        own, kept = dealt[comm.rank], halves[comm.rank]
        sizes = self._counts[split][:, list(own)].flatten(1)  # what each rank has of them
        sizes[comm.rank], halves[comm.rank] = 0, []  # nothing is sent to oneself
        sent = torch.cat([scores.new_empty(0), *(half for part in halves for half in part)])
        send_counts = [sum(half.numel() for half in part) for part in halves]
        recv_counts: list[int] = sizes.sum(dim=1).tolist()
        arrived = comm.start_exchange(sent[:, None], send_counts, recv_counts).wait()[:, 0]
        parts: list[Sequence[Tensor]] = [
            part.split(own_sizes)
            for part, own_sizes in zip(arrived.split(recv_counts), sizes.tolist(), strict=True)
        ]
        parts[comm.rank] = kept
        return {
            column: ([part[2 * i] for part in parts], [part[2 * i + 1] for part in parts])
            for i, column in enumerate(own)
        }

    def _halves(self, scores: Tensor, split: str, columns: Sequence[int]) -> list[Tensor]:
        """Of each column, the scores of the positive nodes, then those of the negative ones."""
        return [
            scores[:, column][side[:, column]] for column in columns for side in self._sides[split]
        ]


def _area(positive: Tensor, negative: Tensor) -> float:
    """Share of pairs in which the positive score is the larger one, ties counting one half."""
    pairs = positive.numel() * negative.numel()
    if pairs == 0:
        return 0.0
    ordered = negative.sort().values
    # whole numbers below 2**63, whatever the order of nodes
    below = torch.searchsorted(ordered, positive).sum()
    up_to = torch.searchsorted(ordered, positive, right=True).sum()
    return int(below + up_to) / (2 * pairs)
