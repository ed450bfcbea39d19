"""The learned solver (IGNN-Solver, Algorithm 1).

    Z0 = h(b);  G_k = f(Z_k) - Z_k;  Z_{k+1} = sum_i alpha_i (Z_i + beta_i(G_i)),  sum(alpha) = 1

Three parts, each of which can be left out:

- h, the initialiser (``initialiser.py``);
- beta, the error estimator (``estimator.py``): a tiny linear graph network on the compressed
  residual, where the paper has a number; Z_i + beta_i(G_i) is its guess at Z*;
- s, a network that corrects alpha and scales beta (``predictors.py``), on top of Anderson's
  weights, which minimise the norm of the mixed estimates from one globally reduced Gram matrix.

Without any of them the method is Anderson's. s reads the history of residuals: each row is divided
by the global root mean square and compressed from D to p numbers; a graph layer on the sparsified
graph A_s mixes them; the mean over all nodes, the normalised Gram matrix and the step enter two
small heads. Their output is a zero-sum shift of alpha and a change of beta's scale, zero untrained.

Where nothing is left to s an evaluation is judged first and estimated only if the solve goes on
(see ``anderson.py``), so the last one of a solve costs no estimate: one reduction per iteration,
and a second one from the second estimate on. With s one reduction carries all. One exchange of D
columns, and one of p columns for every hop of an estimate; what s compresses rides on the exchange
of the next evaluation, so its graph layer sees the neighbours one step late. All of it is the same
however the graph is cut.

An estimate costs a good part of an evaluation. Where one more application of the map alone will do,
as far as the fit has seen what that leaves of the distance, the step is that: the image.

Letters: O owned rows, n nodes, D columns, M memory, m <= M + 1 iterates held, p compressed width,
H hidden width of s, K steps s is trained for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distributed_ignn.solvers.anderson import Anderson, AndersonState
from distributed_ignn.solvers.base import (
    Evaluation,
    FixedPointMap,
    Iterate,
    Reduce,
    SolveSizes,
    relative_residual,
)
from distributed_ignn.solvers.blocks import Rows, square_sum
from distributed_ignn.solvers.estimator import ErrorEstimator, StructuredMap, structured
from distributed_ignn.solvers.predictors import Evidence, Predictor
from distributed_ignn.solvers.reduced import ReducedBasis

MAX_STRIKES = 2  # learned steps that may fail before Anderson finishes the solve alone
_GROWTH_LIMIT = 2.0  # an estimated step may let the residual grow once, up to this factor
_SAFE = 0.8  # of the tolerance, which a plain step must be expected to reach
_PACE_STEPS, _PACE = 4, 0.5  # so many estimated steps must bring the residual down by this factor


@dataclass(slots=True, eq=False)
class NeuralState:
    """Anderson's state and the compressed residuals.

    Args:
        base: Anderson's state; where beta is an operator its history holds H_i instead of G_i.
        map: what is solved, where the estimator needs it.
        basis: of its weights, from the first estimate on.
        own: compressed residuals [O, p], newest first.
        neighbours: A_s times them, newest first, one step behind ``own``.
        nodes: features of the owned nodes [O, H], or None where the network has no say.
        pending: the compressed residual that has not been exchanged yet, or None.
        node_mean: mean of ``nodes`` over all n nodes [H], or None likewise.
        norms: ||g_k|| of the evaluations since the last restart.
        norm: ||g_k|| over all ranks, 0 before the first evaluation.
        decay: ||g_k|| / ||g_{k-1}||.
        step: evaluations observed.
        strikes: learned steps that did not reduce the residual.
        stalled: whether the last estimated step let the residual grow and was forgiven.
        estimated: whether the newest entry of the history is an estimate.
        failed: whether the last learned step did not reduce the residual.
        learned: whether the last ``advance`` used an estimate or s.
        plain: whether a step without estimate has been taken because it would do.
        alpha, beta: what s gave the last ``advance``, beta as a float64 scalar; None without it.
    """

    base: AndersonState
    map: StructuredMap | None = None
    basis: ReducedBasis | None = None
    own: list[Tensor] = field(default_factory=list)
    neighbours: list[Tensor] = field(default_factory=list)
    nodes: Tensor | None = None
    pending: Tensor | None = None
    node_mean: Tensor | None = None
    norms: list[float] = field(default_factory=list)
    norm: float = 0.0
    decay: float = 1.0
    step: int = 0
    strikes: int = 0
    stalled: bool = False
    estimated: bool = False
    failed: bool = False
    learned: bool = False
    plain: bool = False
    alpha: Tensor | None = None
    beta: Tensor | None = None


class NeuralSolver:
    """The learned solver as a method for ``solve``.

    Safeguard: a learned step that does not reduce the global residual is a strike; an estimated one
    is forgiven if the next does. With the estimator the solve then restarts from the image of its
    best iterate; a step of s alone is taken back and replaced by the one that Anderson takes from
    the same history. After two strikes, or four estimated steps that together do not halve the
    residual, Anderson finishes the solve alone. From step K on s is silent.

    Args:
        predictor: s, or None.
        num_nodes: n over all ranks.
        regularization: of Anderson's system.
        reduce_grad: differentiable sum over ranks, for training s; None for inference.
        estimator: beta, or None for a number.
        memory: M, where s does not say.
        storage: see ``Anderson``.
        safeguard: whether steps are judged at all; without it, none is ever taken back.
        first_step: which of the estimator's steps the first evaluation is.
        tolerance: relative residual that a solve is to reach. Once in a solve, where the map alone
            is expected to get there, nothing is estimated; 0 estimates every step.
    """

    def __init__(
        self,
        predictor: Predictor | None,
        num_nodes: int,
        regularization: float,
        reduce_grad: Callable[[Tensor], Tensor] | None = None,
        estimator: ErrorEstimator | None = None,
        memory: int = 5,
        first_step: int = 0,
        storage: torch.dtype | None = None,
        *,
        safeguard: bool = True,
        tolerance: float = 0.0,
    ) -> None:
        self.first_step = first_step
        self.tolerance = tolerance
        self.safeguard = safeguard
        self.predictor = predictor
        self.estimator = estimator
        self.num_nodes = num_nodes
        memory = memory if predictor is None else predictor.shape.memory
        # what s reads of an evaluation is reduced with what it is judged by
        large = num_nodes if predictor is None else 0
        judge_first = predictor is None and estimator is not None
        self.anderson = Anderson(
            memory, 1.0, regularization, storage, large, judge_first=judge_first
        )
        self._reduce_grad = reduce_grad

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap | None = None) -> NeuralState:
        """An empty history.

        Raises:
            UserError: beta needs a map with weights and a graph, and this one has none.
        """
        state = NeuralState(self.anderson.init(z0, fixed_point_map))
        if self.estimator is not None:
            state.map = structured(fixed_point_map)
        return state

    def held_bytes(self, sizes: SolveSizes) -> dict[str, int]:
        """Anderson's; what the estimator holds, ``ErrorEstimator.held_bytes`` says."""
        return self.anderson.held_bytes(sizes)

    def moved_bytes(self, sizes: SolveSizes) -> float:
        """Anderson's."""
        return self.anderson.moved_bytes(sizes)

    def rider(self, state: NeuralState) -> Tensor | None:
        """The newest compressed residual, unless the network has had its last say or reads none."""
        if self.predictor is None or state.pending is None or not self.predictor.rides:
            return None
        return state.pending.detach() if self._network_decides(state) else None

    def _network_decides(self, state: NeuralState) -> bool:
        """Whether s has a say in the step after the next evaluation."""
        if self.predictor is None or state.strikes >= MAX_STRIKES:
            return False
        return state.step < self.predictor.shape.steps

    def observe(self, state: NeuralState, evaluation: Evaluation, reduce: Reduce) -> float:
        """Gram row, ||G||^2, ||f(z)||^2 and the sum over nodes for s, reduced together.

        Where evaluations are judged first, the squares alone.
        """
        if state.base.defers:
            return self._judge_first(state, evaluation, reduce)
        own = self._push(state, evaluation.point, evaluation.image)
        state.nodes = self._read_nodes(state, evaluation.ridden)
        node_sum = None if state.nodes is None else state.nodes.sum(dim=0)
        if node_sum is not None and self._reduce_grad is not None:
            sums = reduce(own).cpu()
            state.node_mean = self._reduce_grad(node_sum) / self.num_nodes
        elif node_sum is not None:
            sums = reduce(torch.cat([node_sum.double(), own])).cpu()
            state.node_mean = (sums[: node_sum.numel()] / self.num_nodes).to(node_sum)
            sums = sums[node_sum.numel() :]
        else:
            sums = reduce(own).cpu()
            state.node_mean = None
        accepted = state.base.residual
        state.base.history.set_newest_gram(sums[:-2])
        residual_square, image_square = max(float(sums[-2]), 0.0), float(sums[-1])
        residual = relative_residual(residual_square, image_square)
        state.base.residual = residual
        return self._judged(state, residual, residual_square, accepted)

    def _judge_first(self, state: NeuralState, evaluation: Evaluation, reduce: Reduce) -> float:
        """Judge an evaluation that is entered later; its relative residual."""
        accepted = state.base.residual
        residual = self.anderson.judge(state.base, evaluation, reduce)
        state.estimated = self._estimates(state)
        waiting = state.base.waiting
        square = 0.0 if waiting is None else max(waiting.square, 0.0)
        return self._judged(state, residual, square, accepted)

    def _judged(self, state: NeuralState, residual: float, square: float, accepted: float) -> float:
        """Keep the iterate or not, by ||G||^2 over all ranks; the residual that the loop sees."""
        self._judge(state, math.sqrt(square), accepted)
        if state.failed and self.estimator is not None and not math.isfinite(residual):
            # the step is about to be taken back: no reason to end the solve
            return sys.float_info.max
        return residual

    def _push(self, state: NeuralState, z: Tensor, image: Tensor) -> Tensor:
        """Enter the iterate; this rank's Gram row, ||G||^2 and ||f(z)||^2, float64."""
        history = state.base.history
        state.estimated = self._estimates(state)
        if state.estimated:
            square = square_sum(image, lambda rows: image[rows] - z[rows])[None]
            dots = history.enter(z, image, self._correction(state, z, image, state.step))
        else:
            dots = history.push(z, image)
            square = dots[:1]
        return torch.cat([dots, square, square_sum(image)[None]])

    def _estimates(self, state: NeuralState) -> bool:
        """Whether an evaluation is entered with an estimate."""
        known = self.estimator is not None and state.map is not None
        return known and state.strikes < MAX_STRIKES

    def _correction(self, state: NeuralState, z: Tensor, image: Tensor, step: int) -> Rows:
        """What the estimate adds to the image; ``step`` counts evaluations of the solve from 0."""
        if self.estimator is None or state.map is None:
            raise ValueError("there is no estimator")

        def residual(rows: slice) -> Tensor:
            return image[rows] - z[rows]

        if state.basis is None:
            state.basis = self.estimator.basis(state.map)
        columns = self.estimator.columns(state.map, state.basis, residual, image)
        step += self.first_step
        return self.estimator.correction(state.map, state.basis, columns, image, step)

    def _catch_up(self, state: NeuralState) -> None:
        """Enter what waits, if anything does."""
        waiting = state.base.waiting
        if waiting is None:
            return
        found, correction = waiting.evaluation, None
        if state.estimated:
            # the step has been counted already
            correction = self._correction(state, found.point, found.image, state.step - 1)
        self.anderson.catch_up(state.base, correction)

    def _plain_step(self, state: NeuralState) -> Tensor | None:
        """The newest image, once in a solve, where that is expected to be close enough; else None.

        The history begins anew: plain residuals and estimates do not mix well. By the residual over
        all ranks, so every rank decides alike.
        """
        waiting, residual = state.base.waiting, state.base.residual
        if waiting is None or self.estimator is None or not state.estimated or state.plain:
            return None
        expected = residual * self.estimator.known_rate()
        if residual <= self.tolerance or expected > _SAFE * self.tolerance:
            return None
        state.plain = True
        state.base.history.clear()
        state.base.waiting = None
        return waiting.evaluation.image

    def _read_nodes(self, state: NeuralState, ridden: Tensor | None) -> Tensor | None:
        """Features of owned nodes [O, H]; None at the first step, where no scale is known yet."""
        if self.predictor is None or not self._network_decides(state) or state.norm == 0.0:
            return None
        keep = self.predictor.shape.slots
        _, newest = state.base.history.newest()
        scale = state.norm / math.sqrt(self.num_nodes * newest.shape[1])
        if ridden is not None:
            state.neighbours = [ridden, *state.neighbours][:keep]
        state.pending = self.predictor.squeeze(newest / scale)
        state.own = [state.pending, *state.own][:keep]
        return self.predictor.read(state.own, state.neighbours)

    def _judge(self, state: NeuralState, norm: float, accepted: float) -> None:
        """Keep the new iterate, or count a strike if a learned step led to no smaller residual.

        ``norm`` is global, so every rank judges alike; ``accepted`` is the relative residual that
        a taken back step goes back to.
        """
        state.step += 1
        grown = self.safeguard and state.learned and not norm < state.norm
        forgiven = state.estimated and not state.stalled and norm < _GROWTH_LIMIT * state.norm
        state.failed, state.stalled = grown and not forgiven, grown and forgiven
        state.norms.append(norm)
        if self.safeguard and state.estimated and self._is_slow(state.norms):
            state.failed, state.strikes = True, MAX_STRIKES - 1  # the next line counts one more
        if not state.failed:
            state.decay = norm / state.norm if state.norm > 0.0 else 1.0
            state.norm = norm
            return
        state.strikes += 1
        if state.node_mean is not None:
            state.own = state.own[1:]
        state.nodes, state.node_mean, state.pending = None, None, None
        if self.estimator is None:
            state.base.history.drop_newest()
            state.base.residual = accepted

    @staticmethod
    def _is_slow(norms: list[float]) -> bool:
        """Whether the last estimated steps gained less than Anderson's usually do."""
        return len(norms) > _PACE_STEPS and norms[-1] > _PACE * norms[-1 - _PACE_STEPS]

    def advance(self, state: NeuralState, best: Iterate) -> Tensor:
        """The mixed point, or Anderson's step where it is safer."""
        state.alpha, state.beta, state.learned = None, None, False
        if state.failed and self.estimator is not None:
            state.own, state.neighbours, state.pending, state.norms = [], [], None, []
            state.base.waiting = None  # it failed
            return self._go_back(state.base, best)
        plain = self._plain_step(state)
        if plain is not None:
            return plain
        self._catch_up(state)
        found = self._learned_weights(state, best)
        if found is not None:
            state.alpha, state.beta, state.learned = *found, True
            return state.base.history.mix(state.alpha, float(state.beta.detach()))
        z = self._anderson_step(state.base, best)
        # without a history it went back to an image, which no estimate is in
        state.learned = state.estimated and len(state.base.history) > 0
        return z

    def _anderson_step(self, base: AndersonState, best: Iterate) -> Tensor:
        """Mix by Anderson's weights; without the safeguard, however the residual has grown."""
        alpha = None if self.safeguard else self.anderson.weights(base)
        if alpha is None:
            return self.anderson.advance(base, best)
        return base.history.mix(alpha, self.anderson.beta)

    def _go_back(self, base: AndersonState, best: Iterate) -> Tensor:
        """Restart from the best iterate's image, also where that was tried before.

        Anderson would then step on from the newest iterate; here that is the failed one, and its
        entry in the history an estimate. Strikes bound how often it happens.
        """
        base.left_best = best.residual
        base.history.clear()
        base.restarts += 1
        return best.image

    def _learned_weights(self, state: NeuralState, best: Iterate) -> tuple[Tensor, Tensor] | None:
        """Corrected alpha ([m], or [O, m] per node) and beta; None where s has no say."""
        if self.predictor is None or state.nodes is None or state.node_mean is None:
            return None
        grown = self.safeguard and self.anderson.has_grown(state.base, best)
        if state.strikes >= MAX_STRIKES or grown:
            return None
        anderson = self.anderson.weights(state.base)
        if anderson is None:
            return None
        gram = state.base.history.ordered_gram()
        evidence = Evidence(state.node_mean, gram, state.step - 1, state.decay, anderson)
        return self.predictor.correct(state.nodes, evidence)
