"""solve(): the only loop, and the only place that stops."""

from __future__ import annotations

import math

from torch import Tensor

from distributed_ignn.solvers.base import (
    AnySolver,
    FixedPointMap,
    Iterate,
    Outcome,
    Reduce,
    Solution,
)


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

    One evaluation of the map (one halo exchange) and one reduction per step, on every rank alike.
    The best iterate is returned whatever the method did last.

    Args:
        fixed_point_map: the map f on this rank's rows.
        z0: starting point [O, D].
        solver: the method.
        reduce: sums a float64 CPU vector over ranks.
        tolerance: on ||f(z) - z|| / ||f(z)||, global norms.
        max_steps: evaluations allowed, at least 1.

    Raises:
        ValueError: ``max_steps`` below 1.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, a solve needs at least one evaluation")
    state, z, best = solver.init(z0, fixed_point_map), z0, None
    del z0  # not kept in memory for the whole solve
    residuals: list[float] = []
    outcome = Outcome.MAX_STEPS
    while True:
        image, ridden = fixed_point_map(z, solver.rider(state))
        state, residual = solver.observe(state, z, image, ridden, reduce)
        residuals.append(residual)
        if best is None or residual < best.residual:
            best = Iterate(z, image, residual)
        if not math.isfinite(residual):
            outcome = Outcome.DIVERGED
            break
        if residual <= tolerance:
            outcome = Outcome.CONVERGED
            break
        if len(residuals) == max_steps:
            break
        state, z = solver.advance(state, best)
    return Solution(
        best.point, best.image, outcome, len(residuals), best.residual, tuple(residuals)
    )
