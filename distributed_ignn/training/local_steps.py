"""Local steps between equilibria: cheap optimiser steps on rows whose neighbours are frozen.

An equilibrium costs several evaluations of the map on the whole graph; an optimiser step on the
training rows, with B_c Z* of those rows held fixed, costs neither an exchange of rows nor a sparse
product of states, but one gradient sum. So some of them follow the exact step of an epoch, and the
next equilibrium is solved from the last. They are an accelerator, not another model: they become
shorter and end before the last epochs, which are exact, and the norm of the exact gradient is
reported.

The steps go through the engine of the exact step, so Adam's moments are shared and there is nothing
more to keep. With moments of their own, the exact loss rose again when local steps faded out
(docs/experiments.md), perhaps because exact steps then follow the momentum of old gradients.

Whether steps help is measured: an exact loss above that of the epoch before says that they went too
far, and all of them, local and exact, are shorter from then on. There are not fewer of them: a few
steps of full length only add to the noise that the many had averaged out (docs/experiments.md).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import TrainConfig
from distributed_ignn.training.engines.torch import Engine
from distributed_ignn.training.local_plan import LocalPlan
from distributed_ignn.training.losses.local_loss import LocalLoss
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.state import Count, Number, State, Values

FULL_UNTIL = 0.5
"""Share of a run's epochs with local steps of full length."""

EXACT_FROM = 0.8
"""Share of a run's epochs after which there are none; between the two they fade out linearly."""

LAST_LR = 0.1
"""What the learning rate of exact steps is multiplied by once there are no local steps any more.

Local steps leave little to learn, and Adam's steps are as long as the learning rate however small
the gradient is: at the full one the last epochs walk away from what was reached.
"""

_RISE = 1.05  # of the exact loss between epochs: what is below may be other dropout masks
_SHRINK, _GROW = 0.5, 1.25
_LEAST = 2.0**-10


class _Kept(Values):
    """Counts what a resumed run must know.

    Args:
        trust: what learning rates are multiplied by.
        loss: the exact loss of the last epoch with local steps, before its steps; None without.
        shrunk: how often the exact loss has risen after local steps, in the whole run.
        taken: local steps of the whole run.
    """

    trust: Annotated[Number, Field(gt=0, le=1)] = 1.0
    loss: Number | None = None
    shrunk: Count = 0
    taken: Count = 0


class LocalSteps:
    """Takes the local steps of a training.

    Args:
        plan: how many, and how long.
        loss: what they minimise.
        engine: steps.
        config: the train section.
        comm: sums the last loss of an epoch.

    Attributes:
        plan: as given.
        kept: counts of the run so far.
        taken: steps of this epoch.
        last_loss: the local loss before the last step of this epoch; None without any.
        gradient_norm: of this epoch's exact implicit gradient, over all ranks.
    """

    taken: int
    last_loss: float | None
    gradient_norm: float | None

    def __init__(
        self,
        plan: LocalPlan,
        loss: LocalLoss,
        engine: Engine,
        config: TrainConfig,
        comm: Communicator,
    ) -> None:
        self.plan = plan
        self._loss, self._engine, self._config, self._comm = loss, engine, config, comm
        self.kept = _Kept()
        self.taken, self.last_loss, self.gradient_norm = 0, None, None

    def share(self, epoch: int, stale: int) -> float:
        """Return which share of their length the schedule leaves local steps; 0 ends them.

        Args:
            epoch: counted from 0.
            stale: validations without a better one; where patience ends the run, it counts too.
        """
        done = (epoch + 1) / self._config.epochs
        fade = (EXACT_FROM - done) / (EXACT_FROM - FULL_UNTIL)
        if self._config.patience:
            # none before the validation that may end the run, unless every one may
            fade = min(fade, 1.0 - stale / max(1, self._config.patience - 1))
        return min(1.0, max(0.0, fade))

    def exact_lr_scale(self, epoch: int, stale: int) -> float:
        """Return what the learning rate of the exact step is multiplied by; see ``LAST_LR``.

        It falls as local steps fade out, and where steps have gone too far.
        """
        return max(LAST_LR, self.share(epoch, stale)) * self.kept.trust

    def listen(self, epoch: int, stale: int) -> bool:
        """Begin an epoch; say whether the loss is to freeze what its exact solve finds."""
        self._loss.forget()
        self.taken, self.last_loss, self.gradient_norm = 0, None, None
        return self.share(epoch, stale) > 0.0

    def freeze(self, products: tuple[Tensor, ...]) -> None:
        """See ``LocalLoss``."""
        self._loss.freeze(products)

    def take(self, epoch: int, stale: int, exact_loss: float, lr_scale: float) -> None:
        """Take this epoch's steps; every rank calls it after the exact step.

        Args:
            epoch, stale: see ``share``.
            exact_loss: of all ranks, at this epoch's equilibrium.
            lr_scale: what learning rates are multiplied by.
        """
        self.gradient_norm = self._engine.gradient_norm()
        share = self.share(epoch, stale)
        self._judge(exact_loss, share > 0.0)
        if share == 0.0:
            return
        length = share * self.kept.trust
        self._engine.scale_lr(lr_scale * length * self.plan.lr / self._config.lr)
        self._loss.begin(epoch)
        try:
            self._walk(epoch)
        except NumbersError:
            self._shrink()
        self._loss.end()
        self.kept.taken += self.taken

    def _walk(self, epoch: int) -> None:
        """Take an epoch's steps.

        Raises:
            NumbersError: gradients are not finite, on every rank; the steps before are taken.
        """
        for turn in range(self.plan.steps):
            share = self._loss.share(epoch, turn)
            self._engine.step(share)
            self.taken += 1
        self.last_loss = float(self._comm.sum(share.detach().double().cpu().reshape(1)))

    def _judge(self, exact_loss: float, goes_on: bool) -> None:
        """Trust steps less where the exact loss has risen since those of the last epoch."""
        kept = self.kept
        if kept.loss is not None and exact_loss > kept.loss * _RISE:
            self._shrink()
        elif kept.loss is not None:
            kept.trust = min(1.0, kept.trust * _GROW)
        kept.loss = exact_loss if goes_on else None

    def _shrink(self) -> None:
        self.kept.trust = max(_LEAST, self.kept.trust * _SHRINK)
        self.kept.shrunk += 1

    def figures(self) -> dict[str, Any]:
        """Say what this epoch's steps came to, in the words of its record."""
        return {
            "local_steps": self.taken,
            "local_loss": self.last_loss,
            "local_shrunk": self.kept.shrunk,
            "gradient_norm": self.gradient_norm,
        }

    def state(self) -> State:
        """See ``Stateful``; moments are the engine's."""
        return State(self.kept.model_dump())

    def load_state(self, state: State) -> None:
        """See ``Stateful``; a run that had no local steps before begins them anew."""
        self.kept = _Kept.read(state)
