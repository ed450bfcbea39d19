"""Loss and metric of a node-classification task, as global numbers on every rank.

Letters: O owned nodes, C classes, T training nodes of this rank.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config.training import Metric
from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.training.losses.metrics import (
    LabelledNodes,
    ReadOut,
    choose_measure,
    usual_metric,
)

Loss = Literal["auto", "cross_entropy", "bce"]


class Objective:
    """What is minimised and what is reported.

    Multi-class: cross-entropy, or binary cross-entropy on one-hot labels as the IGNN-Solver paper
    prints it. Multi-label: binary cross-entropy, over the labels that are known. The metrics are
    those of ``metrics.py``.

    Args:
        shard: this rank's labels and splits.
        comm: sums counts over ranks.
        loss: ``auto`` takes cross-entropy for one label a node and bce for several.
        smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2016,
            section 7; for several labels a node, over 0 and 1), in [0, 1).
        metric: see ``choose_measure``.

    Attributes:
        multilabel: whether a node may have several labels.
        metric_name: of the metric that is reported.
        unusual_metric: the same where it is not what ``auto`` takes, else None.

    Raises:
        UserError: the loss or the metric does not fit the labels (on every rank alike).
    """

    def __init__(
        self,
        shard: GraphShard,
        comm: Communicator,
        loss: Loss,
        smoothing: float = 0.0,
        metric: Metric = "auto",
    ) -> None:
        device = comm.device
        self._comm = comm
        self.multilabel = shard.task == "multilabel"
        if loss == "cross_entropy" and self.multilabel:
            raise UserError(
                "train.loss = cross_entropy is for one label a node, and "
                f"{shard.name} has several; choose auto or bce"
            )
        self._bce = loss == "bce" or self.multilabel
        self._labels = shard.labels.to(device)
        self._classes = shard.num_classes
        self._smoothing = smoothing
        self._splits = {
            "train": shard.train_index.to(device),
            "val": shard.val_index.to(device),
            "test": shard.test_index.to(device),
        }
        sizes = zip(self._splits, shard.split_sizes, strict=True)
        self._labelled = tuple(name for name, size in sizes if size > 0)
        self._train_total = self._count_targets(shard.split_sizes[0], comm)
        self._nodes = LabelledNodes(
            shard.name, self._labels, self._splits, self._classes, self.multilabel, comm
        )
        self._measure = choose_measure(metric, self._nodes)
        self.metric_name = self._measure.name
        usual = self.metric_name == usual_metric(self._nodes)
        self.unusual_metric: Metric | None = None if usual else self.metric_name

    def _count_targets(self, nodes: int, comm: Communicator) -> int:
        """What the loss is the mean over: training nodes, times classes for BCE where known."""
        if not self.multilabel:
            return max(nodes, 1) * (self._classes if self._bce else 1)
        known = (self._labels[self.train_rows] >= 0).sum().cpu().reshape(1)
        return max(int(comm.sum(known)), 1)

    def prior_logits(self) -> Tensor:
        """Logits [C] of a readout that knows of a node only how often training nodes have a label.

        Log-odds for BCE, log-probabilities for cross-entropy. One of each outcome is added to the
        counts, so that a label that no node has is finite. Every rank calls it and gets the same.
        """
        labels = self._labels[self.train_rows]
        if not self.multilabel:
            labels = functional.one_hot(labels, self._classes)
        counts = torch.stack([(labels == value).sum(dim=0) for value in (0, 1)]).cpu()
        without, having = self._comm.sum(counts).double() + 1.0
        return (having / without).log() if self._bce else (having / having.sum()).log()

    def loss(self, logits: Tensor) -> Tensor:
        """This rank's share of the mean training loss; the shares of all ranks sum to it.

        Args:
            logits: [O, C].
        """
        return self.row_loss(logits[self.train_rows])

    @property
    def train_rows(self) -> Tensor:
        """Owned ids [T] of the nodes that carry loss."""
        return self._splits["train"]

    def row_loss(self, chosen: Tensor, rows: Tensor | None = None) -> Tensor:
        """As ``loss``, from the logits of ``train_rows`` alone, [T, C], or of some of them.

        Args:
            chosen: the logits.
            rows: owned ids of those nodes; None for all ``train_rows``.
        """
        labels = self._labels[self.train_rows if rows is None else rows]
        if not self._bce:
            total = functional.cross_entropy(
                chosen, labels, reduction="sum", label_smoothing=self._smoothing
            )
            return total / self._train_total
        target = labels if self.multilabel else functional.one_hot(labels, self._classes)
        smooth = target.to(chosen) * (1.0 - self._smoothing)
        smooth += self._smoothing / (2 if self.multilabel else self._classes)
        # a label that is not known takes no part
        weight = (labels >= 0).to(chosen) if self.multilabel else None
        total = functional.binary_cross_entropy_with_logits(chosen, smooth, weight, reduction="sum")
        return total / self._train_total

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities of logits [O, C]: they sum to 1 for one label a node."""
        return torch.sigmoid(logits) if self.multilabel else torch.softmax(logits, dim=1)

    def predictions(self, logits: Tensor) -> Tensor:
        """Labels that logits [R, C] stand for: classes [R], or which of several, bool [R, C]."""
        return self._nodes.predictions(logits)

    @torch.no_grad()
    def metrics(self, logits: Tensor, splits: tuple[str, ...]) -> dict[str, float]:
        """Global metric per split from logits [O, C]; see ``Measure``."""
        return self.metrics_of(lambda rows: logits[rows], splits)

    @torch.no_grad()
    def metrics_of(self, read: ReadOut, splits: tuple[str, ...]) -> dict[str, float]:
        """As ``metrics``, from logits that are made for a block of nodes at a time.

        Args:
            read: logits [R, C] of owned ids [R].
            splits: which.

        Returns:
            The metric by split, without those splits on which it is not defined.
        """
        return self._measure(read, splits)

    def scores(self, logits: Tensor) -> dict[str, float]:
        """As ``metrics``, of every split that has nodes."""
        return self.metrics(logits, self._labelled)

    @torch.no_grad()
    def usual_metrics(self, read: ReadOut, splits: tuple[str, ...]) -> dict[str, float]:
        """As ``metrics_of``, of the metric that ``auto`` takes."""
        return choose_measure("auto", self._nodes)(read, splits)
