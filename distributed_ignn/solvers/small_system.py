"""Anderson's small system in the memory of a GPU, so that nobody waits for its weights.

Where an evaluation is judged before it is entered, the host has waited for the GPU once already,
and need not again: the new row of the Gram matrix stays where it was reduced, one kernel finds the
weights, and mixing reads them there. Whether they were of use, or the step was Picard's in their
place, is told with the next judgement, which is before the history is next entered into.

Letters: M memory, m iterates held.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.solvers.anderson_ring import GROWTH_LIMIT, LARGEST_WEIGHT


class SmallSystem:
    """The Gram matrix of a solve and what follows from it.

    Args:
        kernels: ``triton_steps``.
        memory: M.
        regularization: see ``anderson_weights``.
        like: on whose device.

    Attributes:
        useless: 1 where the newest weights could not be used, else 0, float64 [1]; None where no
            step has taken weights since that was last asked.
    """

    def __init__(
        self, kernels: ModuleType, memory: int, regularization: float, like: Tensor
    ) -> None:
        self._kernels: Any = kernels
        # a beta of 0, so that the kernel's is 1 where it starts over, and 0 elsewhere
        self._rules = kernels.Rules(regularization, 0.0, GROWTH_LIMIT, LARGEST_WEIGHT)
        self._gram = like.new_zeros(memory + 1, memory + 1, dtype=torch.float64)
        self._count = self._gram.new_zeros((), dtype=torch.int64)
        self._zero = self._gram.new_zeros(())  # for residuals that the host has compared
        self.useless: Tensor | None = None

    def begin(self, square: float | Tensor) -> None:
        """Hold one iterate, whose residual has this square."""
        if isinstance(square, Tensor):
            self._gram[0, 0].copy_(square)
        else:
            self._gram[0, 0].fill_(square)
        self.forget_all_but_newest()

    def forget_all_but_newest(self) -> None:
        """Restart: the next weights see one iterate and the new one."""
        self._count.fill_(1)
        self.useless = None

    def weights(self, dots: Tensor, held: int) -> Tensor:
        """Enter the reduced dots [m, ...] of the newest iterate; the weights [m] of the step.

        Where they are of no use they are those of Picard's step, and the newest iterate is the only
        one that counts.
        """
        row = dots
        if held < self._gram.shape[0]:
            row = torch.zeros_like(self._gram[0])
            row[:held] = dots[:held]
        numbers = self._gram, row, self._count, self._zero, self._zero, self._zero
        alpha, beta, _ = self._kernels.weights(*numbers, self._rules)
        self.useless = beta.reshape(1)
        found: Tensor = alpha[:held]
        return found
