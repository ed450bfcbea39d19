"""A solver phase that meets bad numbers leaves the learned solver as it was.

The learned solver only decides how fast an equilibrium is found. So a phase that cannot be used is
no reason to end a run: the parts of the last good phase stay, or Anderson's method where there was
none. If the model's own numbers are bad, the training step that follows finds out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch

from distributed_ignn.training.learned.phases import SolverTrainer
from distributed_ignn.training.learned_solver import LearnedSolver
from distributed_ignn.training.numbers import NumbersError

logger = logging.getLogger(__name__)


def guarded_phase(
    trainer: SolverTrainer, learned: LearnedSolver, action: Callable[[], float | None], epoch: int
) -> float | None:
    """Carry out a phase, and undo it where its numbers are bad.

    What decides is the same on every rank: losses and fits follow from reduced numbers.

    Args:
        trainer: who trains, with the optimiser's state.
        learned: what is trained.
        action: the phase.
        epoch: model steps done, for the message.

    Returns:
        The loss of the phase; None where nothing was fitted, or what was fitted is dropped.
    """
    kept = trainer.state().copy()
    try:
        loss = action()
        problem = _problem(learned, loss)
    except (NumbersError, torch.linalg.LinAlgError) as fault:
        problem = " ".join(str(fault).split())
    if problem is None:
        return loss
    trainer.load_state(kept)
    instead = "those of the last phase serve on" if learned.ready else "Anderson's method serves on"
    logger.warning(
        "epoch %d: solver training met bad numbers (%s); what it found is dropped, %s",
        epoch + 1,
        problem,
        instead,
    )
    return None


def _problem(learned: LearnedSolver, loss: float | None) -> str | None:
    """Say what is not finite, if anything."""
    if loss is not None and not math.isfinite(loss):
        return f"its loss is {loss}"
    for name, parameter in learned.named_parameters().items():
        if not bool(torch.isfinite(parameter.detach()).all()):
            return f"NaN or Inf in {name}"
    return None
