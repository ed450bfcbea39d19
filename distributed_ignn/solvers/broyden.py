"""Broyden's good method with limited memory, for g(z) = f(z) - z = 0.

Broyden (1965): the inverse Jacobian of g starts at -I (so the first step is Picard's) and gets a
rank-one correction per step. It is never formed: after Kelley, "Iterative Methods for Linear and
Nonlinear Equations" (1995), section 7.3, the next full step follows from the earlier steps s_j
alone,

    w = g;  for j = 0 .. m-2:  w <- w + s_{j+1} <s_j, w> / <s_j, s_j>;
    s_m = w / (1 - <s_{m-1}, w> / <s_{m-1}, s_{m-1}>),

with s_{m-1} the step that led to the present point. Every inner product above follows from <s_j, g>
and <s_i, s_j>, because w stays a combination of g and the steps: so one reduction of m + 2 numbers
per iteration is enough, and the Gram matrix of the steps never has to be measured. Arrays are read
block by block, each number once; the memory of a step is taken when it is first written.

Letters: O owned rows, D columns, M most steps held, m steps held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distributed_ignn.solvers.anderson_ring import GROWTH_LIMIT
from distributed_ignn.solvers.base import (
    Evaluation,
    FixedPointMap,
    Iterate,
    Reduce,
    SolveSizes,
    relative_residual,
)
from distributed_ignn.solvers.blocks import blocks

_SMALLEST_DENOMINATOR = 1e-8
_PASSES = 8.0  # read point and image twice and the point again; write step and point, read the step


@dataclass(slots=True, eq=False)
class BroydenState:
    """The steps so far and what was measured at the newest point.

    Args:
        steps: arrays [O, D], the first ``held`` of them in use, oldest first.
        gram: float64 [M, M] on the CPU, <s_i, s_j> over all ranks.
        held: m.
        newest: the newest evaluation; None where it has been used up.
        dots: <s_j, g> over all ranks, float64 [m].
        square: <g, g> over all ranks.
        residual: relative residual of the newest point.
        restarts: of the history.
        left_best: residual of the best iterate that a restart has gone back to.
    """

    gram: Tensor
    steps: list[Tensor] = field(default_factory=list)
    held: int = 0
    newest: Evaluation | None = None
    dots: Tensor | None = None
    square: float = 0.0
    residual: float = math.inf
    restarts: int = 0
    left_best: float = math.inf


class Broyden:
    """The good method from the last at most M steps; it starts over when they are used up.

    Args:
        memory: M. The default needs about the room of Anderson with five past iterates.
    """

    def __init__(self, memory: int = 10) -> None:
        self.memory = memory

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap | None = None) -> BroydenState:
        """No step yet."""
        return BroydenState(torch.zeros(self.memory, self.memory, dtype=torch.float64))

    def held_bytes(self, sizes: SolveSizes) -> dict[str, int]:
        """The image of the point before, and the steps."""
        held = min(max(sizes.steps - 1, 0), self.memory)
        return {"solve": int(held > 0) * sizes.state, "history": held * sizes.state}

    def moved_bytes(self, sizes: SolveSizes) -> float:
        """Every step is read twice: by the dot products and by the next step."""
        turns = [step % (self.memory + 1) for step in range(max(sizes.steps, 1))]
        return (_PASSES + 2.0 * sum(turns) / len(turns)) * sizes.state

    def rider(self, state: BroydenState) -> None:
        """Nothing travels."""

    def observe(self, state: BroydenState, evaluation: Evaluation, reduce: Reduce) -> float:
        """<s_j, g>, <g, g> and ||f(z)||^2, reduced together."""
        sums = reduce(_local_sums(state.steps[: state.held], evaluation)).cpu()
        state.newest = evaluation.lasting()
        state.dots, state.square = sums[:-2], float(sums[-2])
        state.residual = relative_residual(float(sums[-2]), float(sums[-1]))
        return state.residual

    def advance(self, state: BroydenState, best: Iterate) -> Tensor:
        """The full step; Picard's after a restart."""
        newest, state.newest = state.newest, None
        if newest is None:
            raise ValueError("advance needs an observed point")
        if state.residual > GROWTH_LIMIT * best.residual and best.residual < state.left_best:
            # never back to the same point twice, which would repeat the same steps for ever
            state.left_best = best.residual
            self._start_over(state)
            return best.image
        if state.held == self.memory:
            self._start_over(state)
        weights = _weights(state)
        if weights is None:
            self._start_over(state)
            weights = torch.ones(1, dtype=torch.float64)
        return self._step(state, newest, weights)

    def _start_over(self, state: BroydenState) -> None:
        state.held, state.restarts = 0, state.restarts + 1

    def _step(self, state: BroydenState, newest: Evaluation, weights: Tensor) -> Tensor:
        """The next point; stores the step sum_j weights_j s_j + weights_m g to it."""
        self._enter_gram(state, weights)
        held, *older = state.held, *weights[:-1].tolist()
        if held == len(state.steps):
            state.steps.append(torch.empty_like(newest.image))
        step, point = state.steps[held], torch.empty_like(newest.image)
        for rows in blocks(point):
            part = torch.sub(newest.image[rows], newest.point[rows], out=step[rows])
            part.mul_(float(weights[-1]))
            for weight, earlier in zip(older, state.steps[:held], strict=True):
                part.add_(earlier[rows], alpha=weight)
            torch.add(newest.point[rows], part, out=point[rows])
        state.held += 1
        return point

    @staticmethod
    def _enter_gram(state: BroydenState, weights: Tensor) -> None:
        """<s_i, s_m> of the new step s_m, which follow from what is known."""
        if state.dots is None:
            raise ValueError("a step needs an observed point")
        held, dots = state.held, state.dots[: state.held]
        row = state.gram[:held, :held] @ weights[:-1] + weights[-1] * dots
        square = torch.dot(weights[:-1], row + weights[-1] * dots) + weights[-1] ** 2 * state.square
        state.gram[held, :held] = row
        state.gram[:held, held] = row
        state.gram[held, held] = square


def _local_sums(steps: list[Tensor], evaluation: Evaluation) -> Tensor:
    """<s_j, g>, <g, g> and ||f(z)||^2 of this rank's rows, float64 [m + 2] on their device."""
    z, image = evaluation.point, evaluation.image
    sums = torch.zeros(len(steps) + 2, dtype=torch.float64, device=z.device)
    for rows in blocks(z):
        reached = image[rows].reshape(-1)
        residual = (image[rows] - z[rows]).view(-1)
        dots = [torch.dot(step[rows].view(-1), residual) for step in steps]
        dots += [torch.dot(residual, residual), torch.dot(reached, reached)]
        sums += torch.stack(dots)
    return sums


def _weights(state: BroydenState) -> Tensor | None:
    """Weights [m + 1] of s_0 .. s_{m-1} and g in the next step; None where there is none."""
    held, dots = state.held, state.dots
    weights = torch.zeros(held + 1, dtype=torch.float64)
    weights[-1] = 1.0
    if dots is None or held == 0:
        return weights
    gram = state.gram[:held, :held]

    def along(j: int) -> float:
        """<s_j, w> / <s_j, s_j>."""
        product = torch.dot(weights[:-1], gram[j]) + weights[-1] * dots[j]
        return float(product / gram[j, j]) if float(gram[j, j]) > 0.0 else math.nan

    for j in range(held - 1):
        weights[j + 1] += along(j)
    denominator = 1.0 - along(held - 1)
    if not abs(denominator) > _SMALLEST_DENOMINATOR:  # or not a number
        return None
    weights /= denominator
    return weights if bool(torch.isfinite(weights).all()) else None
