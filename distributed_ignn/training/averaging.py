"""A running mean of the weights, validated and kept in their place.

Exponential moving average with TensorFlow's warm-up: decay_t = min(decay, (1 + t) / (10 + t)). The
bounded column sums of W are a convex set, so the mean stays inside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distributed_ignn.training.state import Count, State, TensorDict, Values


class _Taken(Values):
    steps: Count = 0


class WeightAverage:
    """Keeps the mean of a model's weights over the steps so far.

    Args:
        model: whose weights are averaged; each rank averages its own rows of an embedding.
        decay: in [0, 1); 0 means that there is no average and the weights themselves are used.
        sharded: names of the parameters of which each rank has its own rows.
    """

    def __init__(self, model: nn.Module, decay: float, sharded: Collection[str] = ()) -> None:
        self._model = model
        self._decay = decay
        self._sharded = sharded
        self.steps = 0
        self.mean: TensorDict = {}

    @staticmethod
    def held_bytes(weights: int, decay: float) -> int:
        """Bytes for ``weights`` bytes: of the mean, and of themselves while that is in use."""
        return 2 * weights if decay > 0.0 else 0

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

    def state(self) -> State:
        """See ``Stateful``."""
        return State.of(self.mean, self._sharded, _Taken(steps=self.steps).model_dump())

    def load_state(self, state: State) -> None:
        """See ``Stateful``; a mean that the settings no longer ask for is dropped."""
        own, steps = self._model.state_dict(), _Taken.read(state).steps
        self.mean = {k: value.to(own[k]) for k, value in state.tensors.items() if self._decay}
        self.steps = steps if self.mean else 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model hold the mean inside, and its own weights again afterwards."""
        if not self.mean:
            yield
            return
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self.mean)
        try:
            yield
        finally:
            self._model.load_state_dict(own)
