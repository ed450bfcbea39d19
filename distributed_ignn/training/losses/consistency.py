"""Consistency of the predictions under dropout, on every node: labels are few, nodes are not.

GRAND (Feng et al. 2020, section 3.2): S passes with different masks predict p_1..p_S; their mean is
sharpened to p' = p^(1/T) / sum p^(1/T), which is held fixed, and every pass is drawn towards it:
weight * 1/S sum_s 1/n sum_i ||p'_i - p_s,i||^2. Letters: O owned nodes, n nodes, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distributed_ignn.config import TrainConfig


class Consistency:
    """The masks of a training step, and the distance between what they lead to.

    Args:
        config: the ``consistency`` settings are read.
        num_nodes: n of the whole graph.
        multilabel: whether the classes of a node are independent of each other.
    """

    def __init__(self, config: TrainConfig, num_nodes: int, multilabel: bool) -> None:
        self._weight = float(config.consistency)
        self._samples = config.consistency_samples if self._weight > 0.0 else 1
        self._temperature = config.consistency_temperature
        self._warmup = config.consistency_warmup
        self._num_nodes = num_nodes
        self._multilabel = multilabel

    @property
    def active(self) -> bool:
        """Whether the loss has this term at all."""
        return self._weight > 0.0

    def draws(self, epoch: int) -> list[int]:
        """The number of each mask of ``epoch`` (counted from 0), never the same one twice."""
        return [epoch * self._samples + sample for sample in range(self._samples)]

    def weight(self, epoch: int) -> float:
        """The weight in ``epoch``: it rises linearly during the warm-up."""
        return self._weight * min(1.0, (epoch + 1) / (self._warmup + 1))

    def loss(
        self, probabilities: Sequence[Tensor], epoch: int, weight: Tensor | None = None
    ) -> Tensor:
        """This rank's share of the loss; the shares of all ranks sum to it.

        Args:
            probabilities: [O, C] of each mask, or [R, C] of a sample of the nodes.
            epoch: counted from 0.
            weight: for how many nodes each row stands, [R]; 1 by default.
        """
        if self._weight == 0.0:
            return probabilities[0].new_zeros(())
        stacked = torch.stack(list(probabilities))
        target = self._sharpen(stacked.detach().mean(dim=0))
        squares = (stacked - target).square()
        distance = squares.sum() if weight is None else squares.sum(dim=(0, 2)) @ weight
        return distance * (self.weight(epoch) / (len(stacked) * self._num_nodes))

    def _sharpen(self, mean: Tensor) -> Tensor:
        """p^(1/T) normalised, over the classes or over yes and no of each class, [O, C]."""
        power = mean.pow(1.0 / self._temperature)
        if self._multilabel:
            return power / (power + (1.0 - mean).pow(1.0 / self._temperature))
        return power / power.sum(dim=1, keepdim=True)
