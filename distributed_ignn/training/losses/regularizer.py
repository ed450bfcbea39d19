"""Penalties on the map itself, added to the training loss.

Jacobian (Bai, Koltun & Kolter 2021, "Stabilizing Equilibrium Models by Jacobian Regularization"):
the mean over entries of ||J||_F^2, J = df/dZ of the plain map at Z*, by Hutchinson's estimate
||J e||^2 with random signs e. J e = m * sum_c (B_c e) W_c, so B_c e is a constant of the step: one
exchange forward, none backward. m = phi' at Z* is held constant; ReLU's has no derivative anyway.

Spectral (Yoshida & Miyato 2017, "Spectral Norm Regularization"): half the squared spectral norm of
every W_c, by power iteration; each rank adds its share of that one number.

Letters: n nodes, O owned nodes, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import TrainConfig
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.dropout import NodeDropout, Stream
from distributed_ignn.models.shard_model import ShardModel

_POWER_STEPS = 20


class Regularizer:
    """Both penalties; one whose weight is 0 costs nothing.

    Args:
        model: whose map is penalised.
        config: the weights of the penalties.
        shard: this rank's nodes.
        comm: this rank's communicator.
        seed: of the random signs.
    """

    def __init__(
        self,
        model: ShardModel,
        config: TrainConfig,
        shard: GraphShard,
        comm: Communicator,
        seed: int,
    ) -> None:
        self._model = model
        self._config = config
        self._num_nodes = shard.num_nodes
        self._nodes = shard.owned_nodes.to(comm.device)
        self._ranks = comm.world_size
        self._seed = seed
        self._coins = NodeDropout(0.5, Stream.PENALTY)

    def penalty(self, state: Tensor, step: int) -> Tensor | float:
        """This rank's share of the weighted penalties; the shares of all ranks sum to them.

        Args:
            state: Z* [O, D] of this training step.
            step: seeds the random signs.
        """
        total: Tensor | float = 0.0
        if self._config.jacobian_weight > 0.0:
            total = total + self._config.jacobian_weight * self.jacobian(state, step)
        if self._config.spectral_weight > 0.0:
            total = total + self._spectral(self._model.channel_weights())
        return total

    def row_penalty(
        self,
        state: Tensor,
        probes: Sequence[Tensor],
        weights: Sequence[Tensor],
        row_share: float,
    ) -> Tensor | float:
        """As ``penalty``, from some rows alone.

        Args:
            state: Z* of the rows, [R, D].
            probes: ``probes`` of the step, their rows [R, D] per channel.
            weights: W_c [D, D], differentiable.
            row_share: 1 over the number of rows of all ranks.
        """
        total: Tensor | float = 0.0
        if self._config.jacobian_weight > 0.0:
            square = self._jacobian_square(state, probes, weights)
            total = total + self._config.jacobian_weight * square * row_share / state.shape[1]
        if self._config.spectral_weight > 0.0:
            total = total + self._spectral(weights)
        return total

    def _spectral(self, weights: Sequence[Tensor]) -> Tensor:
        """This rank's share of the weighted spectral penalty."""
        half = 0.5 * torch.stack([spectral_norm(weight) for weight in weights]).square().sum()
        return self._config.spectral_weight * half / self._ranks

    def jacobian(self, state: Tensor, step: int) -> Tensor:
        """This rank's share of ||J e||^2 / (n D), differentiable in the weights."""
        weights = self._model.channel_weights()
        square = self._jacobian_square(state, self._propagated_signs(step, weights[0]), weights)
        return square / (self._num_nodes * state.shape[1])

    def probes(self, step: int) -> list[Tensor]:
        """B_c e [O, D] per channel for the random signs e of a step, by one exchange.

        Nothing where no penalty asks for them.
        """
        if self._config.jacobian_weight == 0.0:
            return []
        return self._propagated_signs(step, self._model.channel_weights()[0])

    def _propagated_signs(self, step: int, weight: Tensor) -> list[Tensor]:
        coins = self._coins.mask(self._seed, step, self._nodes, weight.shape[0])
        return self._model.layer.products(coins.to(weight) * 2.0 - 1.0)

    def _jacobian_square(
        self, state: Tensor, probes: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> Tensor:
        """||J e||^2 of the rows at hand."""
        pairs = zip(probes, weights, strict=True)
        image = torch.stack([probe @ weight for probe, weight in pairs]).sum(dim=0)
        slope = self._model.layer.form.slope(state.detach())
        return (image if slope is None else image * slope).square().sum()


def spectral_norm(weight: Tensor) -> Tensor:
    """||W||_2 of ``weight`` [D, D] by power iteration, differentiable; a bound from below.

    The starting vector is the same in every call and on every rank.
    """
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(weight.shape[1], generator=generator, dtype=torch.float64)
        right = start.to(weight)
        for _ in range(_POWER_STEPS):
            left = torch.nn.functional.normalize(weight @ right, dim=0)
            right = torch.nn.functional.normalize(weight.T @ left, dim=0)
    return torch.dot(left, weight @ right)
