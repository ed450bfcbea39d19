"""What a cell is: weights made from parameters so that the equilibrium exists and can be found.

A cell brings two things: how the W_c of Z = phi(sum_c B_c Z W_c + b) follow from its parameters,
differentiably, and the form of the map (``models/maps.py``). Everything else, the solves, the
implicit gradient, warm starts, riders and the exchange, is the same for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distributed_ignn.config import ModelConfig
from distributed_ignn.models.activations import RELU, Activation
from distributed_ignn.models.maps import CellForm

Norm = Literal["max", "rows", "frobenius"]

_START = 3.0  # sigmoid(3) = 0.953: a learned kappa starts close to its upper bound


class Kappa(nn.Module):
    """kappa: a constant, or learned below an upper bound: upper * sigmoid(3 + offset).

    The offset starts at zero, so weight decay pulls kappa back to where it started, not to zero.

    Args:
        upper: the bound, in (0, 1).
        learned: whether kappa is a parameter.
    """

    scale: Tensor

    def __init__(self, upper: float, learned: bool) -> None:
        super().__init__()
        self.upper = upper
        # a buffer, so that weights are saved and loaded with the bound they were trained under
        self.register_buffer("scale", torch.ones(1))
        self.offset = nn.Parameter(torch.zeros(1)) if learned else None

    @property
    def bound(self) -> float:
        """The largest value that kappa may have."""
        return self.upper * float(self.scale)

    def tighten(self, factor: float) -> None:
        """Multiply the bound by ``factor``."""
        self.scale.mul_(factor)

    def forward(self) -> Tensor | float:
        """kappa: [1] where it is learned, else a number."""
        if self.offset is None:
            return self.bound
        return self.bound * torch.sigmoid(_START + self.offset)

    @torch.no_grad()
    def value(self) -> float:
        """kappa as a number."""
        return float(self())


class CellWeights(nn.Module, ABC):
    """The recurrent weights of the model, replicated on every rank.

    Args:
        config: the model section.
        channels: number of propagation channels.
        growth: see the attribute.
        graph_channels: how many channels, from the first, are the dataset's own graph.

    Attributes:
        summary: for the help.
        activation: phi.
        norm: in which the contraction is certified; of a class, where every A_hat_c is symmetric.
        directed_norm: the same where one is not, because the graph is directed or normalised by
            row; None where the cell needs symmetric ones.
        projects: whether ``project`` keeps the bound, so that the weights can do without it.
        unread: keys of the section ``model`` for other cells, which have no effect on this one.
        fixed_form: whether the map's form is the same whatever the weights.
        form: activation, step and residual of the map.
        growth: rho of the graph that the weights are used on, 1 where the norm is Frobenius's.
        vector: the w [O] of ``norm``, float64; None in Frobenius's.
        kappa: what the weights are bounded by.
    """

    summary: ClassVar[str] = ""
    activation: ClassVar[Activation] = RELU
    norm: Norm = "frobenius"
    directed_norm: ClassVar[Norm | None] = "rows"
    projects: ClassVar[bool] = False
    unread: ClassVar[frozenset[str]] = frozenset()
    fixed_form: ClassVar[bool] = True

    def __init__(
        self, config: ModelConfig, channels: int, growth: float = 1.0, graph_channels: int = 1
    ) -> None:
        super().__init__()
        self.form = CellForm(self.activation, residual=config.residual)
        self.growth = growth
        self.vector: Tensor | None = None
        self.kappa = Kappa(config.kappa, config.learn_kappa)

    @abstractmethod
    def forward(self) -> list[Tensor]:
        """W_c [D, D], one per channel, differentiable in the parameters."""

    @abstractmethod
    def contraction(self) -> float | None:
        """Certified Lipschitz constant of f, below 1, in the norm that the cell names; or None.

        With it, ||Z - Z*|| <= ||f(Z) - Z|| / (1 - contraction) in that norm.
        """

    @abstractmethod
    def present_contraction(self) -> float:
        """Lipschitz constant of f in ``norm`` for the present W_c; 1 or more certifies nothing.

        ``norm`` is max_ij |Z_ij| / w_i, max_i ||Z_i||_2 / w_i with the w of ``vector``, or
        Frobenius's.
        """

    def tighten(self, factor: float) -> None:
        """Multiply the bound on the weights by ``factor``; ``project`` brings them inside."""
        self.kappa.tighten(factor)

    def is_inside(self) -> bool:
        """Whether the parameters obey their bound, up to rounding; so where one is built in."""
        return True

    def project(self) -> bool:
        """Bring the parameters back inside the bound; False where that is never needed."""
        return False


def spectral_norms(matrices: Tensor) -> Tensor:
    """||M||_2 of each symmetric matrix [C, D, D], float64 on the CPU; NaN if one is not finite."""
    matrices = matrices.detach().double().cpu()
    if not bool(torch.isfinite(matrices).all()):
        # not an error of this rank alone, which the others would wait for: the solve shows it
        return torch.full_like(matrices[:, 0, 0], torch.nan)
    return torch.linalg.eigvalsh(matrices).abs().amax(dim=1)
