"""A cell with another activation: Z = tanh(sum_c B_c Z W_c + b), W as in IGNN."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_ignn.models.activations import Activation
from distributed_ignn.models.cells.ignn import IgnnWeights


class Tanh(Activation):
    """tanh(x), whose derivative is 1 - y^2 where its value is y."""

    certified = True

    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def slope(self, image: Tensor) -> Tensor:
        """See ``Activation``."""
        return 1.0 - image.square()

    def slope_bytes(self, item: int) -> int:
        """A number."""
        return item


class TanhWeights(IgnnWeights):
    """IGNN's weights under tanh."""

    summary = "IGNN's weights under tanh"
    activation = Tanh()
