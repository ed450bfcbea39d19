"""The alternating schedule: when the solver is trained, and how far its training has come.

Warm-up (model steps with Anderson, then solver steps), then T1 model steps with the solver frozen,
T2 solver steps with the model frozen, and so on. A pure function of the epoch, so that a resumed
run continues where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

from distributed_ignn.config import ScheduleConfig


@dataclass(frozen=True, slots=True)
class Schedule:
    """Positions in the schedule.

    Args:
        config: the schedule section.
        epochs: model steps of the whole run.
        active: whether there is a learned solver to train.
    """

    config: ScheduleConfig
    epochs: int
    active: bool

    def solver_steps_before(self, epoch: int) -> int:
        """Solver steps to take before model epoch ``epoch`` (counted from 0)."""
        since_warmup = epoch - self.config.warmup_epochs
        if not self.active or since_warmup < 0:
            return 0
        if since_warmup == 0:
            return self.config.warmup_solver_steps
        return self.config.solver_steps if since_warmup % self.config.model_steps == 0 else 0

    @property
    def total_solver_steps(self) -> int:
        """Solver steps of the whole run."""
        return sum(self.solver_steps_before(epoch) for epoch in range(self.epochs))

    def solver_progress(self, steps_done: int) -> float:
        """Position in [0, 1] within all solver steps; 1 at the last one."""
        return min(1.0, (steps_done + 1) / max(self.total_solver_steps, 1))
