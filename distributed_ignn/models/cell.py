"""EquilibriumCell: one application of the map, f(Z) = relu(sum_c A_hat_c Z W_c + b).

Letters: O owned nodes, H halo nodes, D hidden width, R rider columns, c channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distributed_ignn.graph.propagate import ChannelOperator, Propagation


class EquilibriumCell:
    """The map of one solve: fixed weights, fixed injection, no gradient.

    Keeps what the last evaluation computed, because a solve usually returns its last point and the
    backward pass needs A_hat_c Z there.

    Args:
        propagation: all channels behind one exchange.
        weights: W_c [D, D], one per channel.
        injection: b [O, D].
        sparsified: A_s, which riders are multiplied by; None if no solver needs it.
    """

    def __init__(
        self,
        propagation: Propagation,
        weights: Sequence[Tensor],
        injection: Tensor,
        sparsified: ChannelOperator | None = None,
    ) -> None:
        self._propagation = propagation
        self._weights = tuple(weights)
        self._injection = injection
        self._sparsified = sparsified
        self._last: tuple[Tensor, list[Tensor]] | None = None
        self.evaluations = 0

    def __call__(self, z: Tensor, rider: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """f(z) [O, D] and A_s rider [O, R]; one exchange carries both."""
        products, rider_halo = self._propagation.apply(z, rider)
        self.evaluations += 1
        self._last = (z, products)
        image = torch.addmm(self._injection, products[0], self._weights[0])
        for product, weight in zip(products[1:], self._weights[1:], strict=True):
            image.addmm_(product, weight)
        image.relu_()
        return image, self._carry(rider, rider_halo)

    def _carry(self, rider: Tensor | None, halo: Tensor | None) -> Tensor | None:
        if rider is None or halo is None:
            return None
        if self._sparsified is None:
            raise ValueError("a rider needs the sparsified graph")
        return self._sparsified.finish(self._sparsified.owned @ rider, halo)

    def products_at(self, z: Tensor) -> list[Tensor]:
        """A_hat_c z per channel: remembered from the last evaluation, or propagated again.

        Whether ``z`` is the last evaluated point is the same on every rank, since the solve's
        choice of the best iterate follows reduced numbers.
        """
        if self._last is None or self._last[0] is not z:
            self(z, None)
        if self._last is None:
            raise RuntimeError("an evaluation leaves its products")
        return self._last[1]


class AdjointCell:
    """The map of the backward solve: v -> m * (sum_c A_hat_c' v W_c' + g).

    Args:
        propagation: as in the forward map.
        weights: W_c [D, D].
        mask: m = relu'(pre-activation) as 0 or 1, [O, D].
        incoming: g = dL/dZ*, [O, D].
    """

    def __init__(
        self,
        propagation: Propagation,
        weights: Sequence[Tensor],
        mask: Tensor,
        incoming: Tensor,
    ) -> None:
        self._propagation = propagation
        self._transposed = tuple(weight.T for weight in weights)
        self._mask = mask
        self._incoming = incoming
        self.evaluations = 0

    def __call__(self, z: Tensor, rider: Tensor | None) -> tuple[Tensor, None]:
        """One application to v = ``z``; nothing rides on the adjoint's exchange."""
        self.evaluations += 1
        total = self._propagation.apply_transpose([z @ weight for weight in self._transposed])
        return total.add_(self._incoming).mul_(self._mask), None
