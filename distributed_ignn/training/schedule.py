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

    @property
    def trains(self) -> bool:
        """Whether any of the epochs has a solver phase before it."""
        return self.active and self.config.warmup_epochs < self.epochs

    def phase_before(self, epoch: int) -> bool:
        """Whether a solver phase comes before model epoch ``epoch`` (counted from 0)."""
        since_warmup = epoch - self.config.warmup_epochs
        return self.active and since_warmup >= 0 and since_warmup % self.config.model_steps == 0

    def solver_steps_before(self, epoch: int) -> int:
        """Network steps of the phase before ``epoch``, 0 without one."""
        if not self.phase_before(epoch):
            return 0
        first = epoch == self.config.warmup_epochs
        return self.config.warmup_solver_steps if first else self.config.solver_steps

    @property
    def total_solver_steps(self) -> int:
        """Network steps of the whole run."""
        return sum(self.solver_steps_before(epoch) for epoch in range(self.epochs))

    def solver_progress(self, steps_done: int) -> float:
        """Position in [0, 1] within all network steps; 1 at the last one."""
        return min(1.0, (steps_done + 1) / max(self.total_solver_steps, 1))
