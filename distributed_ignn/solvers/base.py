"""What a fixed-point solver is: it starts, observes an evaluation, and proposes the next point.

A solver never evaluates the map, never loops and never decides to stop; ``solve`` does. Per
evaluation it calls ``reduce`` once, on one vector of all the numbers it needs summed over ranks, so
that every rank sees the same numbers and takes the same branch. A method whose steps read large
arrays may call it once more for each step that is taken, and then the last evaluation of a solve
costs it nothing (``anderson.py``).

What a method remembers is its state, one object per solve that ``observe`` and ``advance`` change
in place: a history is several times as large as a point. A map remembers nothing for its callers;
what it found out on the way is in the record of the evaluation.

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
"""Sums a float64 vector over ranks, where it lies, and returns it; the identity for one process.

What is summed on a GPU stays there: whoever reads the numbers copies them to the host, once."""


class FixedPointMap(Protocol):
    """The map f of z = f(z), on this rank's rows."""

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        """The record of f(z) for z [O, D].

        Args:
            z: the point; the record refers to it, so nobody may write into it.
            rider: columns [O, R] to be multiplied by the sparsified graph on the way, or None.
        """
        ...


@runtime_checkable
class SettlingMap(Protocol):
    """A map that may use halo rows of an earlier evaluation."""

    def settle(self) -> bool:
        """From the next evaluation on, use no old rows; False if that is so already."""
        ...


@runtime_checkable
class SummingMap(Protocol):
    """A map that can sum squares while it writes an image."""

    def sum_squares(self) -> None:
        """From the next evaluation on, records have ``Evaluation.squares``."""
        ...


class Outcome(enum.StrEnum):
    """How a solve ended; the values are the messages."""

    CONVERGED = "the relative residual is at or below the tolerance"
    MAX_STEPS = "the step limit was reached before the tolerance"
    DIVERGED = "the residual is not finite"


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What one evaluation of a map found; a plain map gives point and image alone.

    Args:
        point: z [O, D].
        image: f(z) [O, D], which nobody writes into any more.
        ridden: the rider multiplied by the sparsified graph [O, R]; None without a rider.
        squares: ||f(z) - z||^2 and ||f(z)||^2 of this rank's rows, float64 [2] on any device; None
            where the map has not summed them while it wrote the image.
        error_square: this rank's share of the squared error of the image through rounded halo
            rows, float64 [1]; None for a map that does not round. Alike on every rank.
        products: what the map keeps of z for the backward pass, B_c z [O, D] per channel. They
            are lent: the map's next evaluation overwrites them.
    """

    point: Tensor
    image: Tensor
    ridden: Tensor | None = None
    squares: Tensor | None = None
    error_square: Tensor | None = None
    products: tuple[Tensor, ...] | None = None

    def lasting(self) -> Evaluation:
        """Point and image alone, which is what outlives the map's next evaluation."""
        return Evaluation(self.point, self.image)


@dataclass(frozen=True, slots=True, eq=False)
class Iterate:
    """An evaluation and its relative residual ||f(z) - z|| / ||f(z)||, over all ranks."""

    evaluation: Evaluation
    residual: float

    @property
    def point(self) -> Tensor:
        """z [O, D]."""
        return self.evaluation.point

    @property
    def image(self) -> Tensor:
        """f(z) [O, D]."""
        return self.evaluation.image


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The record of one solve.

    Args:
        best: the record of the best point's evaluation. Its image is the next iterate for free; its
            products are there where no later evaluation has overwritten them.
        outcome: how the solve ended.
        steps: evaluations of the map.
        residual: relative residual of ``point``.
        residuals: relative residual of every evaluated point.
    """

    best: Evaluation
    outcome: Outcome
    steps: int
    residual: float
    residuals: tuple[float, ...] = field(default=())

    @property
    def point(self) -> Tensor:
        """The best iterate z, [O, D]."""
        return self.best.point

    @property
    def image(self) -> Tensor:
        """f(z) at the best iterate, [O, D]."""
        return self.best.image

    @property
    def converged(self) -> bool:
        return self.outcome is Outcome.CONVERGED


State = TypeVar("State")


class FixedPointSolver(Protocol, Generic[State]):
    """One method. Its ``State`` is changed in place; nothing is kept on the solver itself."""

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap) -> State:
        """State before the first evaluation of ``fixed_point_map``."""
        ...

    def rider(self, state: State) -> Tensor | None:
        """Columns [O, R] that should travel with the next evaluation, or None."""
        ...

    def observe(self, state: State, evaluation: Evaluation, reduce: Reduce) -> float:
        """Enter an evaluation into ``state``; its relative residual.

        It reduces exactly once, a vector whose last entry is ||f(z)||^2.
        """
        ...

    def advance(self, state: State, best: Iterate) -> Tensor:
        """The next point to evaluate, [O, D]. ``state`` moves on with it.

        Most methods have all they need from ``observe``; one that puts work off until here may
        reduce once more, by the ``reduce`` that it was given there.
        """
        ...


@dataclass(frozen=True, slots=True)
class SolveSizes:
    """What decides how much memory a solve takes and moves.

    Args:
        state: bytes of a point.
        item: bytes of one of its numbers.
        steps: evaluations of the longest solve, at least 1.
        fused: whether a GPU's kernels enter and mix iterates, see ``triton_history``.
    """

    state: int
    item: int
    steps: int
    fused: bool = False


class SizedSolver(FixedPointSolver[State], Protocol):
    """A method that says what it costs, before there is anything to solve."""

    def held_bytes(self, sizes: SolveSizes) -> dict[str, int]:
        """Bytes of the state after the last evaluation, beside what ``solve`` itself holds.

        Under the name ``history`` stands what grows with the steps, under ``solve`` the rest.
        """
        ...

    def moved_bytes(self, sizes: SolveSizes) -> float:
        """Bytes of the history and of points that an average step reads and writes."""
        ...


def relative_residual(residual_square: float, image_square: float) -> float:
    """||g|| / ||f(z)|| from global sums of squares; 0 where both vanish, NaN kept.

    Infinite where a sum is: numbers from 1e19 on have squares beyond float32, and a finite residual
    over such an image would look like 0.

    Where the image alone vanishes, as where all ReLUs have died, the residual is -z, and its norm
    is counted relative to that of the point: it is 1, and the next point may well be the solution.
    """
    if math.isinf(image_square):
        return math.inf
    if residual_square == 0.0:
        return 0.0
    if image_square == 0.0:
        return 1.0 if math.isfinite(residual_square) else math.inf
    return math.sqrt(residual_square / image_square)


AnySolver = FixedPointSolver[Any]
AnySizedSolver = SizedSolver[Any]
