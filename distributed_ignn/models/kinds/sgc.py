"""SGC: Wu et al. 2019, "Simplifying Graph Convolutional Networks"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, without_map


class SGC(ExplicitModel):
    """A linear model on A_hat^K X, K the layers: A_hat^K (X Theta) + b, which is the same."""

    summary = "a linear model of propagated features (Wu et al. 2019)"
    reads = frozenset({"layers"})
    drops_from = None

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import SGConv

        self.first = self.map_features(site.classes)
        self.spread = without_map(SGConv(site.classes, site.classes, site.layers))
        self.bias = nn.Parameter(torch.zeros(site.classes))

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, C]."""
        logits: Tensor = self.spread(self.first(step)) + self.bias
        return logits

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        return Columns.of_sums([classes])
