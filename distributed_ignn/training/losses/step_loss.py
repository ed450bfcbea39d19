"""StepLoss: the loss of a training step, from the solve to this rank's share of one number.

Letters: O owned nodes, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor

from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.training.losses.consistency import Consistency
from distributed_ignn.training.losses.objective import Objective
from distributed_ignn.training.plans import SolvePlanner

Penalty = Callable[[Tensor, int], Tensor | float]
"""This rank's share of what is added to the loss, from a state [O, D] and its step."""


class StepLoss:
    """Computes what a step minimises; the shares of all ranks sum to it.

    Args:
        model: whose weights are trained.
        objective: the task's loss.
        penalty: on the map, or whatever else the kind of model asks for.
        consistency: how far predictions may differ under dropout.
    """

    def __init__(
        self,
        model: NodeModel,
        objective: Objective,
        penalty: Penalty,
        consistency: Consistency,
    ) -> None:
        self._model = model
        self._objective = objective
        self._penalty = penalty
        self._consistency = consistency

    def share(self, step: int, planner: SolvePlanner, made: MutableMapping[str, Tensor]) -> Tensor:
        """Return this rank's share of the loss of a step, the mean over its dropout masks.

        Args:
            step: seeds the masks.
            planner: says how the solves are done.
            made: gets the tensors that the step makes, for the search after bad numbers.
        """
        if not self._consistency.active:
            return self._of_training_rows(step, planner, made)
        losses, probabilities = [], []
        for draw in self._consistency.draws(step):
            state = self._model.state(draw, planner)
            logits = self._model.read_out(state, draw)
            made.update({self._model.state_name: state.detach(), "logits": logits.detach()})
            losses.append(self._objective.loss(logits) + self._penalty(state, draw))
            probabilities.append(self._objective.probabilities(logits))
        return torch.stack(losses).mean() + self._consistency.loss(probabilities, step)

    def _of_training_rows(
        self, step: int, planner: SolvePlanner, made: MutableMapping[str, Tensor]
    ) -> Tensor:
        """Return the loss where only training nodes enter: no other row is read out."""
        state = self._model.state(step, planner)
        logits = self._model.read_out(state, step, self._objective.train_rows)
        made.update({self._model.state_name: state.detach(), "logits": logits.detach()})
        return self._objective.row_loss(logits) + self._penalty(state, step)

    def incoming(self, state: Tensor, step: int) -> Tensor:
        """Return g = dL/dZ* [O, D] of the task's loss at a state, the backward solve's right side.

        Args:
            state: [O, D].
            step: seeds the dropout.
        """
        point = state.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._model.read_out(point, step, self._objective.train_rows)
            self._objective.row_loss(logits).backward(inputs=[point])
        if point.grad is None:
            raise RuntimeError("the loss does not depend on the state")
        return point.grad
