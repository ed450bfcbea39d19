"""Where the seconds of a training epoch go: a clock that the trainer's own parts switch.

Stages: solver phase, injection b(X) forward, forward solve, loss (readout, loss and what else comes
before the backward pass), backward (readout, b(X) and the sum of the gradients), adjoint solve,
optimiser (step and projection), validation, confirmation (its solves; their readouts belong to
validation). Every second of an epoch belongs to one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.interleaving import finish_device
from distributed_ignn.models.implicit import Cell, SolvePlan
from distributed_ignn.solvers.base import Solution
from distributed_ignn.training.engines.torch import Check, Engine, TorchEngine, require_usable
from distributed_ignn.training.plans import SolvePlanner
from distributed_ignn.training.state import State
from distributed_ignn.training.trainer import Trainer

PHASE, INJECTION, FORWARD, LOSS = "solver phase", "injection", "forward solve", "loss"
BACKWARD, ADJOINT, OPTIMISER = "backward", "adjoint solve", "optimiser"
VALIDATION, CONFIRMATION = "validation", "confirmation"
STAGES = (
    PHASE,
    INJECTION,
    FORWARD,
    LOSS,
    BACKWARD,
    ADJOINT,
    OPTIMISER,
    VALIDATION,
    CONFIRMATION,
)


class StageClock:
    """Seconds by stage; exactly one stage runs at a time.

    Args:
        comm: whose device must have finished before the clock is read.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.restart()

    def restart(self) -> None:
        """Forget everything; an epoch begins with the solver phase."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        finish_device(self._comm)
        self._stage, self._since = PHASE, time.perf_counter()

    def switch(self, stage: str) -> None:
        """The present stage ends here and another one begins."""
        finish_device(self._comm)
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now


def watch(trainer: Trainer) -> StageClock:
    """A clock that the parts of ``trainer`` switch from now on; before its first epoch."""
    clock = StageClock(trainer.comm)

    def injected(module: object, arguments: tuple[Any, ...]) -> None:
        if arguments[0] is not None:  # a training step; others have no dropout to seed
            clock.switch(INJECTION)

    trainer.implicit.encoder.register_forward_pre_hook(injected)
    trainer.planner = trainer.confirmation.planner = _WatchedPlanner(trainer, clock)
    if isinstance(trainer.engine, TorchEngine):
        trainer.engine.optimizer.register_step_pre_hook(lambda *_: clock.switch(OPTIMISER))
    trainer.engine = _WatchedEngine(trainer.engine, clock)
    return clock


class _WatchedPlanner(SolvePlanner):
    def __init__(self, trainer: Trainer, clock: StageClock) -> None:
        super().__init__(trainer.config, trainer.learned, trainer.comm.device)
        self._clock = clock

    def train(self) -> SolvePlan:
        return self._watched(super().train(), FORWARD, LOSS)

    def adjoint(self) -> SolvePlan:
        return self._watched(super().adjoint(), ADJOINT, BACKWARD)

    def confirm(self, start: list[Tensor], tolerance: float, max_steps: int) -> SolvePlan:
        plan = super().confirm(start, tolerance, max_steps)
        return self._watched(plan, CONFIRMATION, VALIDATION)

    def _watched(self, plan: SolvePlan, during: str, after: str) -> SolvePlan:
        def start(cell: Cell, driver: Tensor) -> Tensor:
            self._clock.switch(during)
            return plan.start(cell, driver)

        def done(solution: Solution) -> None:
            plan.done(solution)
            self._clock.switch(after)

        return replace(plan, start=start, done=done)


class _WatchedEngine:
    def __init__(self, engine: Engine, clock: StageClock) -> None:
        self._engine, self._clock = engine, clock
        self.state: Callable[[], State] = engine.state
        self.load_state: Callable[[State], None] = engine.load_state
        self.gradients: Callable[[], dict[str, Tensor]] = engine.gradients
        self.scale_lr: Callable[[float], None] = engine.scale_lr
        self.gradient_norm: Callable[[], float] = engine.gradient_norm

    def step(self, loss_share: Tensor, check: Check = require_usable) -> None:
        self._clock.switch(BACKWARD)
        self._engine.step(loss_share, check)
        self._clock.switch(VALIDATION)
