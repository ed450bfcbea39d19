"""Bounds on the weights of somebody else's layers, so that a map made of them contracts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn.dense.linear import Linear as GraphLinear

from distributed_ignn.errors import UserError

_SLACK = 1e-6  # weights that exceed their bound by rounding are left as they are


def linear_weights(module: nn.Module) -> list[Tensor]:
    """The matrices of all linear layers of torch and PyG in ``module``, each once.

    Raises:
        UserError: there is none, or one whose size is not known yet.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | GraphLinear)]
    if not layers:
        raise UserError(
            f"bound needs linear layers to bound, and {type(module).__name__} has none of torch or "
            "PyG; leave bound out and keep the map a contraction yourself"
        )
    for layer in layers:
        if isinstance(layer.weight, nn.parameter.UninitializedParameter):
            raise UserError(
                f"bound needs to know the size of every layer, and a {type(layer).__name__} in "
                f"{type(module).__name__} waits for its first call; give its input width"
            )
    return list(dict.fromkeys(layer.weight for layer in layers))


@torch.no_grad()
def bound_weights(weights: list[Tensor], bound: float) -> None:
    """Scale every matrix down, in place, so that all spectral norms sum to at most ``bound``.

    Each matrix has an equal share; those inside theirs are not touched.
    """
    share = bound / len(weights)
    for weight in weights:
        norm = _spectral_norm(weight)
        if norm > share * (1.0 + _SLACK):
            weight.mul_(share / norm)


def _spectral_norm(weight: Tensor) -> float:
    """0 where a number is not finite: the solve says so."""
    if not bool(torch.isfinite(weight).all()):
        return 0.0
    return float(torch.linalg.matrix_norm(weight.double(), ord=2))
