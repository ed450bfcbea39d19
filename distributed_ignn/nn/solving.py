"""How the layers solve: one method for each direction, the record of a call, and what failure does.

A solve that ends above its tolerance is never silent: it is in the record, and the layer warns,
raises or, where it was asked to, goes on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from distributed_ignn.config import SolveConfig
from distributed_ignn.config.check import validate_run
from distributed_ignn.config.dotted import names_of
from distributed_ignn.config.idle import refuse_idle
from distributed_ignn.config.sections import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.solvers.base import AnySolver, FixedPointMap, Outcome, Solution
from distributed_ignn.solvers.methods import METHODS, SolverSettings, build_solver
from distributed_ignn.solvers.solve import solve

Failure = Literal["warn", "raise", "ignore"]
"""What a layer does about a solve that ends above its tolerance."""

_USUAL = SolverSettings()


class NotConvergedWarning(UserWarning):
    """A fixed point was not found to its tolerance; what was found last is used."""


def refuse_float16(dtype: torch.dtype, what: str, way_out: str) -> None:
    """Refuse a number format in which no norm of a residual can be had.

    The square of 256 is infinite in it, and that of 1e-4 is 0: a solve would end at its start, or
    diverge.

    Raises:
        UserError: the format is float16.
    """
    if dtype is torch.float16:
        raise UserError(
            f"{what} is float16, in which the squares that tell how far a solve has come overflow "
            f"and vanish; {way_out}"
        )


@dataclass(frozen=True, slots=True)
class Solve:
    """The record of one solve.

    Args:
        evaluations: of the map (forward), or vector-Jacobian products (backward).
        residual: ||f(z) - z|| / ||f(z)|| of the point that is used.
        outcome: how it ended; the text says why.
    """

    evaluations: int
    residual: float
    outcome: Outcome

    @property
    def converged(self) -> bool:
        """Whether the residual is at or below the tolerance."""
        return self.outcome is Outcome.CONVERGED


@dataclass(slots=True)
class SolveInfo:
    """The record of one call of a layer; the backward solve enters it when it happens.

    Args:
        forward: None before the solve.
        adjoint: None until the backward pass has run.
    """

    forward: Solve | None = None
    adjoint: Solve | None = None

    @property
    def evaluations(self) -> int:
        """Of the map, in the forward solve."""
        return 0 if self.forward is None else self.forward.evaluations

    @property
    def adjoint_evaluations(self) -> int:
        """Vector-Jacobian products of the backward solve; 0 until it has run."""
        return 0 if self.adjoint is None else self.adjoint.evaluations

    @property
    def residual(self) -> float:
        """Relative residual of the forward solve; NaN before it."""
        return math.nan if self.forward is None else self.forward.residual

    @property
    def converged(self) -> bool:
        """Whether every solve of this call so far reached its tolerance."""
        return all(each.converged for each in (self.forward, self.adjoint) if each is not None)


def local_sum(sums: Tensor) -> Tensor:
    """The sum over the one process that there is."""
    return sums


def checked(values: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Settings by section, under the rules that hold on the command line.

    Raises:
        UserError: naming the setting as the layer's argument is named.
    """
    try:
        run = validate_run({"dataset": "chains", **values})
        refuse_idle(run, names_of(values))
        return run
    except UserError as error:
        message = str(error)
        for section in values:
            message = message.replace(f"{section}.", "")
        raise UserError(message) from error


@dataclass(frozen=True, slots=True)
class Direction:
    """How one direction is solved.

    Args:
        solver: the method.
        tolerance: relative residual at which to stop.
        max_steps: most evaluations of one solve, at least 1.
    """

    solver: AnySolver
    tolerance: float
    max_steps: int

    @classmethod
    def of(cls, solver: str | AnySolver, **limits: Any) -> Direction:
        """From the arguments of a layer.

        Args:
            solver: a name, or an object with the methods of ``FixedPointSolver``.
            limits: keys of ``SolveConfig`` besides ``method``.

        Raises:
            UserError: an unknown solver, or a number outside its limits.
        """
        config = checked({"forward": limits}).forward
        if config.capture:
            raise UserError(f"capture = {config.capture}: a layer records no solves; leave it out")
        found = _named(solver, config) if isinstance(solver, str) else solver
        return cls(found, config.tolerance, config.max_steps)

    def solve(self, fixed_point_map: FixedPointMap, start: Tensor) -> Solution:
        """The record of a solve from ``start`` [O, D] in this process alone."""
        return solve(
            fixed_point_map,
            start,
            self.solver,
            local_sum,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
        )


def both_directions(
    solver: str | AnySolver,
    tolerance: float,
    max_steps: int,
    *,
    adjoint_solver: str | AnySolver | None,
    adjoint_tolerance: float | None,
    adjoint_max_steps: int | None,
    usual: SolverSettings = _USUAL,
    **common: Any,
) -> tuple[Direction, Direction]:
    """How the forward and the backward solve are done; what the latter leaves out is the former's.

    Args:
        solver, tolerance, max_steps: of the forward solve, see ``Direction.of``.
        adjoint_solver, adjoint_tolerance, adjoint_max_steps: the same of the backward solve.
        usual: what ``common`` is by default.
        common: settings of the methods, which both have.

    Raises:
        UserError: see ``Direction.of``; or neither method reads one of ``common``.
    """
    forward = Direction.of(solver, tolerance=tolerance, max_steps=max_steps, **common)
    adjoint = Direction.of(
        solver if adjoint_solver is None else adjoint_solver,
        tolerance=tolerance if adjoint_tolerance is None else adjoint_tolerance,
        max_steps=max_steps if adjoint_max_steps is None else adjoint_max_steps,
        **common,
    )
    _refuse_unread((solver,) if adjoint_solver is None else (solver, adjoint_solver), common, usual)
    return forward, adjoint


def _refuse_unread(
    solvers: Sequence[str | AnySolver], common: Mapping[str, Any], usual: SolverSettings
) -> None:
    """Refuse what no method reads; an object has its settings already."""
    reads = [METHODS[each].reads if isinstance(each, str) else frozenset() for each in solvers]
    for name, value in common.items():
        if value != getattr(usual, name) and not any(name in each for each in reads):
            called = [each if isinstance(each, str) else type(each).__name__ for each in solvers]
            made = any(not isinstance(each, str) for each in solvers)
            way_out = "give it to the object" if made else "choose another solver"
            raise UserError(
                f"{name} = {value} makes no difference to {' and '.join(dict.fromkeys(called))}; "
                f"leave it out or {way_out}"
            )


@dataclass(slots=True)
class WarmStart:
    """The last solutions by purpose, where they are to be starting points.

    Args:
        active: whether anything is kept.
    """

    active: bool
    _kept: dict[str, Tensor] = field(default_factory=dict)

    def find(self, purpose: str, like: Tensor) -> Tensor | None:
        """The last solution, if it has the shape, number format and device of ``like``."""
        kept = self._kept.get(purpose)
        if kept is None or (kept.shape, kept.dtype, kept.device) != (
            like.shape,
            like.dtype,
            like.device,
        ):
            return None
        return kept

    def keep(self, purpose: str, solution: Solution) -> None:
        """Keep a copy, which nobody else writes into, unless its numbers are not finite."""
        if self.active and solution.outcome is not Outcome.DIVERGED:
            with torch.inference_mode(False):  # later calls may record
                self._kept[purpose] = solution.image.clone()


def _named(name: str, config: SolveConfig) -> AnySolver:
    """From the list of methods, as far as they need no training."""
    ready = [known for known, method in METHODS.items() if not method.learned]
    if name in METHODS and name not in ready:
        raise UserError(
            f"solver = {name!r} has to be trained, which a run of ignn train does; take anderson, "
            "or give a trained NeuralSolver"
        )
    if name not in ready:
        raise UserError(
            f"solver = {name!r} must be one of {', '.join(ready)}, or an object with their methods"
        )
    settings = SolverSettings(config.memory, config.beta, config.regularization)
    return build_solver(name, settings)


@dataclass(slots=True)
class Watcher:
    """What becomes of solves that end above their tolerance; one for each layer.

    Args:
        failure: what to do.
        advice: the way out, for the message.
    """

    failure: Failure
    advice: str
    _warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.failure not in get_args(Failure):
            allowed = ", ".join(get_args(Failure))
            raise UserError(f"on_failure = {self.failure!r} must be one of {allowed}")

    def record(self, direction: str, solution: Solution, how: Direction) -> Solve:
        """The record of a solve, after saying what has to be said.

        A direction warns once, and again after it has converged in between. Numbers that are not
        finite raise unless failures are to be ignored: nothing can be made of them.

        Raises:
            UserError: the solve failed and that is an error.
        """
        found = Solve(solution.steps, solution.residual, solution.outcome)
        if found.converged:
            self._warned.discard(direction)
        elif self.failure != "ignore":
            line = f"the {direction} solve {_trouble(solution, how)}; {self.advice}"
            if self.failure == "raise" or found.outcome is Outcome.DIVERGED:
                raise UserError(line)
            if direction not in self._warned:
                self._warned.add(direction)
                warnings.warn(line, NotConvergedWarning, stacklevel=2)
        return found


def _trouble(solution: Solution, how: Direction) -> str:
    """What went wrong, in a few words."""
    steps, last = solution.steps, solution.residuals[-1]
    if solution.outcome is Outcome.DIVERGED:
        when = "at its start" if steps == 1 else f"after {steps} evaluations"
        dtype = str(solution.image.dtype).removeprefix("torch.")
        return f"diverges: its numbers are not finite or too large for {dtype} {when}"
    reached = f"stops at a relative residual of {solution.residual:.1e} after {steps} evaluations"
    floor = torch.finfo(solution.image.dtype).eps
    if how.tolerance < floor:
        dtype = str(solution.image.dtype).removeprefix("torch.")
        return f"{reached}, and {dtype} cannot reach the tolerance {how.tolerance:.0e}"
    trend = " and grows" if last > solution.residuals[0] else ""
    return f"{reached}{trend} (tolerance {how.tolerance:.0e})"
