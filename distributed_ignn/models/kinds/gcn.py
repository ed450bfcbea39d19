"""GCN: Kipf & Welling 2017, "Semi-Supervised Classification with Graph Convolutional Networks"."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, without_map


class GCN(ExplicitModel):
    """H_l = relu(A_hat H_l-1 W_l + b_l) from H_0 = X; the last layer gives logits, without relu.

    The paper decays the weights of the first layer alone; ``train.weight_decay`` is one for all.
    """

    summary = "graph convolutions (Kipf & Welling 2017)"
    reads = frozenset({"layers"})
    drops_from = 2

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import GCNConv

        widths = [site.hidden] * (site.layers - 1) + [site.classes]
        self.first = self.map_features(widths[0])
        first = without_map(GCNConv(widths[0], widths[0]))
        rest = (GCNConv(a, b) for a, b in itertools.pairwise(widths))
        self.layers = nn.ModuleList([first, *rest])

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, C]."""
        x: Tensor = self.layers[0](self.first(step))
        for place, layer in enumerate(self.layers[1:]):
            x = layer(self.drop(torch.relu(x), step, place))
        return x

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        return Columns.of_sums([model.hidden] * (explicit.layers - 1) + [classes])
