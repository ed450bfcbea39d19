"""StepChecks: whether the numbers of one training step are good, at every point where it counts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.training.engines.torch import Engine
from distributed_ignn.training.numbers import NumberGuard
from distributed_ignn.training.plans import ADJOINT, SolvePlanner
from distributed_ignn.training.state import TensorDict
from distributed_ignn.training.suspects import SOLVES, step_tensors


class StepChecks:
    """Asks the guard about one step, and tells it where bad numbers may come from.

    Every rank makes it and calls it alike.

    Args:
        guard: judges the numbers.
        model: what is trained.
        planner: knows how the solves went.
        engine: holds the gradients.
        step: counted from 0.

    Attributes:
        made: what the step has made so far.
    """

    def __init__(
        self,
        guard: NumberGuard,
        model: NodeModel,
        planner: SolvePlanner,
        engine: Engine,
        step: int,
    ) -> None:
        self._guard = guard
        self._model = model
        self._planner = planner
        self._engine = engine
        self._step = step
        self._epoch = step + 1
        self.made: TensorDict = {}

    def solve(self, purpose: str) -> None:
        """Raise NumbersError where a solve for ``purpose`` has diverged."""
        diverged = self._planner.log.diverged.get(purpose)
        self._guard.check_solve(SOLVES[purpose], self._epoch, diverged, self._suspects)

    def loss(self, loss: float) -> None:
        """Raise NumbersError where the loss of all ranks is bad."""
        self._guard.check_loss(loss, self._epoch, self._suspects)

    def gradients(self, usable: bool) -> None:
        """Raise NumbersError before the update where backward solve or gradients are bad."""
        self.solve(ADJOINT)
        self._guard.check_gradients(usable, self._epoch, self._suspects)

    def weights(self) -> None:
        """Raise NumbersError where the update has left bad weights."""
        sharded = self._model.sharded_names()
        replicated = [(k, p) for k, p in self._model.named_parameters() if k not in sharded]
        self._guard.check_weights(self._epoch, replicated)

    def _suspects(self) -> Sequence[tuple[str, Tensor]]:
        """Name what bad numbers may come from, causes first; every rank calls it."""
        return step_tensors(
            self._model,
            self._planner,
            self._step if self._model.training else None,
            self.made,
            self._engine.gradients(),
        )
