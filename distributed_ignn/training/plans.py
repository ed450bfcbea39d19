"""How each solve of a run is done: method, starting point, tolerance, and what is kept of it.

Warm start: full-graph training visits the same nodes every epoch, so the last Z* and v are good
starting points. Kept per rank: the training solve's Z, the evaluation solve's Z, and the adjoint's
v. If nothing in b(X) is dropped, the first two solve the same map, so they share one state: the
validation after a step leaves the next step's forward solve already done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.config import AdjointConfig, RunConfig, SolveConfig
from distributed_ignn.models.implicit import Cell, SolvePlan
from distributed_ignn.models.maps import AdjointCell, EquilibriumCell
from distributed_ignn.solvers.base import AnySizedSolver, AnySolver, Outcome, Solution
from distributed_ignn.solvers.captured import Captures
from distributed_ignn.solvers.methods import METHODS, Method, SolverSettings
from distributed_ignn.training.learned_solver import LearnedSolver, storage_format
from distributed_ignn.training.offload import WaitingStates, expect, room_for, settle
from distributed_ignn.training.state import State

TRAIN, EVALUATE, ADJOINT, CONFIRM = "train", "evaluate", "adjoint", "confirm"


@dataclass(slots=True)
class SolveLog:
    """Holds the records of the solves since the last ``clear``, by purpose.

    ``longest`` is the number of evaluations of the longest solve; it is never cleared.
    ``diverged`` holds the first solve for a purpose whose numbers were not finite.
    """

    _steps: dict[str, int] = field(default_factory=dict)
    _residuals: dict[str, float] = field(default_factory=dict)
    _converged: dict[str, bool] = field(default_factory=dict)
    diverged: dict[str, Solution] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)

    def clear(self) -> None:
        for kept in (self._steps, self._residuals, self._converged, self.diverged):
            kept.clear()

    def add(self, purpose: str, solution: Solution) -> None:
        self._steps[purpose] = self.steps(purpose) + solution.steps
        self._residuals[purpose] = solution.residual
        self._converged[purpose] = self._converged.get(purpose, True) and solution.converged
        if solution.outcome is Outcome.DIVERGED:
            self.diverged.setdefault(purpose, solution)
        self.longest[purpose] = max(self.longest.get(purpose, 0), solution.steps)

    def converged(self, purpose: str) -> bool | None:
        """Say whether all solves for ``purpose`` reached their tolerance; None without one."""
        return self._converged.get(purpose)

    @property
    def all_converged(self) -> bool:
        """Whether no solve of training or validation stopped short of its tolerance."""
        return all(self._converged.get(purpose, True) for purpose in (TRAIN, ADJOINT, EVALUATE))

    def steps(self, purpose: str) -> int:
        """Count the evaluations of the map in all solves for ``purpose``."""
        return self._steps.get(purpose, 0)

    def residual(self, purpose: str) -> float:
        """Return the relative residual of the last solve for ``purpose``; NaN if there was none."""
        return self._residuals.get(purpose, float("nan"))

    def figures(self, confirmed: bool | None) -> dict[str, Any]:
        """Say how the solves of an epoch went, in the words of its record.

        Args:
            confirmed: whether the validation solve's metric is known to be the equilibrium's; None
                in an epoch without validation.
        """
        last = TRAIN if confirmed is None else EVALUATE
        return {
            "evaluations_forward": self.steps(TRAIN),
            "evaluations_adjoint": self.steps(ADJOINT),
            "evaluations_validation": self.steps(EVALUATE),
            "evaluations_confirmation": self.steps(CONFIRM),
            "residual": self.residual(last),
            "residual_adjoint": self.residual(ADJOINT),
            "converged": self.converged(EVALUATE),
            "confirmed": confirmed,
            "converged_forward": self.converged(TRAIN),
            "converged_adjoint": self.converged(ADJOINT),
        }


class SolvePlanner:
    """Builds the plan of each solve and keeps the warm-start states.

    Args:
        config: sections ``forward`` and ``adjoint`` are read.
        learned: the learned solver, or None.
        device: where the states that it keeps belong.
        num_nodes: of the whole graph; 0 where it is small.
        captures: how solves of the sections ``forward`` and ``adjoint`` go in groups, if they do.
    """

    def __init__(
        self,
        config: RunConfig,
        learned: LearnedSolver | None,
        device: torch.device,
        num_nodes: int = 0,
        captures: Mapping[str, Captures] | None = None,
    ) -> None:
        self._config = config
        self._captures = captures or {}
        self._learned = learned
        self._device = device
        self._num_nodes = num_nodes
        self._fixed_injection = config.model.fixed_injection
        self._fixed_backward = self._fixed_injection and config.model.dropout == 0.0
        same_map = config.model.fixed_injection and config.train.ema == 0.0
        self._forward_state = EVALUATE if same_map else TRAIN
        room = room_for(config.train.offload, device)
        self.states: MutableMapping[str, Tensor] = {} if room is None else WaitingStates(room)
        self.log = SolveLog()
        #: Relative residual at which solves of training and validation may stop, if that is looser.
        self.loose = 0.0
        #: Told B_c Z* of a training step's solves, where anybody asks.
        self.products: Callable[[tuple[Tensor, ...]], None] | None = None

    def train(self) -> SolvePlan:
        """Plan the forward solve of a training step."""
        plan = self._plan(TRAIN, self._config.forward, self.first_guess, self._forward_state)
        return replace(plan, products=self.products)

    def evaluate(self, tolerance: float | None = None, max_steps: int | None = None) -> SolvePlan:
        """Plan the forward solve without dropout."""
        section = self._config.forward
        plan = self._plan(EVALUATE, section, self.first_guess, EVALUATE, tolerance)
        return plan if max_steps is None else replace(plan, max_steps=max_steps)

    def confirm(self, start: list[Tensor], tolerance: float, max_steps: int) -> SolvePlan:
        """Plan a forward solve that begins at nothing kept, and of which nothing is kept.

        Args:
            start: where it goes on from, one [O, D], which is taken out, so that the solve alone
                holds it; empty for the first guess.
            tolerance, max_steps: see ``solve``.
        """

        def first(cell: Cell, driver: Tensor) -> Tensor:
            settle(self.states)
            return start.pop() if start else self.first_guess(cell, driver)

        def done(solution: Solution) -> None:
            self.log.add(CONFIRM, solution)

        captures = self._captures.get("forward")
        method = self.method(CONFIRM, tolerance)
        return SolvePlan(method, first, tolerance, max_steps, done, captures=captures)

    def adjoint(self) -> SolvePlan:
        """Plan the backward solve; it starts from m * g, or from what is learned of it."""
        return self._plan(ADJOINT, self._config.adjoint, self._first_adjoint, ADJOINT)

    def _plan(
        self,
        purpose: str,
        config: SolveConfig | AdjointConfig,
        first_guess: Callable[[Cell, Tensor], Tensor],
        state: str,
        tolerance: float | None = None,
    ) -> SolvePlan:
        if purpose != ADJOINT and self._starts_warm(purpose, config):
            expect(self.states, state)  # b(X) is computed first

        def start(cell: Cell, driver: Tensor) -> Tensor:
            if purpose != ADJOINT:  # whose forward state is held by the backward pass anyway
                settle(self.states)
            # taken out: it need not stay in memory once the solve has moved on
            if self._starts_warm(purpose, config) and state in self.states:
                return self.states.pop(state)
            return first_guess(cell, driver)

        def done(solution: Solution) -> None:
            self.log.add(purpose, solution)
            if solution.outcome is not Outcome.DIVERGED and self._starts_warm(purpose, config):
                self.states[state] = solution.image
            if purpose == TRAIN and self._starts_warm(ADJOINT, self._config.adjoint):
                expect(self.states, ADJOINT)

        goal = self.tolerance(config) if tolerance is None else tolerance
        captures = self._captures.get("adjoint" if purpose == ADJOINT else "forward")
        method = self.method(purpose, goal)
        return SolvePlan(method, start, goal, config.max_steps, done, captures=captures)

    def tolerance(self, config: SolveConfig | AdjointConfig) -> float:
        """Return the relative residual at which the solves of an epoch stop."""
        return max(self.loose, config.tolerance)

    def state(self) -> State:
        """See ``Stateful``: where the next solves start."""
        return State(rows=dict(self.states))

    def load_state(self, state: State) -> None:
        """See ``Stateful``; training's own state is left where it shares that of validation."""
        self.states.clear()
        known = {EVALUATE, ADJOINT, self._forward_state}
        self.states.update(
            {name: rows.to(self._device) for name, rows in state.rows.items() if name in known}
        )

    def forget(self) -> None:
        """Let the next solves start anew, as those of a model that nobody has solved yet."""
        self.states.clear()

    def forget_unused(self) -> None:
        """Let go of states that no solve starts from once the learned solver is ready."""
        if not self._starts_warm(ADJOINT, self._config.adjoint, ready=True):
            self.states.pop(ADJOINT, None)
        if not self._starts_warm(TRAIN, self._config.forward, ready=True):
            self.states.pop(TRAIN, None)

    def _starts_warm(
        self, purpose: str, config: SolveConfig | AdjointConfig, ready: bool = False
    ) -> bool:
        """Say whether the last solution is the best start there is.

        Not where dropout makes a map of its own every time (a training solve with dropout in b(X),
        a backward solve with any) and something was learned that starts closer: the initialiser,
        or the estimator's first step. ``ready``: as if the learned solver were.
        """
        learned = self._learned
        if not config.warm_start or learned is None or not (ready or learned.ready):
            return config.warm_start
        if purpose == TRAIN:
            return self._fixed_injection or learned.guess is None
        return purpose != ADJOINT or self._fixed_backward or learned.adjoint is None

    @torch.no_grad()
    def first_guess(self, cell: Cell, injection: Tensor) -> Tensor:
        """Return h(b) once the initialiser is trained, and f(0) = phi(b) before that."""
        if not isinstance(cell, EquilibriumCell):
            raise TypeError("the initialiser serves the forward solve")
        learned = self._learned
        if learned is None or not learned.ready:
            return cell.form.activate(injection)
        return learned.start(cell, injection)

    @torch.no_grad()
    def _first_adjoint(self, cell: Cell, incoming: Tensor) -> Tensor:
        """Return the estimate at zero once it is trained, and m * g before that."""
        learned = self._learned
        if learned is None or not learned.ready or not isinstance(cell, AdjointCell):
            return incoming
        return learned.adjoint_start(cell, incoming)

    def method(self, purpose: str = EVALUATE, tolerance: float = 0.0) -> AnySolver:
        """Make the solver of a solve; another stands in for a learned one until that is ready.

        Args:
            purpose: of the solve.
            tolerance: that a learned solver is told; 0 for none.
        """
        learned = self._learned
        trained: Callable[[], AnySizedSolver] | None = None
        if learned is not None and learned.ready:
            if purpose != ADJOINT:
                trained = partial(learned.solver, tolerance)
            elif learned.adjoint is not None:
                trained = partial(learned.adjoint_solver, tolerance)
        method, settings = chosen_method(self._config, adjoint=purpose == ADJOINT)
        return method.solver(replace(settings, trained=trained, num_nodes=self._num_nodes))


def chosen_method(config: RunConfig, *, adjoint: bool) -> tuple[Method, SolverSettings]:
    """The method that a run names for its forward or backward solves, and its settings."""
    section = config.adjoint if adjoint else config.forward
    settings = SolverSettings(
        section.memory,
        section.beta,
        section.regularization,
        storage_format(section.history_dtype),
    )
    return METHODS[config.adjoint_method if adjoint else config.forward.method], settings
