"""JK-Net: Xu et al. 2018, "Representation Learning on Graphs with Jumping Knowledge Networks"."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, affine, without_map


class JKNet(ExplicitModel):
    """Layers of GCN whose states are put together, by their maximum or side by side, and a head."""

    summary = "graph convolutions that are all read out (Xu et al. 2018)"
    reads = frozenset({"layers", "jump"})

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import GCNConv, JumpingKnowledge

        width, jump = site.hidden, site.explicit.jump
        self.first = self.map_features(width)
        self.layers = nn.ModuleList(GCNConv(width, width) for _ in range(site.layers))
        without_map(self.layers[0])
        self.jump = JumpingKnowledge(jump)
        self.head = nn.Linear(width * (site.layers if jump == "cat" else 1), site.classes)

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, D], or [O, D times layers] side by side."""
        states = [torch.relu(self.layers[0](self.first(step)))]
        for place, layer in enumerate(self.layers[1:]):
            states.append(torch.relu(layer(self.drop(states[-1], step, place))))
        together: Tensor = self.jump(states)
        return together

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        width, layers = model.hidden, explicit.layers
        sums = Columns.of_sums([width] * layers)
        read = width * (layers if explicit.jump == "cat" else 1)
        return replace(
            sums,
            rows=sums.rows + 2 * width * layers,
            weights=sums.weights + affine(read, classes),
        )
