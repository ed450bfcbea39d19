"""The paper's initialiser (section 4.1.1): a bottleneck MLP of the features.

    h(X) = relu(X P + c) Q + e

It knows nothing of the map that is solved: it is trained by ||h(X) - Z*|| alone and grows old while
the map changes. Letters: O owned rows, F features, D columns, d' bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distributed_ignn.solvers.estimator import StructuredMap

Linear = Callable[[Tensor], Tensor]
"""X P [O, d'] of P [F, d'], differentiable in P; X may be sparse."""


class MlpInitialiser(nn.Module):
    """h: from the features to a starting point.

    Args:
        features: F; of a graph without features D, whose b(X), an embedding, stands in for X.
        bottleneck: d'.
        width: D.
        linear: multiplies X by a matrix; None for a graph without features.
    """

    def __init__(
        self, features: int, bottleneck: int, width: int, linear: Linear | None = None
    ) -> None:
        super().__init__()
        self._linear = linear
        self.inner = nn.Parameter(nn.init.xavier_uniform_(torch.empty(features, bottleneck)))
        self.bias = nn.Parameter(torch.zeros(bottleneck))
        self.outer = nn.Linear(bottleneck, width)

    def forward(
        self,
        fixed_point_map: StructuredMap,
        injection: Tensor,
        activate: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Z0 [O, D], without an exchange; takes what ``Initialiser`` takes."""
        if self._linear is None:
            product = injection.detach() @ self.inner
        else:
            product = self._linear(self.inner)
        start: Tensor = self.outer(torch.relu(product + self.bias))
        return start
