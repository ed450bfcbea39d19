"""Loss and metric of a node-classification task, as global numbers on every rank.

Letters: O owned nodes, C classes, T training nodes of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.shard import GraphShard

_BLOCK_ROWS = 1 << 14  # nodes that are read out at a time

Loss = Literal["auto", "cross_entropy", "bce"]


class Objective:
    """What is minimised and what is reported.

    Multi-class: cross-entropy, or binary cross-entropy on one-hot labels as the IGNN-Solver paper
    prints it; metric accuracy. Multi-label: binary cross-entropy; metric micro-F1.

    Args:
        shard: this rank's labels and splits.
        comm: sums counts over ranks.
        loss: ``auto`` takes cross-entropy for one label a node and bce for several.
        smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2016,
            section 7; for several labels a node, over 0 and 1), in [0, 1).
    """

    def __init__(
        self, shard: GraphShard, comm: Communicator, loss: Loss, smoothing: float = 0.0
    ) -> None:
        device = comm.device
        self._comm = comm
        self.multilabel = shard.task == "multilabel"
        self._bce = loss == "bce" or self.multilabel
        self._labels = shard.labels.to(device)
        self._classes = shard.num_classes
        self._smoothing = smoothing
        self.metric_name = "micro_f1" if self.multilabel else "accuracy"
        self._splits = {
            "train": shard.train_index.to(device),
            "val": shard.val_index.to(device),
            "test": shard.test_index.to(device),
        }
        self._train_total = max(shard.split_sizes[0], 1)

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

    def row_loss(self, chosen: Tensor) -> Tensor:
        """As ``loss``, from the logits [T, C] of ``train_rows`` alone."""
        labels = self._labels[self.train_rows]
        if not self._bce:
            total = functional.cross_entropy(
                chosen, labels, reduction="sum", label_smoothing=self._smoothing
            )
            return total / self._train_total
        target = labels if self.multilabel else functional.one_hot(labels, self._classes)
        smooth = target.to(chosen) * (1.0 - self._smoothing)
        smooth += self._smoothing / (2 if self.multilabel else self._classes)
        total = functional.binary_cross_entropy_with_logits(chosen, smooth, reduction="sum")
        return total / (self._train_total * self._classes)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities of logits [O, C]: they sum to 1 for one label a node."""
        return torch.sigmoid(logits) if self.multilabel else torch.softmax(logits, dim=1)

    def predictions(self, logits: Tensor) -> Tensor:
        """Labels that logits [R, C] stand for: classes [R], or which of several, bool [R, C]."""
        return logits > 0 if self.multilabel else logits.argmax(dim=1)

    @torch.no_grad()
    def metrics(self, logits: Tensor, splits: tuple[str, ...]) -> dict[str, float]:
        """Global metric per split from logits [O, C]; one reduction for all of them."""
        return self.metrics_of(lambda rows: logits[rows], splits)

    @torch.no_grad()
    def metrics_of(
        self, read: Callable[[Tensor], Tensor], splits: tuple[str, ...]
    ) -> dict[str, float]:
        """As ``metrics``, from logits that are made for a block of nodes at a time.

        Args:
            read: logits [R, C] of owned ids [R].
            splits: which.
        """
        counts = torch.stack([self._count(read, self._splits[name]) for name in splits])
        table = self._comm.sum(counts.double()).tolist()
        return {name: row[0] / max(row[1], 1.0) for name, row in zip(splits, table, strict=True)}

    def _count(self, read: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
        total = torch.zeros(2, dtype=torch.int64)
        for rows in index.split(_BLOCK_ROWS):
            total += self._counts(read(rows), rows)
        return total

    def _counts(self, chosen: Tensor, index: Tensor) -> Tensor:
        """Numerator and denominator of the metric."""
        labels, predicted = self._labels[index], self.predictions(chosen)
        if not self.multilabel:
            hits = (predicted == labels).sum()
            return torch.stack([hits, hits.new_tensor(index.numel())]).cpu()
        actual = labels > 0.5
        # micro-F1 = 2 TP / (2 TP + FP + FN)
        twice_hits = 2 * (predicted & actual).sum()
        return torch.stack([twice_hits, predicted.sum() + actual.sum()]).cpu()
