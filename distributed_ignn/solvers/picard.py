"""Picard iteration: the next point is the image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distributed_ignn.solvers.base import (
    Evaluation,
    FixedPointMap,
    Iterate,
    Reduce,
    SolveSizes,
    SummingMap,
    relative_residual,
)
from distributed_ignn.solvers.blocks import residual_squares
from distributed_ignn.solvers.groups import GroupPicard

_PASSES = 3.0  # read point and image, and the image again


@dataclass(slots=True, eq=False)
class PicardState:
    """The next point [O, D]."""

    point: Tensor


class Picard:
    """z <- f(z), or damped: z <- z + beta (f(z) - z).

    Args:
        beta: step length in (0, 1].
    """

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap | None = None) -> PicardState:
        """The state is the next point."""
        asked: object = fixed_point_map
        if isinstance(asked, SummingMap) and getattr(asked, "sums_on_the_way", False):
            asked.sum_squares()
        return PicardState(z0)

    def held_bytes(self, sizes: SolveSizes) -> dict[str, int]:
        """Nothing where the next point is the image; else that, and the image before."""
        return {"solve": 0 if self.beta == 1.0 else 2 * sizes.state, "history": 0}

    def moved_bytes(self, sizes: SolveSizes) -> float:
        """Residual and squares: what is read is written once by the map already."""
        return _PASSES * sizes.state

    def in_groups(self) -> GroupPicard:
        """See ``GroupSolver``."""
        return GroupPicard(self.beta)

    def rider(self, state: PicardState) -> None:
        """Nothing travels."""

    def observe(self, state: PicardState, evaluation: Evaluation, reduce: Reduce) -> float:
        """Two sums of squares, reduced together; the map's own where it has them."""
        z, image, squares = evaluation.point, evaluation.image, evaluation.squares
        state.point = image if self.beta == 1.0 else z.lerp(image, self.beta)
        sums = reduce(residual_squares(z, image) if squares is None else squares)
        return relative_residual(*sums.tolist())

    def advance(self, state: PicardState, best: Iterate) -> Tensor:
        """The point computed while observing."""
        return state.point
