"""MIGNN's weights (Baker et al., ICML 2023): monotone instead of contracting.

Z = relu(sum_c B_c Z W_c + b) has exactly one solution where T = I - sum_c B_c kron W_c' is
strongly monotone: its symmetric part is at least m > 0. For undirected channels, normalised
symmetrically, B_c is symmetric with a spectrum in [-1, 1], so with W_c = S_c + K_c, symmetric and
skew,

    (T + T') / 2 = I - sum_c B_c kron S_c >= 1 - sum_c ||S_c||_2,

and the skew parts are free. Winston & Kolter's monotone form (NeurIPS 2020), W = (1 - m) I - C'C +
F - F', bounds S from above only. That is enough where the propagation matrix has no negative
eigenvalues; A_hat has some, so C'C is mapped to between 0 and 2 (1 - m) here,

    S = (1 - m) (I - C'C)(I + C'C)^-1 = (1 - m) (2 (I + C'C)^-1 - I),   ||S||_2 <= 1 - m,

which reaches every symmetric matrix with eigenvalues in (-(1 - m), 1 - m].

Splitting: f(Z) = relu(Z - t (T Z - b)). For symmetric D = I - t (T + T') / 2, skew
E = t (T' - T) / 2 and t <= 1,

    ||(D + E) x||^2 <= (1 - t m)^2 + t^2 (c + s^2),    s = sum_c ||K_c||_2,

because <x, E x> = 0. Here c bounds the cross term: the norm of the commutator S K - K S for one
channel (it vanishes for S = I), and 2 (1 - m) s in general. So f contracts in the Frobenius norm
for t = m / (m^2 + c + s^2), at most 1. m, s and c are those of the present weights, which are at
least as good as the bounds. The bound on s is built in like that on S: K = s * 2 X (I + X'X)^-1
with X = F - F' reaches every skew matrix of norm at most s.

Peaceman-Rachford splitting, which the paper also uses, applies (I + t T)^-1 at every step: an
eigendecomposition of A_hat or a further series of exchanges. It is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distributed_ignn.config import ModelConfig
from distributed_ignn.models.cells.base import CellWeights, spectral_norms
from distributed_ignn.models.maps import CellForm

_CLOSE = 0.1  # entries of C, times sqrt(D), for a start near the identity


@dataclass(frozen=True, slots=True)
class Splitting:
    """What the step and its contraction depend on.

    Args:
        symmetric: sum_c ||S_c||_2 = 1 - m, below 1.
        skew: s.
        cross: c.
    """

    symmetric: float
    skew: float
    cross: float

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> Splitting:
        """From W_c [D, D], in float64 on the CPU."""
        stacked = torch.stack(list(weights)).detach().double().cpu()
        symmetric, skew = (stacked + stacked.mT) / 2, (stacked - stacked.mT) / 2
        norm_symmetric = float(spectral_norms(symmetric).sum())
        norm_skew = float(spectral_norms(skew.mT @ skew).sqrt().sum())
        cross = 2.0 * norm_symmetric * norm_skew
        if len(weights) == 1:
            cross = min(cross, float(spectral_norms(symmetric @ skew - skew @ symmetric)[0]))
        return cls(norm_symmetric, norm_skew, cross)

    def step(self) -> float:
        """t, the step of least certified contraction."""
        m = 1.0 - self.symmetric
        return min(1.0, m / (m * m + self.cross + self.skew**2))

    def contraction(self, step: float) -> float:
        """The bound above on ||D + E||_2."""
        m = 1.0 - self.symmetric
        return math.sqrt((1.0 - step * m) ** 2 + step**2 * (self.cross + self.skew**2))


@dataclass(frozen=True, slots=True)
class SplitForm(CellForm):
    """A form whose step follows the weights."""

    def at(self, weights: Sequence[Tensor]) -> CellForm:
        """The same form with the step of these weights."""
        return CellForm(self.activation, Splitting.of(weights).step(), self.residual)


class MignnWeights(CellWeights):
    """W_c = S_c + K_c with sum_c ||S_c||_2 <= kappa = 1 - m and sum_c ||K_c||_2 <= skew.

    Several channels share both bounds by learned shares (a softmax). With a skew of 0 the plain
    map (t = 1) contracts by kappa: IGNN with a bound on the spectral norm, where IGNN's own bound
    on column sums allows norms up to sqrt(D) times smaller.

    Args:
        config: the model section.
        channels: number of propagation channels, all of them undirected.
        growth: 1, that of undirected channels.
        graph_channels: see ``CellWeights``.
    """

    summary = "monotone, bounded in the spectral norm"
    directed_norm = None
    fixed_form = False

    def __init__(
        self, config: ModelConfig, channels: int, growth: float = 1.0, graph_channels: int = 1
    ) -> None:
        super().__init__(config, channels, growth, graph_channels)
        if config.skew > 0.0:  # symmetric weights contract by kappa without a smaller step
            self.form = SplitForm(self.activation, residual=config.residual)
        self._bound = config.skew
        width = config.hidden
        spread = 1.0 / math.sqrt(width)
        close = _CLOSE if config.init == "identity" else 1.0
        self.cayley = nn.Parameter(torch.randn(channels, width, width) * (spread * close))
        self.skew = None
        if config.skew > 0.0:
            self.skew = nn.Parameter(torch.randn(channels, width, width) * (spread * _CLOSE))
        self.share = nn.Parameter(torch.zeros(channels)) if channels > 1 else None

    def forward(self) -> list[Tensor]:
        """See ``CellWeights``."""
        identity = torch.eye(self.cayley.shape[-1]).to(self.cayley)
        weight = (2.0 * _inverse(identity + _gram(self.cayley)) - identity) * self.kappa()
        if self.skew is not None:
            x = self.skew - self.skew.mT
            weight = weight + 2.0 * self._bound * (x @ _inverse(identity + _gram(x)))
        if self.share is not None:
            weight = weight * torch.softmax(self.share, dim=0)[:, None, None]
        return list(weight.unbind(0))

    def present_contraction(self) -> float:
        """The same: the step follows the present weights."""
        return self.contraction()

    @torch.no_grad()
    def contraction(self) -> float:
        """The bound of the present step, in the Frobenius norm."""
        splitting = Splitting.of(self())
        return splitting.contraction(splitting.step())


def _gram(x: Tensor) -> Tensor:
    return x.mT @ x


def _inverse(positive: Tensor) -> Tensor:
    """Of a symmetric positive definite matrix [..., D, D]; itself where it is not finite."""
    if not bool(torch.isfinite(positive).all()):
        return positive
    return torch.cholesky_inverse(torch.linalg.cholesky(positive))
