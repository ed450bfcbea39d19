"""IGNN's weights (Gu et al., NeurIPS 2020): free matrices with bounded column sums."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed_ignn.config import ModelConfig
from distributed_ignn.models.cells.base import CellWeights
from distributed_ignn.models.constraints import largest_column_sum, project_columns_l1
from distributed_ignn.models.encoder import chosen_channels


class IgnnWeights(CellWeights):
    """W_c in f(Z) = relu(sum_c B_c Z W_c + b), columns of |W| summing to at most kappa / rho.

    After every step the stacked W is projected on that set. A learned kappa needs a derivative,
    which a projection does not have; then W = (kappa / rho) V and V is projected on columns of at
    most 1, so kappa scales every column that has reached its bound.

    The certified norm is max_ij |Z_ij| / w_i with the vector w of ``certified_growth``.

    Args:
        config: the model section.
        channels: number of propagation channels.
        growth: rho of the channels.
        graph_channels: see ``CellWeights``.
    """

    summary = "bounded column sums"
    unread = frozenset({"skew"})
    norm = "max"
    directed_norm = "max"
    projects = True

    def __init__(
        self, config: ModelConfig, channels: int, growth: float = 1.0, graph_channels: int = 1
    ) -> None:
        super().__init__(config, channels, growth, graph_channels)
        self._config = config
        self.weight = nn.Parameter(self._initial(channels, graph_channels))

    @property
    def radius(self) -> float:
        """What the columns of the parameter may sum to."""
        return 1.0 if self._config.learn_kappa else self.kappa.bound / self.growth

    def _initial(self, channels: int, graph_channels: int) -> Tensor:
        """[channels, D, D]; ``identity`` and ``signed`` share the bound among the channels.

        Among those that the injection uses, if it names some: what helps b helps Z. With W = k I
        the equilibrium of the linear map is (I - k A_hat)^-1 b, a low-pass filter of the graph, and
        with W = -k I it is (I + k A_hat)^-1 b, a high-pass one; ``signed`` has both, column by
        column, under the same bound.
        """
        width = self._config.hidden
        if self._config.init in ("identity", "signed"):
            used = chosen_channels(self._config.injection_channels, channels, graph_channels)
            start = torch.zeros(channels, width, width)
            diagonal = torch.ones(width)
            if self._config.init == "signed":
                diagonal[1::2] = -1.0
            start[list(used)] = torch.diag(diagonal) * (self.radius / len(used))
            return start
        drawn = [nn.init.xavier_uniform_(torch.empty(width, width)) for _ in range(channels)]
        return torch.stack(drawn)

    def forward(self) -> list[Tensor]:
        """See ``CellWeights``."""
        if self.kappa.offset is None:
            return list(self.weight.unbind(0))
        return list((self.weight * (self.kappa() / self.growth)).unbind(0))

    @torch.no_grad()
    def is_inside(self) -> bool:
        """See ``CellWeights``; sums of as many numbers as a column has."""
        if self._config.constraint == "none":
            return True
        stacked = self.weight.flatten(0, 1)
        slack = stacked.shape[0] * torch.finfo(stacked.dtype).eps
        return largest_column_sum(stacked) <= self.radius * (1.0 + slack)

    @torch.no_grad()
    def project(self) -> bool:
        """Bring the columns back inside their bound; True if that is switched on."""
        if self._config.constraint == "none":
            return False
        stacked = self.weight.flatten(0, 1)
        self.weight.copy_(project_columns_l1(stacked, self.radius).view_as(self.weight))
        return True

    @torch.no_grad()
    def present_contraction(self) -> float:
        """rho times the largest column sum that there is."""
        stacked = torch.stack(self()).double().flatten(0, 1)
        return self.growth * largest_column_sum(stacked)

    def contraction(self) -> float | None:
        """kappa, or None without the constraint."""
        return None if self._config.constraint == "none" else self.kappa.value()
