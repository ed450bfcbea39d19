"""MLP: each node by its own features, without the graph; what a graph network has to beat."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, affine


class MLP(ExplicitModel):
    """Linear maps with relu and dropout between them; the last one gives logits."""

    summary = "linear layers, without the graph"
    reads = frozenset({"layers"})
    drops_from = 2
    reads_edges = False
    reads_weights = False

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        widths = [site.hidden] * (site.layers - 1) + [site.classes]
        self.first = self.map_features(widths[0], bias=True)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, C]."""
        x: Tensor = self.first(step)
        for place, layer in enumerate(self.layers):
            x = layer(self.drop(torch.relu(x), step, place))
        return x

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        widths = [model.hidden] * (explicit.layers - 1) + [classes]
        return Columns(rows=4 * sum(widths), first=widths[0], weights=widths[0] + affine(*widths))
