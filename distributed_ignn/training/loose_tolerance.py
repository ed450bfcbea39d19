"""LooseTolerance: how far the solves of an epoch need to go, by how fast the loss falls.

While a step changes the loss by much, a gradient with an error of some per cent is as good as the
exact one; where the loss hardly moves any more, it is not. So the solves of a training step and of
its validation stop at a relative residual of ``_SHARE`` times the smoothed relative fall of the
loss per epoch, between their own tolerance and ``train.loose_tolerance``, and at their own in the
last epochs of a run. What chooses an epoch is confirmed by tight solves in any case
(``confirmation.py``).

Only the loss of all ranks is read, so that every rank solves alike.
"""

from __future__ import annotations

import math

from distributed_ignn.config import TrainConfig
from distributed_ignn.training.local_plan import LEAST_NODES
from distributed_ignn.training.state import Number, State, Values

TIGHT_FROM = 0.8
"""Share of a run's epochs after which solves go to their own tolerance."""

AUTOMATIC = 1e-2
"""The loosest tolerance, where the rule chooses; only graphs on which an evaluation costs have it.

On small ones, such as chains, labels may hang on the last digits of the state.
"""

_SHARE = 0.1
_SMOOTHING = 0.5


class _Seen(Values):
    """Counts what a resumed run must know.

    Args:
        loss: of the last epoch; None before the first.
        fall: smoothed fall of its logarithm per epoch; before the first, of what is to be expected.
    """

    loss: Number | None = None
    fall: Number = 1.0


class LooseTolerance:
    """Follows the loss of a training.

    Args:
        config: the train section.
        nodes: of the whole graph.

    Attributes:
        loosest: what no solve's tolerance is loosened beyond; 0 where none is loosened.
    """

    def __init__(self, config: TrainConfig, nodes: int) -> None:
        asked = config.loose_tolerance
        automatic = AUTOMATIC if nodes >= LEAST_NODES else 0.0
        self.loosest = automatic if asked == "auto" else asked
        self._epochs = config.epochs
        self._seen = _Seen()

    def at(self, epoch: int) -> float:
        """Return the relative residual at which solves of ``epoch``, counted from 0, may stop.

        Their own tolerance counts where it is larger.
        """
        if epoch + 1 > TIGHT_FROM * self._epochs:
            return 0.0
        return min(self.loosest, max(0.0, _SHARE * self._seen.fall))

    def note(self, loss: float) -> None:
        """Take note of the loss of all ranks before a step."""
        seen = self._seen
        if seen.loss is not None and min(loss, seen.loss) > 0.0:
            fall = math.log(seen.loss / loss)
            seen.fall += _SMOOTHING * (fall - seen.fall)
        seen.loss = loss

    def state(self) -> State:
        """See ``Stateful``."""
        return State(self._seen.model_dump())

    def load_state(self, state: State) -> None:
        """See ``Stateful``; a run that knew nothing of it begins to follow the loss."""
        self._seen = _Seen.read(state)
