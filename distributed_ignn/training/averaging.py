"""A running mean of the weights, validated and kept in their place.

Exponential moving average with TensorFlow's warm-up: decay_t = min(decay, (1 + t) / (10 + t)). The
bounded column sums of W are a convex set, so the mean stays inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TensorDict = dict[str, Tensor]


class WeightAverage:
    """The mean of a model's weights over the steps so far.

    Args:
        model: whose weights are averaged; each rank averages its own rows of an embedding.
        decay: in [0, 1); 0 means that there is no average and the weights themselves are used.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.steps = 0
        self.mean: TensorDict = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if self._decay == 0.0:
            return
        weights = self._model.state_dict()
        if not self.mean:
            self.mean = {name: value.clone() for name, value in weights.items()}
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        for name, value in weights.items():
            self.mean[name].lerp_(value, 1.0 - decay)
        self.steps += 1

    def load(self, mean: TensorDict, steps: int) -> None:
        """Go on from the ``mean`` and ``steps`` of an earlier run of the same model."""
        own = self._model.state_dict()
        self.mean = {name: value.to(own[name]) for name, value in mean.items() if self._decay}
        self.steps = steps if self.mean else 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model holds the mean inside, and its own weights again afterwards."""
        if not self.mean:
            yield
            return
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self.mean)
        try:
            yield
        finally:
            self._model.load_state_dict(own)
