"""EIGNN's weights (Liu et al., NeurIPS 2021): a linear equilibrium with a positive kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed_ignn.config import ModelConfig
from distributed_ignn.models.activations import IDENTITY
from distributed_ignn.models.cells.base import CellWeights, spectral_norms

_EPSILON = 1e-12  # the authors' epsilon_F


class EignnWeights(CellWeights):
    """W_c = kappa g_c in the linear equilibrium Z = sum_c B_c Z W_c + b.

    g_c = F_c'F_c / (sum_k ||F_k'F_k||_F + epsilon), the paper's g(F) for one channel. The paper
    calls kappa gamma, and solves with an eigendecomposition of A_hat, which a large graph does
    not allow; the fixed point is the same, vec Z = (I - sum_c W_c' kron B_c)^-1 vec b.

    Certified: the Frobenius norms of the g_c sum to less than 1, so f contracts by kappa. Where
    every A_hat_c is symmetric, ||B_c||_2 <= 1 and the norm is Frobenius's. Otherwise the g_c are
    divided by rho as well, and the norm is max_i ||Z_i||_2 / w_i with the w of ``certified_growth``
    (rho = 1 and w = 1 for channels normalised by row):
    ||sum_c (B_c Z)_i W_c|| <= sum_c ||W_c||_2 (B_c w)_i max_k ||Z_k|| / w_k.

    Args:
        config: the model section.
        channels: number of propagation channels.
        growth: 1 for symmetric channels, else their rho.
        graph_channels: see ``CellWeights``.
    """

    summary = "a linear equilibrium with positive W"
    unread = frozenset({"skew"})
    activation = IDENTITY

    def __init__(
        self, config: ModelConfig, channels: int, growth: float = 1.0, graph_channels: int = 1
    ) -> None:
        super().__init__(config, channels, growth, graph_channels)
        width = config.hidden
        if config.init == "identity":
            start = torch.eye(width).repeat(channels, 1, 1)
        else:
            drawn = [nn.init.xavier_uniform_(torch.empty(width, width)) for _ in range(channels)]
            start = torch.stack(drawn)
        self.factor = nn.Parameter(start)

    def forward(self) -> list[Tensor]:
        """See ``CellWeights``; each W_c is symmetric and positive semidefinite."""
        gram = self.factor.mT @ self.factor
        total = torch.linalg.matrix_norm(gram).sum() + _EPSILON
        return list((gram * (self.kappa() / (self.growth * total))).unbind(0))

    @torch.no_grad()
    def present_contraction(self) -> float:
        """rho times the sum of the spectral norms, which Frobenius's bound from above."""
        return self.growth * float(spectral_norms(torch.stack(self())).sum())

    def contraction(self) -> float:
        """kappa."""
        return self.kappa.value()
