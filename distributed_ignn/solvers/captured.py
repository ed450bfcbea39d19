"""Solves whose evaluations are launched K at a time, on a GPU as one recorded graph.

Where states are small a GPU computes an evaluation in less time than the host needs to launch it
and to wait for its residual. So K evaluations with exchanges and reductions are recorded once (CUDA
graph) and then launched with one call, and their residuals are read together: one host sync per K
evaluations. What a solve decides on the way, it decides on the device (``groups.py``).

The iterates are those of ``solve``, and so are outcome, number of evaluations, residuals and the
best iterate: a group runs to its end, but what comes after the evaluation at which ``solve`` would
have stopped changes nothing that is handed out. It is work done for nothing, K - 1 evaluations at
most.

Arrays stay where they are: a map's weights and injection are copied to where the graph reads them,
and the solution is copied from there. Graphs belong to a map's constants, the shapes of its arrays,
and the method; the last few are kept. A method whose ring has M places needs M / gcd(K, M) graphs.

On a CPU nothing is recorded and the same functions run one after the other.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from distributed_ignn.solvers.base import (
    AnySolver,
    Evaluation,
    FixedPointMap,
    Outcome,
    Reduce,
    Solution,
    SolveSizes,
)
from distributed_ignn.solvers.groups import GroupMap, GroupMethod, GroupSolver, Progress

_KEPT = 4  # maps and methods whose graphs are kept: forward and backward, training and validation


class Meter(Protocol):
    """Counts what the host asks of other ranks, which a recorded graph asks for unseen."""

    def snapshot(self) -> Self:
        """The counts so far."""
        ...

    def since(self, earlier: Self) -> Self:
        """What was counted after ``earlier``."""
        ...

    def add(self, other: Self) -> None:
        """Count ``other`` as well."""
        ...


class Recorder:
    """Runs functions on arrays that stay where they are; on a GPU from a recording.

    The first call under each key runs as it is: libraries make their handles, ranks connect and
    Triton compiles then, which cannot be recorded. What is compiled depends on the key, too: on
    whether the arrays of its places begin at multiples of 16 bytes.

    Args:
        device: of the arrays.
        meter: what a function counts while it is recorded is counted each time it is replayed.
    """

    def __init__(self, device: torch.device, meter: Meter | None = None) -> None:
        self._records = device.type == "cuda"
        self._warm: set[Hashable] = set()
        self._meter = meter
        self._pool: Any = None
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}  # and what it counts

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Call ``function``, or replay what it launched when it was recorded under this key."""
        if not self._records or key not in self._warm:
            self._warm.add(key)
            function()
        elif key in self._graphs:
            graph, counted = self._graphs[key]
            graph.replay()
            if self._meter is not None:
                self._meter.add(counted)
        else:
            self._record(key, function)

    def forget(self) -> None:
        """Let go of what was recorded, whoever still holds this object.

        NCCL's group does not end while a graph holds one of its calls.
        """
        for graph, _ in self._graphs.values():
            graph.reset()
        self._graphs.clear()

    def _record(self, key: Hashable, function: Callable[[], None]) -> None:
        meter = self._meter
        before = None if meter is None else meter.snapshot()
        graph = torch.cuda.CUDAGraph()
        # other threads may ask the device something meanwhile, as NCCL's watchdog does
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            function()
        self._pool = graph.pool()
        counted = None if meter is None or before is None else meter.since(before)
        self._graphs[key] = graph, counted
        graph.replay()


class _Loop:
    """One map, one method and their arrays.

    Args:
        fixed_point_map: of the first solve; its arrays are copied.
        z0: a point like all that come.
        method: of every solve.
        reduce: sums over ranks.
        size: K.
        recorder: runs the groups.
    """

    def __init__(
        self,
        fixed_point_map: GroupMap,
        z0: Tensor,
        method: GroupMethod,
        reduce: Reduce,
        size: int,
        recorder: Recorder,
    ) -> None:
        self._arrays = tuple(array.detach().clone() for array in fixed_point_map.arrays())
        self._map = fixed_point_map.reading(self._arrays)
        self._method = method
        self._reduce = reduce
        self._size = size
        self._recorder = recorder
        self._point = z0.detach().clone()
        self._state = method.allocate(z0)
        self._progress: Progress | None = None
        self._clean = False

    def forget(self) -> None:
        """Let go of its recordings."""
        self._recorder.forget()

    def solve(self, arrays: tuple[Tensor, ...], z0: Tensor, goal: Goal) -> Solution:
        """See ``Captures.solve``."""
        for own, given in zip((*self._arrays, self._point), (*arrays, z0), strict=True):
            own.copy_(given)
        self._method.begin(self._state, clean=self._clean)
        if self._progress is not None:
            self._progress.begin(goal.tolerance, goal.max_steps)
        residuals: list[float] = []
        outcome: Outcome | None = None
        while outcome is None:
            phase = len(residuals) % self._method.phases
            self._recorder.run(phase, partial(self._group, phase, goal))
            outcome = goal.enter(residuals, self._read())
        self._clean = outcome is Outcome.DIVERGED
        return self._solution(outcome, residuals)

    def _group(self, phase: int, goal: Goal) -> None:
        """K evaluations, without a question to the device."""
        z = self._point
        for number in range(self._size):
            found = self._map(z, None)
            arrays = found.point, found.image, *(found.products or ())
            if self._progress is None:
                self._progress = Progress(self._size, arrays)
                self._progress.begin(goal.tolerance, goal.max_steps)
            place = (phase + number) % self._method.phases
            sums = self._reduce(self._method.sums(self._state, place, found))
            verdict = self._progress.judge(number, sums, arrays)
            z = self._method.advance(self._state, place, found, sums, verdict)
        self._method.keep(self._state)  # of the last point, so before the next one takes its place
        self._point.copy_(z)

    def _read(self) -> list[float]:
        """The residuals of the group; the one place where the host waits."""
        if self._progress is None:
            raise RuntimeError("residuals are read before an evaluation")
        found: list[float] = self._progress.residuals.tolist()
        return found

    def _solution(self, outcome: Outcome, residuals: list[float]) -> Solution:
        if self._progress is None:
            raise RuntimeError("a solve ends before an evaluation")
        best = residuals[0]
        for residual in residuals:
            best = residual if residual < best else best
        point, image, *products = (array.clone() for array in self._progress.held)
        record = Evaluation(point, image, products=tuple(products) or None)
        return Solution(record, outcome, len(residuals), best, tuple(residuals))


@dataclass(frozen=True, slots=True)
class Goal:
    """When a solve is over; see ``solve``."""

    tolerance: float
    max_steps: int

    def enter(self, residuals: list[float], found: list[float]) -> Outcome | None:
        """Enter residuals up to that at which the solve is over; how it ended, None if it goes on.

        By the same rules as the device, of which the last evaluations of a group know nothing.
        """
        for residual in found:
            residuals.append(residual)
            if not math.isfinite(residual):
                return Outcome.DIVERGED
            if residual <= self.tolerance:
                return Outcome.CONVERGED
            if len(residuals) == self.max_steps:
                return Outcome.MAX_STEPS
        return None


class Captures:
    """Solves in groups of K evaluations, and what was recorded of them.

    Args:
        size: K, at least 1.
        meter: see ``Recorder``.
    """

    def __init__(self, size: int, meter: Meter | None = None) -> None:
        if size < 1:
            raise ValueError(f"a group of {size} evaluations; it needs one at least")
        self.size = size
        self._meter = meter
        self._loops: OrderedDict[Hashable, _Loop] = OrderedDict()

    def forget(self) -> None:
        """Let go of all recordings."""
        for loop in self._loops.values():
            loop.forget()
        self._loops.clear()

    @staticmethod
    def held_bytes(sizes: SolveSizes, channels: int) -> int:
        """Bytes of what stays where it is, beside the history.

        The point and the injection, z and g of the newest iterate, and the best iterate; in the
        recording the image, a residual, a mixed point and a sparse product. Kept products are there
        twice, those of the newest and of the best iterate.

        Args:
            sizes: of the solve.
            channels: C, whose products are kept.
        """
        return (10 + 2 * channels) * sizes.state

    @torch.no_grad()
    def solve(
        self,
        fixed_point_map: FixedPointMap,
        z0: Tensor,
        solver: AnySolver,
        reduce: Reduce,
        *,
        tolerance: float,
        max_steps: int,
    ) -> Solution:
        """As ``solve``, which see; every rank must call it alike.

        Raises:
            TypeError: the map or the method cannot be solved in groups.
            ValueError: ``max_steps`` below 1.
        """
        asked: object = fixed_point_map
        if not isinstance(asked, GroupMap) or not isinstance(solver, GroupSolver):
            raise TypeError(
                f"{type(fixed_point_map).__name__} by {type(solver).__name__} cannot be solved in "
                "groups of evaluations"
            )
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}, a solve needs at least one evaluation")
        loop = self._loop(asked, z0, solver.in_groups(), reduce)
        return loop.solve(asked.arrays(), z0.detach(), Goal(tolerance, max_steps))

    def _loop(self, found: GroupMap, z0: Tensor, method: GroupMethod, reduce: Reduce) -> _Loop:
        arrays = *found.arrays(), z0
        shapes = tuple((a.shape, a.stride(), a.dtype, a.device) for a in arrays)
        key = type(found), found.constants(), shapes, method, reduce
        loop = self._loops.pop(key, None)
        if loop is None:
            recorder = Recorder(z0.device, self._meter)
            loop = _Loop(found, z0, method, reduce, self.size, recorder)
        self._loops[key] = loop
        while len(self._loops) > _KEPT:
            self._loops.popitem(last=False)
        return loop
