"""Anderson acceleration with one vector of weights for the whole graph.

Walker & Ni (2011), Algorithm AA, in the constrained form: alpha minimises ||sum_i alpha_i g_i||
with sum(alpha) = 1, from one globally reduced Gram matrix, so that every rank mixes its rows the
same way. A regularised, scale-free system; a restart instead of a crash when it is singular or
when the residual grows.

Entering an evaluation into the history and mixing read and write a dozen arrays as large as a
point, and the last evaluation of a solve, in training every second or third, needs neither. So
where points are large an evaluation is judged first, by two sums of squares that the map finds on
its way, and entered only if the solve goes on, at the cost of a second reduction. Where they are
small, one reduction for all is worth more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.device.triton_seam import triton_kernels_for
from distributed_ignn.solvers.anderson_ring import GROWTH_LIMIT, LARGEST_WEIGHT, GroupAnderson
from distributed_ignn.solvers.base import (
    Evaluation,
    FixedPointMap,
    Iterate,
    Reduce,
    SolveSizes,
    SummingMap,
    relative_residual,
)
from distributed_ignn.solvers.blocks import Rows, residual_squares
from distributed_ignn.solvers.history import History
from distributed_ignn.solvers.small_system import SmallSystem

DEFERRED_FROM = 1 << 22
"""Entries of the points of all ranks from which on an evaluation is judged before it is entered."""


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """An evaluation that has been judged and not entered.

    Args:
        evaluation: point and image.
        square: ||f(z) - z||^2 over all ranks.
        reduce: sums over ranks.
    """

    evaluation: Evaluation
    square: float
    reduce: Reduce


@dataclass(slots=True, eq=False)
class AndersonState:
    """History, last residual, and how often the method had to start over.

    Args:
        history: the last iterates.
        residual: relative residual of the newest one.
        restarts: of the history.
        left_best: residual of the best iterate that a restart has gone back to.
        defers: whether evaluations are judged before they are entered.
        waiting: the one that is to be entered.
        begun: ||g||^2 of an iterate that the history has begun with, which ``system`` has not seen;
            NaN where nobody knows it yet.
        system: the weights of the next step, where a GPU has found them.
        alpha: those weights [m].
    """

    history: History
    residual: float = float("inf")
    restarts: int = 0
    left_best: float = float("inf")
    defers: bool = False
    waiting: Waiting | None = None
    begun: float | None = None
    system: SmallSystem | None = None
    alpha: Tensor | None = None


def anderson_weights(gram: Tensor, regularization: float) -> Tensor | None:
    """Weights [m] that minimise alpha' (gram + lambda diag(gram)) alpha with sum(alpha) = 1.

    Args:
        gram: float64 [m, m], <g_i, g_j> summed over ranks.
        regularization: lambda; relative to each residual's own square, hence scale-free.

    Returns:
        The weights, or None where the system is singular or its solution useless.
    """
    scale = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
    correlation = gram / torch.outer(scale, scale)
    correlation.diagonal().add_(regularization)
    solution, info = torch.linalg.solve_ex(correlation, 1.0 / scale)
    alpha = solution / scale
    total = alpha.sum()
    alpha = alpha / total
    usable = int(info) == 0 and bool(torch.isfinite(alpha).all())
    return alpha if usable and float(alpha.abs().max()) <= LARGEST_WEIGHT else None


class Anderson:
    """z_{k+1} = sum_i alpha_i (z_i + beta g_i) over the last M + 1 iterates.

    Args:
        memory: M, at least 1.
        beta: mixing of the residual, 1 is the plain method.
        regularization: see ``anderson_weights``.
        storage: number format of the past iterates, see ``History``; None for that of the points.
        num_nodes: rows of all ranks, which say whether points are large; 0 if they are not.
        judge_first: whether evaluations are judged before they are entered, however small they are.
    """

    def __init__(
        self,
        memory: int = 5,
        beta: float = 1.0,
        regularization: float = 1e-10,
        storage: torch.dtype | None = None,
        num_nodes: int = 0,
        *,
        judge_first: bool = False,
    ) -> None:
        self.memory = memory
        self.storage = storage
        self.beta = beta
        self.regularization = regularization
        self.num_nodes = num_nodes
        self.judge_first = judge_first

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap | None = None) -> AndersonState:
        """An empty history."""
        defers = self.judge_first or self.num_nodes * z0.shape[1] >= DEFERRED_FROM
        asked: object = fixed_point_map
        if defers and isinstance(asked, SummingMap):
            asked.sum_squares()
        return AndersonState(History(self.memory, self.storage), defers=defers)

    def held_bytes(self, sizes: SolveSizes) -> dict[str, int]:
        """The newest residual, the image of the point before, and the history."""
        points = 2 if sizes.steps > 1 else 0
        history = History.held_bytes(sizes, self.memory, self.storage)
        return {"solve": points * sizes.state, "history": history}

    def moved_bytes(self, sizes: SolveSizes) -> float:
        """Every array of the history is read twice: by the dot products and by the mixing."""
        return History.moved_bytes(sizes, self.memory, self.storage)

    def in_groups(self) -> GroupAnderson:
        """See ``GroupSolver``."""
        return GroupAnderson(self.memory, self.beta, self.regularization, self.storage)

    def rider(self, state: AndersonState) -> None:
        """Nothing travels."""

    def observe(self, state: AndersonState, evaluation: Evaluation, reduce: Reduce) -> float:
        """The new row of the Gram matrix and ||f(z)||^2, reduced together.

        Where evaluations are judged first, ||f(z) - z||^2 and ||f(z)||^2 alone.
        """
        if state.defers:
            return self.judge(state, evaluation, reduce)
        sums = reduce(state.history.push_with_image(evaluation.point, evaluation.image)).cpu()
        return self.record(state, sums[:-1], float(sums[-1]))

    def record(self, state: AndersonState, dots: Tensor, image_square: float) -> float:
        """Enter reduced numbers and return the relative residual."""
        state.history.set_newest_gram(dots)
        state.residual = relative_residual(float(dots[0]), image_square)
        return state.residual

    @staticmethod
    def judge(state: AndersonState, evaluation: Evaluation, reduce: Reduce) -> float:
        """The relative residual of an evaluation, which then waits to be entered."""
        squares = evaluation.squares
        if squares is None:
            squares = residual_squares(evaluation.point, evaluation.image)
        useless = None if state.system is None else state.system.useless
        if useless is None:
            square, image_square = reduce(squares).tolist()
        else:
            restarted, square, image_square = reduce(torch.cat([useless, squares])).tolist()
            Anderson._note_restart(state, restarted > 0.0)
        state.waiting = Waiting(evaluation.lasting(), square, reduce)
        state.residual = relative_residual(square, image_square)
        return state.residual

    @staticmethod
    def _note_restart(state: AndersonState, restarted: bool) -> None:
        """Follow what a GPU has decided about the last step."""
        if state.system is not None:
            state.system.useless = None
        if restarted:
            state.history.forget_all_but_newest()
            state.restarts += 1

    def catch_up(self, state: AndersonState, correction: Rows | None = None) -> None:
        """Enter what waits, if anything does; one reduction, but none for a first iterate.

        Args:
            state: of the solve.
            correction: what an estimate adds to the image.
        """
        waiting, state.waiting = state.waiting, None
        if waiting is None:
            return
        state.alpha = None
        found, history = waiting.evaluation, state.history
        if len(history) == 0:
            square = waiting.square if correction is None else math.nan
            history.begin(found.point, found.image, correction, square)
            state.begun = square
            return
        dots = waiting.reduce(history.enter(found.point, found.image, correction))
        if not self._weigh_there(state, dots):
            history.set_newest_gram(dots.cpu())

    def _weigh_there(self, state: AndersonState, dots: Tensor) -> bool:
        """Find the weights where the reduced ``dots`` are; False where the host has to."""
        kernels = triton_kernels_for("triton_steps", dots, torch.float64)
        if kernels is None or self.beta != 1.0:
            return False
        held = len(state.history)
        if state.system is None:
            state.system = SmallSystem(kernels, self.memory, self.regularization, dots)
        if state.begun is not None:
            state.system.begin(dots[held] if math.isnan(state.begun) else state.begun)
            state.begun = None
            state.history.gram = torch.zeros(1, 1, dtype=torch.float64)  # known, and not here
        state.alpha = state.system.weights(dots, held)
        return True

    def advance(self, state: AndersonState, best: Iterate) -> Tensor:
        """The mixed point, or a restart where the history misleads or is singular."""
        self.catch_up(state)
        if self.has_grown(state, best):
            return self.go_back(state, best)
        alpha = self.weights(state)
        if alpha is None:
            return self.start_over(state)
        return state.history.mix(alpha, self.beta)

    def weights(self, state: AndersonState) -> Tensor | None:
        """alpha of the current history, newest first."""
        if len(state.history) == 1:
            return torch.ones(1, dtype=torch.float64)  # whatever its Gram matrix
        if state.alpha is not None:
            return state.alpha
        return anderson_weights(state.history.ordered_gram(), self.regularization)

    def has_grown(self, state: AndersonState, best: Iterate) -> bool:
        """Whether the residual is well past the best one."""
        return state.residual > GROWTH_LIMIT * best.residual

    def go_back(self, state: AndersonState, best: Iterate) -> Tensor:
        """Restart from the best iterate's image; Picard's step where that has been tried.

        The residual of a contraction may grow for a while in this norm, so the best iterate's
        image can itself look bad: going back to it twice would repeat the same steps for ever.
        """
        if best.residual >= state.left_best:
            return self.start_over(state)
        state.left_best = best.residual
        state.history.clear()
        if state.system is not None:
            state.system.useless = None
        state.restarts += 1
        return best.image

    def start_over(self, state: AndersonState) -> Tensor:
        """Forget all but the newest iterate and take Picard's step from it."""
        state.history.forget_all_but_newest()
        if state.system is not None:
            state.system.forget_all_but_newest()
        state.restarts += 1
        return state.history.mix(torch.ones(1, dtype=torch.float64), 1.0)
