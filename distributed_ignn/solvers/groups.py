"""Evaluations one after the other without asking the host: what a group of them is made of.

A solve in groups (``captured.py``) launches K evaluations before anybody reads a number. So what
the loop of ``solve`` decides by branches is decided here by masks, on the device: whether an
iterate is the best so far, whether the solve is over, and, in a method's own code, whether its
history misleads. A solve that is over stays as it was: the evaluations that follow in its group
change nothing that is handed out.

Letters: O owned rows, D columns, K evaluations of a group.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from distributed_ignn.device.triton_seam import triton_kernels_for
from distributed_ignn.solvers.base import Evaluation, FixedPointMap
from distributed_ignn.solvers.blocks import residual_squares


@runtime_checkable
class GroupMap(Protocol):
    """A map that can be told to read other arrays, which then serve solve after solve."""

    def arrays(self) -> tuple[Tensor, ...]:
        """Everything whose numbers may differ from one solve to the next."""
        ...

    def reading(self, arrays: Sequence[Tensor]) -> FixedPointMap:
        """The same map of these ``arrays``, in which numbers may be replaced between solves."""
        ...

    def constants(self) -> Hashable:
        """What else the map is made of; maps with equal constants differ in their arrays alone."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What is known of an evaluation, on its device; residuals are relative, float64 scalars.

    Args:
        residual: of this evaluation.
        best: the smallest so far.
        best_image: f(z) of the best iterate [O, D].
    """

    residual: Tensor
    best: Tensor
    best_image: Tensor


class GroupMethod(Protocol):
    """A method without branches; equal ones may share their arrays from solve to solve.

    ``State`` is whatever ``allocate`` makes: arrays that stay where they are. Between the steps of
    a group new arrays may be handed on in it; ``keep`` brings them home when the group is over.
    """

    @property
    def phases(self) -> int:
        """After how many evaluations the same arrays serve the same purpose again."""
        ...

    def allocate(self, like: Tensor) -> Any:
        """The state of a solve for points like this one [O, D]."""
        ...

    def begin(self, state: Any, *, clean: bool) -> None:
        """Start a solve; ``clean``: the arrays may hold what is not a number."""
        ...

    def sums(self, state: Any, phase: int, evaluation: Evaluation) -> Tensor:
        """Enter an evaluation; this rank's share of ||f(z) - z||^2, ..., ||f(z)||^2, float64."""
        ...

    def advance(
        self, state: Any, phase: int, evaluation: Evaluation, sums: Tensor, verdict: Verdict
    ) -> Tensor:
        """The next point [O, D], by the ``sums`` over all ranks."""
        ...

    def keep(self, state: Any) -> None:
        """Copy what was handed on within a group to where the next one looks for it."""
        ...


@runtime_checkable
class GroupSolver(Protocol):
    """A method for ``solve`` that can do without branches."""

    def in_groups(self) -> GroupMethod:
        """The same method."""
        ...


@dataclass(frozen=True, slots=True)
class GroupPicard:
    """Picard's iteration, see ``Picard``."""

    beta: float
    phases: int = 1

    def allocate(self, like: Tensor) -> None:
        """Nothing is remembered."""

    def begin(self, state: None, *, clean: bool) -> None:
        """Nothing to forget."""

    def sums(self, state: None, phase: int, evaluation: Evaluation) -> Tensor:
        """Two squares; the map's own where it has them."""
        if evaluation.squares is not None:
            return evaluation.squares
        return residual_squares(evaluation.point, evaluation.image)

    def advance(
        self, state: None, phase: int, evaluation: Evaluation, sums: Tensor, verdict: Verdict
    ) -> Tensor:
        """The image, or a part of the way to it."""
        if self.beta == 1.0:
            return evaluation.image
        return evaluation.point.lerp(evaluation.image, self.beta)

    def keep(self, state: None) -> None:
        """Nothing is handed on but the point."""


def relative_residual(square: Tensor, image_square: Tensor) -> Tensor:
    """As ``base.relative_residual``, of float64 scalars on a device."""
    vanished = torch.where(square < math.inf, 1.0, math.inf)  # not a number is not below it
    ratio = torch.where(image_square == 0.0, vanished, (square / image_square).sqrt())
    known = torch.where(square == 0.0, 0.0, ratio)
    return torch.where(image_square == math.inf, math.inf, known)


class Progress:
    """How far a solve has come, on its device.

    Args:
        size: K.
        found: arrays of the best iterate, shaped like these: point, image, kept products.

    Attributes:
        residuals: of the evaluations of the newest group, float64 [K].
        held: the arrays of the best iterate.
    """

    def __init__(self, size: int, found: Sequence[Tensor]) -> None:
        like = found[0]
        self.residuals = torch.zeros(size, dtype=torch.float64, device=like.device)
        self.held = tuple(torch.empty_like(array) for array in found)
        scalar = self.residuals.new_empty
        self._best, self._tolerance, self._left = scalar(()), scalar(()), scalar(())
        self._going = torch.ones((), dtype=torch.bool, device=like.device)

    def begin(self, tolerance: float, max_steps: int) -> None:
        """Start a solve."""
        self._best.fill_(math.inf)
        self._tolerance.fill_(tolerance)
        self._left.fill_(max_steps)
        self._going.fill_(True)

    def judge(self, number: int, sums: Tensor, found: Sequence[Tensor]) -> Verdict:
        """Enter the evaluation ``number`` of a group, by sums over all ranks.

        Args:
            number: counted from 0.
            sums: ||f(z) - z||^2, ..., ||f(z)||^2.
            found: its arrays, see ``held``; kept if it is the best of a solve that is not over.
        """
        residual = self.residuals[number]
        kernels = triton_kernels_for("triton_steps", sums, torch.float64)
        if kernels is None:
            better = self._judge(sums, residual)
        else:
            numbers = self._best, self._tolerance, self._left, self._going
            better = kernels.judge(sums, residual, *numbers)
        for kept, array in zip(self.held, found, strict=True):
            torch.where(better, array, kept, out=kept)
        return Verdict(residual, self._best, self.held[1])

    def _judge(self, sums: Tensor, residual: Tensor) -> Tensor:
        """Whether an evaluation is the best so far; ``residual`` is overwritten with its own."""
        residual.copy_(relative_residual(sums[0], sums[-1]))
        better = ((residual < self._best) | self._best.isinf()) & self._going
        self._best.copy_(torch.where(better, residual, self._best))
        self._left -= 1.0
        # not a number is not above the tolerance either
        above = (residual > self._tolerance) & (residual < math.inf)
        self._going.logical_and_(above & (self._left > 0.0))
        return better
