"""APPNP: Gasteiger et al. 2019, "Predict then Propagate: GNNs meet Personalized PageRank"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, affine


class APPNP(ExplicitModel):
    """H = MLP(X) of two layers; Z_k = (1 - teleport) A_hat Z_k-1 + teleport H, for all layers k.

    The authors also drop entries of A_hat, anew for every k; none are dropped here. They decay the
    first map alone; ``train.weight_decay`` is one for all.
    """

    summary = "an MLP, then personalised PageRank (Gasteiger et al. 2019)"
    reads = frozenset({"layers", "teleport"})

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric import nn as pyg

        self.first = self.map_features(site.hidden, bias=True)
        self.second = nn.Linear(site.hidden, site.classes)
        self.spread = pyg.APPNP(site.layers, site.explicit.teleport)

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, C]."""
        inner = self.drop(torch.relu(self.first(step)), step, 0)
        logits: Tensor = self.spread(self.second(inner))
        return logits

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        width = model.hidden
        return Columns(
            rows=4 * (width + classes),
            first=width,
            weights=width + affine(width, classes),
            sent=classes,
        )
