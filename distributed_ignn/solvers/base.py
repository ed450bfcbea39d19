"""What a fixed-point solver is: it starts, observes an evaluation, and proposes the next point.

A solver never evaluates the map, never loops and never decides to stop; ``solve`` does. Per
iteration it calls ``reduce`` once, on one vector of all the numbers it needs summed over ranks, so
that every rank sees the same numbers and takes the same branch.

Letters: O owned rows, D columns, N = O * D entries, M solver memory, R rider columns.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a float64 CPU vector over ranks and returns it; the identity for one process."""


class FixedPointMap(Protocol):
    """The map f of z = f(z), on this rank's rows."""

    def __call__(self, z: Tensor, rider: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """f(z) [O, D], and the rider [O, R] multiplied by the sparsified graph (None without)."""
        ...


@runtime_checkable
class InexactMap(Protocol):
    """A map whose images may be off by a little, because halo rows are rounded or old."""

    def error_square(self) -> Tensor:
        """Squared error of the last image through rounding, this rank's share; float64 [1]."""
        ...

    def settle(self) -> bool:
        """From the next evaluation on, use no old rows; False if that is so already."""
        ...


@runtime_checkable
class MeasuredMap(Protocol):
    """A map that may sum squares while it writes an image, so that nobody reads it again."""

    def squares(self, z: Tensor) -> Tensor | None:
        """||f(z) - z||^2 and ||f(z)||^2 of this rank's rows, float64 [2], on any device.

        None where ``z`` is not the last evaluated point or the map has not summed.
        """
        ...


class Outcome(enum.StrEnum):
    """How a solve ended; the values are the messages."""

    CONVERGED = "the relative residual is at or below the tolerance"
    MAX_STEPS = "the step limit was reached before the tolerance"
    DIVERGED = "the residual is not finite"


@dataclass(frozen=True, slots=True, eq=False)
class Iterate:
    """A point, its image under the map, and the relative residual ||f(z) - z|| / ||f(z)||."""

    point: Tensor
    image: Tensor
    residual: float


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The record of one solve.

    Args:
        point: best iterate z, [O, D].
        image: f(z), already evaluated: the next iterate for free.
        outcome: how the solve ended.
        steps: evaluations of the map.
        residual: relative residual of ``point``.
        residuals: relative residual of every evaluated point.
    """

    point: Tensor
    image: Tensor
    outcome: Outcome
    steps: int
    residual: float
    residuals: tuple[float, ...] = field(default=())

    @property
    def converged(self) -> bool:
        return self.outcome is Outcome.CONVERGED


State = TypeVar("State")


class FixedPointSolver(Protocol, Generic[State]):
    """One method. ``State`` belongs to the method; nothing is kept on the solver itself."""

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap) -> State:
        """State before the first evaluation of ``fixed_point_map``."""
        ...

    def rider(self, state: State) -> Tensor | None:
        """Columns [O, R] that should travel with the next evaluation, or None."""
        ...

    def observe(
        self, state: State, z: Tensor, image: Tensor, ridden: Tensor | None, reduce: Reduce
    ) -> tuple[State, float]:
        """Take in f(z) and return the state and the relative residual.

        It reduces exactly once, a vector whose last entry is ||f(z)||^2.
        """
        ...

    def advance(self, state: State, best: Iterate) -> tuple[State, Tensor]:
        """State and the next point to evaluate, [O, D]; no communication."""
        ...


def relative_residual(residual_square: float, image_square: float) -> float:
    """||g|| / ||f(z)|| from global sums of squares; 0 where both vanish, NaN kept."""
    if residual_square == 0.0:
        return 0.0
    return math.sqrt(residual_square / image_square) if image_square != 0.0 else math.inf


AnySolver = FixedPointSolver[Any]
