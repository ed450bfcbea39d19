"""Rollout: the steps of a solve, and what each of them adds to the loss of the network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distributed_ignn.comm.collectives import all_reduce_sum
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import NeuralSolverConfig
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.solvers.base import Iterate
from distributed_ignn.solvers.blocks import square_sum
from distributed_ignn.solvers.history import History
from distributed_ignn.solvers.neural import NeuralState
from distributed_ignn.training.learned.node_loss import node_distance, node_mixed_residual
from distributed_ignn.training.learned_solver import LearnedSolver


class Rollout:
    """Goes through K solver steps once and collects the loss of every step."""

    def __init__(
        self,
        learned: LearnedSolver,
        config: NeuralSolverConfig,
        comm: Communicator,
        target: Tensor,
        target_norm: float,
    ) -> None:
        self._config = config
        self._comm = comm
        self._target = target
        self._target_norm = target_norm
        self._solver = learned.training_solver(lambda tensor: all_reduce_sum(tensor, comm))

    def loss(self, cell: EquilibriumCell, z: Tensor, progress: float) -> tuple[Tensor, float]:
        """Return the loss to differentiate and its value; both are the same on every rank.

        The steps are those of a solve, safeguard included; only learned ones enter the loss.
        """
        state, best = self._solver.init(z, cell), None
        loss, value = z.new_zeros((), dtype=torch.float64), 0.0
        for k in range(self._config.steps):
            with torch.no_grad():
                evaluation = cell(z, self._solver.rider(state))
            residual = self._solver.observe(state, evaluation, self._comm.sum)
            if not math.isfinite(residual):
                break
            if best is None or residual < best.residual:
                best = Iterate(evaluation, residual)
            z = self._solver.advance(state, best)
            if state.alpha is None or state.beta is None:
                continue
            history = state.base.history
            term, term_value = self._step_loss(history, state.alpha, state.beta, z, k, progress)
            loss, value = loss + term.to(loss.device), value + term_value
            _detach_history(state)
        return loss, value

    def _step_loss(
        self, history: History, alpha: Tensor, beta: Tensor, point: Tensor, k: int, progress: float
    ) -> tuple[Tensor, float]:
        """Return the loss of the step to ``point`` and its value."""
        steps = self._config.steps
        weight = self._config.lambda1 * progress * 2.0 * (k + 1) / (steps * (steps + 1))
        fade = self._config.lambda3 * (1.0 - progress)
        if alpha.dim() == 2:
            distance, distance_value = node_distance(
                history, alpha, beta, point - self._target, self._comm
            )
            distance_value -= math.log(self._target_norm)
            mixed, mixed_value = node_mixed_residual(history, alpha, self._comm)
        else:
            distance, distance_value = self._distance(history, alpha, beta, point)
            mixed = _mixed_residual(history.ordered_gram().to(alpha.device), alpha)
            mixed_value = float(mixed.detach())
        value = weight * distance_value + fade * mixed_value
        return weight * distance + fade * mixed, value

    def _distance(
        self, history: History, alpha: Tensor, beta: Tensor, point: Tensor
    ) -> tuple[Tensor, float]:
        """log(||y - Z*|| / ||Z*||): a surrogate with its gradient in alpha, beta; and its value."""
        error = point - self._target
        with_points, with_residuals = history.dots(error)
        local = torch.cat([with_points, with_residuals, square_sum(error)[None]])
        sums = self._comm.sum(local.cpu()).to(alpha.device)
        held = alpha.numel()
        square = sums[-1].clamp_min(1e-300)
        points, residuals = sums[:held], sums[held : 2 * held]
        slope = (alpha * (points + beta.detach() * residuals)).sum()
        slope = slope + beta * (alpha.detach() * residuals).sum()
        return slope / square, 0.5 * math.log(float(square)) - math.log(self._target_norm)


def _mixed_residual(gram: Tensor, alpha: Tensor) -> Tensor:
    """log(||sum_i alpha_i G_i|| / ||G_k||) from the global Gram matrix, newest first."""
    square = torch.dot(alpha, gram @ alpha).clamp_min(1e-300)
    return 0.5 * (torch.log(square) - torch.log(gram[0, 0].clamp_min(1e-300)))


def _detach_history(state: NeuralState) -> None:
    """Let later steps see earlier compressed residuals as constants."""
    state.own = [block.detach() for block in state.own]
