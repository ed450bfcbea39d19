"""What a method asks for between two evaluations: on a GPU each operation is a launch.

Counted on the CPU, operation by operation: views launch nothing, and one block is one launch of
each kind. How often a GPU is waited for is counted on an emulated one (``tests/pseudo_gpu``); that
a group of evaluations never asks for a number is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver, Evaluation
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.captured import Captures
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from tests.solvers.dense_map import NODES, WIDTH, DenseMap
from tests.solvers.test_captured import _alone, _Grouped

pytestmark = pytest.mark.cheap

# what makes the host wait for a GPU, or hands it numbers of the host's
READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique"}
UPLOADS = {"lift_fresh", "lift_fresh_copy", "lift"}
NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "detach", *READS, *UPLOADS}


class _Operations(TorchDispatchMode):
    """Names of the operations that have run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def launches(self) -> list[str]:
        """Those that a GPU would be handed."""
        return [name for name in self.names if name not in NO_LAUNCH]


class _Marking(DenseMap):
    """Notes how many operations had run before each evaluation, and after."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations
        self.between: list[list[str]] = []

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        self.between.append(self.operations.launches())
        found = super().__call__(z, rider)
        self.operations.names.clear()
        return found

    def propagate(self, columns: Tensor, sparsified: bool) -> list[Tensor]:
        before = len(self.operations.names)
        found = super().propagate(columns, sparsified)
        del self.operations.names[before:]  # a hop is the map's
        return found


def _learned() -> AnySolver:
    estimator = ErrorEstimator(BasisCache(3), 1, 2, 3).double()
    return NeuralSolver(None, NODES, 1e-10, None, estimator, 5, safeguard=False)


CEILINGS: dict[str, tuple[Callable[[], AnySolver], int]] = {
    "picard": (Picard, 8),
    "anderson": (lambda: Anderson(5), 54),
    "anderson, judged first": (lambda: Anderson(5, judge_first=True), 55),
    "broyden": (lambda: Broyden(5), 59),
    "learned": (_learned, 63),
}


@pytest.mark.parametrize("name", CEILINGS)
def test_a_steady_step_launches_no_more_than_it_did(name: str) -> None:
    make, ceiling = CEILINGS[name]
    with _Operations() as operations:
        the_map = _Marking(operations)
        start = torch.zeros(NODES, WIDTH, dtype=torch.float64)
        solve(the_map, start, make(), _alone, tolerance=0.0, max_steps=12)
    steady = [len(names) for names in the_map.between[8:11]]
    assert max(steady) <= ceiling, the_map.between[9]


@pytest.mark.parametrize("solver", [Picard(), Picard(0.5), Anderson(3), Anderson(3, beta=0.5)])
def test_a_group_asks_for_no_number_and_brings_none(solver: AnySolver) -> None:
    captures, start = Captures(4), torch.ones(NODES, WIDTH, dtype=torch.float64)
    limits: dict[str, Any] = {"tolerance": 1e-6, "max_steps": 30}
    captures.solve(_Grouped(), start, solver, _alone, **limits)
    (loop,) = captures._loops.values()
    with _Operations() as operations, torch.no_grad():
        loop._group(0, None)  # type: ignore[arg-type]
    assert not READS & set(operations.names)
    assert not UPLOADS & set(operations.names)
