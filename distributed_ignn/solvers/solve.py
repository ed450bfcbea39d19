"""solve(): the only loop, and the only place that stops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.solvers.base import (
    AnySolver,
    Evaluation,
    FixedPointMap,
    Iterate,
    Outcome,
    Reduce,
    SettlingMap,
    Solution,
    SolveSizes,
)


def held_bytes(sizes: SolveSizes) -> int:
    """Bytes that a solve holds whatever the method: the newest point and image, the best point."""
    return 3 * sizes.state


class _Watch:
    """The sum over ranks, with the evaluation's own error in the same reduction."""

    def __init__(self, fixed_point_map: FixedPointMap, reduce: Reduce) -> None:
        self._map = fixed_point_map if isinstance(fixed_point_map, SettlingMap) else None
        self._reduce = reduce

    def residual(self, solver: AnySolver, state: Any, evaluation: Evaluation) -> float:
        """Let the solver observe; what the relative residual may be at most, errors included."""
        error = 0.0

        def reduce(sums: Tensor) -> Tensor:
            """Sums over ranks of a vector that ends in ||f(z)||^2."""
            nonlocal error
            if evaluation.error_square is None:
                return self._reduce(sums)
            known = self._reduce(torch.cat([sums, evaluation.error_square.to(sums.device)])).cpu()
            square, image_square = float(known[-1]), float(known[-2])
            error = math.sqrt(square / image_square) if square > 0.0 < image_square else 0.0
            return known[:-1]

        return solver.observe(state, evaluation, reduce) + error

    def settle(self) -> bool:
        """Whether the last evaluation used old rows, which the next ones will not."""
        return self._map is not None and self._map.settle()


def solve(
    fixed_point_map: FixedPointMap,
    z0: Tensor,
    solver: AnySolver,
    reduce: Reduce,
    *,
    tolerance: float,
    max_steps: int,
) -> Solution:
    """Iterate until the relative residual is at or below ``tolerance``.

    One evaluation of the map (one halo exchange) and one reduction per step, on every rank alike;
    where points are large, Anderson's method takes a second one for every step but the last.
    The best iterate is returned whatever the method did last. Where evaluations may use old halo
    rows, the last ones do not, and no other counts; where halo rows are rounded, what rounding did
    to the image counts towards the residual.

    Autograd records nothing here, whatever the map's parameters want: no graph grows with the
    steps, and no solver writes into an array of the map's. A gradient through a fixed point is that
    of ``ImplicitLayer``; a solver that learns by gradient is driven step by step
    (``training/learned/rollout.py``), not from here.

    Args:
        fixed_point_map: the map f on this rank's rows.
        z0: starting point [O, D]; it stays as it is.
        solver: the method.
        reduce: sums a float64 vector over ranks, wherever it lies.
        tolerance: on ||f(z) - z|| / ||f(z)||, global norms.
        max_steps: evaluations allowed, at least 1.

    Raises:
        ValueError: ``max_steps`` below 1.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, a solve needs at least one evaluation")
    # no decorator: it would hold the starting point, one of its arguments, for the whole solve
    with torch.no_grad():
        watch = _Watch(fixed_point_map, reduce)
        z, best = z0.detach(), None
        del z0  # not kept in memory for the whole solve
        state = solver.init(z, fixed_point_map)
        residuals: list[float] = []
        outcome = Outcome.MAX_STEPS
        while True:
            if len(residuals) == max_steps - 1 and watch.settle():
                best = None
            newest = fixed_point_map(z, solver.rider(state))
            residual = watch.residual(solver, state, newest)
            residuals.append(residual)
            if best is None or residual < best.residual:
                best = Iterate(newest, residual)
            del newest  # what it lends or nobody needs any more is let go of
            if not math.isfinite(residual):
                outcome = Outcome.DIVERGED
                break
            was_old = residual <= tolerance and watch.settle()
            if residual <= tolerance and not was_old:
                outcome = Outcome.CONVERGED
                break
            if len(residuals) == max_steps:
                break
            best = Iterate(best.evaluation.lasting(), best.residual)
            z = solver.advance(state, best)
            if was_old:
                best = None
        return Solution(best.evaluation, outcome, len(residuals), best.residual, tuple(residuals))
