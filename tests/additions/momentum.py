"""Heavy-ball momentum (Polyak 1964): z <- f(z) + beta (z - the point before)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.solvers.base import (
    Evaluation,
    FixedPointMap,
    Iterate,
    Reduce,
    SolveSizes,
    relative_residual,
)


@dataclass(slots=True, eq=False)
class MomentumState:
    """The newest evaluation and the point before it."""

    newest: Evaluation | None = None
    before: Tensor | None = None


class Momentum:
    """The method.

    Args:
        beta: share of the last step that is taken again, in (0, 1].
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap | None = None) -> MomentumState:
        """Nothing is known yet."""
        return MomentumState()

    def held_bytes(self, sizes: SolveSizes) -> dict[str, int]:
        """The point before."""
        return {"solve": sizes.state, "history": 0}

    def moved_bytes(self, sizes: SolveSizes) -> float:
        """Two passes for the residual, four for the step."""
        return 6.0 * sizes.state

    def rider(self, state: MomentumState) -> None:
        """Nothing travels."""

    def observe(self, state: MomentumState, evaluation: Evaluation, reduce: Reduce) -> float:
        """Two sums of squares, reduced together."""
        state.newest = evaluation.lasting()
        residual = evaluation.image - evaluation.point
        squares = torch.stack([residual.square().sum(), evaluation.image.square().sum()])
        return relative_residual(*reduce(squares.double().cpu()).tolist())

    def advance(self, state: MomentumState, best: Iterate) -> Tensor:
        """The image, and a share of the last step on top."""
        if state.newest is None:
            raise ValueError("advance needs an observed point")
        before, state.before = state.before, state.newest.point
        if before is None:
            return state.newest.image
        return torch.add(state.newest.image, state.newest.point - before, alpha=self.beta)
