"""Picard iteration: the next point is the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.solvers.base import (
    FixedPointMap,
    Iterate,
    MeasuredMap,
    Reduce,
    relative_residual,
)


@dataclass(frozen=True, slots=True, eq=False)
class PicardState:
    """The next point, and the map if it may know the sums of squares."""

    point: Tensor
    measured: MeasuredMap | None


class Picard:
    """z <- f(z), or damped: z <- z + beta (f(z) - z).

    Args:
        beta: step length in (0, 1].
    """

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap | None = None) -> PicardState:
        """The state is the next point."""
        known = fixed_point_map if isinstance(fixed_point_map, MeasuredMap) else None
        return PicardState(z0, known)

    def rider(self, state: PicardState) -> None:
        """Nothing travels."""

    def observe(
        self, state: PicardState, z: Tensor, image: Tensor, ridden: Tensor | None, reduce: Reduce
    ) -> tuple[PicardState, float]:
        """Two sums of squares, reduced together; the map's own where it has them."""
        squares = None if state.measured is None else state.measured.squares(z)
        if squares is not None and self.beta == 1.0:
            sums = reduce(squares.cpu())
            return PicardState(image, state.measured), relative_residual(*sums.tolist())
        residual = image - z
        sums = reduce(torch.stack([residual.square().sum(), image.square().sum()]).double().cpu())
        point = image if self.beta == 1.0 else z + self.beta * residual
        return PicardState(point, state.measured), relative_residual(*sums.tolist())

    def advance(self, state: PicardState, best: Iterate) -> tuple[PicardState, Tensor]:
        """The point computed while observing."""
        return state, state.point
