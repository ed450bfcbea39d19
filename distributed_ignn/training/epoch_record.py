"""EpochRecord: what an epoch came to, for whoever writes, shows or reports it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_OF_SOLVES = (
    *(f"evaluations_{what}" for what in ("forward", "adjoint", "validation", "confirmation")),
    *("residual", "residual_adjoint"),
    *("converged", "converged_forward", "converged_adjoint", "confirmed", "tolerance"),
    *("solver_steps", "solver_loss", "solver_seconds"),
)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Holds one line of metrics.jsonl.

    Args:
        epoch: model steps done, counted from 1.
        loss: mean training loss before the step; NaN (null in the file) if it was skipped.
        train_metric, val_metric: after the step; None in epochs without validation.
        seconds: of this epoch, solver phase included.
        evaluations_forward, evaluations_adjoint: map evaluations of the training step.
        evaluations_validation: map evaluations of the validation solve.
        evaluations_confirmation: of the solves that confirm its metric before it is chosen.
        residual: relative residual of the last forward solve of the epoch.
        residual_adjoint: of the backward solve.
        bytes_sent: by all ranks, halo exchanges and reductions.
        exchanges: halo exchanges.
        solver_steps, solver_loss: solver training in this epoch.
        solver_seconds: spent on it.
        converged: whether the validation solve reached its tolerance; None without one.
        confirmed: whether ``val_metric`` is known to be that of the equilibrium, within
            ``confirmation.SLACK``; False also where it has not been looked into, because the epoch
            would not have been chosen or waits for that. None without validation.
        best_epoch, best_val: the epoch chosen so far and its metric; None before the first.
        converged_forward, converged_adjoint: the same of the training step's solves.
        skipped: whether the step was left out because its numbers were bad; there is no loss then.
        rollbacks: of the run so far, because numbers were bad.
        local_steps: taken after the exact step; None where ``train.local_steps`` is off.
        local_loss: before the last of them, on the rows that they read; None without any.
        local_shrunk: how often, in the run so far, the exact loss has risen after local steps.
        gradient_norm: of the exact implicit gradient, over all ranks.
        tolerance: relative residual at which the solves of training and validation could stop, if
            that was looser than their own tolerance.
        solves: whether the model solves for its states (``model.kind``).
    """

    epoch: int
    loss: float
    train_metric: float | None
    val_metric: float | None
    seconds: float
    evaluations_forward: int
    evaluations_adjoint: int
    evaluations_validation: int
    residual: float
    residual_adjoint: float
    bytes_sent: int
    exchanges: int
    solver_steps: int
    solver_loss: float | None
    solver_seconds: float
    evaluations_confirmation: int = 0
    converged: bool | None = None
    confirmed: bool | None = None
    best_epoch: int | None = None
    best_val: float | None = None
    converged_forward: bool | None = None
    converged_adjoint: bool | None = None
    skipped: bool = False
    rollbacks: int = 0
    local_steps: int | None = None
    local_loss: float | None = None
    local_shrunk: int | None = None
    gradient_norm: float | None = None
    tolerance: float | None = None
    solves: bool = True

    def values(self) -> dict[str, Any]:
        """Return the figures by name; those of solves only where there are any."""
        left_out = {"solves"} if self.solves else {"solves", *_OF_SOLVES}
        return {k: v for k, v in asdict(self).items() if k not in left_out}
