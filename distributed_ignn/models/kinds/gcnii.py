"""GCNII: Chen et al. 2020, "Simple and Deep Graph Convolutional Networks"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, affine


class GCNII(ExplicitModel):
    """H_l = relu(S_l ((1 - b_l) I + b_l W_l)), S_l = (1 - teleport) A_hat H_l-1 + teleport H_0.

    H_0 = relu(X Theta + b), b_l = log(1 + identity / l), and a head. The paper decays the W_l by
    0.01 and the two dense maps by 5e-4; ``train.weight_decay`` is one for all. Its authors drop X
    as they drop states, which is ``model.input_dropout`` here and is off by default.
    """

    summary = "deep graph convolutions with initial residual (Chen et al. 2020)"
    reads = frozenset({"layers", "teleport", "identity"})

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import GCN2Conv

        explicit, width = site.explicit, site.hidden
        self.first = self.map_features(width, bias=True)
        self.layers = nn.ModuleList(
            GCN2Conv(width, explicit.teleport, explicit.identity, number)
            for number in range(1, site.layers + 1)
        )
        self.head = nn.Linear(width, site.classes)

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, D]."""
        start = torch.relu(self.first(step))
        x = start
        for place, layer in enumerate(self.layers):
            x = torch.relu(layer(self.drop(x, step, place), start))
        return x

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        width, layers = model.hidden, explicit.layers
        return Columns(
            rows=4 * width * (layers + 1),
            first=width,
            weights=width + layers * width**2 + affine(width, classes),
            sent=width,
        )
