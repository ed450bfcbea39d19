"""What a solve holds, counted array by array, against what the methods say beforehand."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySizedSolver, Evaluation, SolveSizes
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import held_bytes, solve

ROWS, COLUMNS, STEPS = 611, 3, 12
STATE = ROWS * COLUMNS * 8


@dataclass(eq=False)
class _Counted:
    """z -> a z + 1, which errs by more than before from step ``worse`` on; counts states alive."""

    worse: int
    slopes: Tensor = field(
        default_factory=lambda: torch.linspace(-0.9, 0.9, ROWS, dtype=torch.float64)[:, None]
    )
    steps: int = 0
    most: int = 0

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        self.steps += 1
        # a little more each time: the residual rises, but not so far that a method starts over
        image = torch.addcmul(torch.ones_like(z), z, self.slopes)
        if self.steps >= self.worse:
            image += 0.5 * 1.1**self.steps * (-1.0) ** self.steps
        self.count()
        return Evaluation(z, image)

    def count(self) -> None:
        arrays = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
        found = {a.untyped_storage().data_ptr() for a in arrays if a.shape == (ROWS, COLUMNS)}
        self.most = max(self.most, len(found))

    def reduce(self, sums: Tensor) -> Tensor:
        self.count()
        return sums


def _most_states(solver: AnySizedSolver, worse: int) -> int:
    counted = _Counted(worse)
    gc.freeze()  # what is there already need not be looked through each time
    try:
        solve(
            counted,
            torch.zeros(ROWS, COLUMNS, dtype=torch.float64),
            solver,
            counted.reduce,
            tolerance=0.0,
            max_steps=STEPS,
        )
    finally:
        gc.unfreeze()
    return counted.most


@pytest.mark.parametrize(
    ("solver", "more"),
    [(Picard(), 1), (Picard(beta=0.9), 0), (Anderson(memory=3), 1), (Broyden(memory=3), 0)],
)
def test_a_solve_holds_what_it_said(solver: AnySizedSolver, more: int) -> None:
    """And up to one state more where the best point is not the last one, which a bound adds."""
    sizes = SolveSizes(STATE, 8, STEPS)
    said = (held_bytes(sizes) + sum(solver.held_bytes(sizes).values())) // STATE
    assert _most_states(solver, worse=STEPS + 1) == said
    assert _most_states(solver, worse=5) == said + more
