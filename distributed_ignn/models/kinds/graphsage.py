"""GraphSAGE: Hamilton et al. 2017, "Inductive Representation Learning on Large Graphs".

On the full graph, with the mean over all neighbours: nothing is sampled. Edges count alike,
whatever they weigh, as in the paper and in PyG; a mean by weights would be natural.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import (
    Columns,
    ExplicitModel,
    Site,
    affine,
    linear,
    without_map,
)


class GraphSAGE(ExplicitModel):
    """H_l = relu(mean of neighbours' H_l-1 W_l + own H_l-1 U_l + b_l); the last gives logits."""

    summary = "mean over neighbours beside the node itself (Hamilton et al. 2017)"
    reads = frozenset({"layers"})
    drops_from = 2
    reads_weights = False
    normalises = False

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import SAGEConv

        widths = [site.hidden] * (site.layers - 1) + [site.classes]
        self.neighbours = self.map_features(widths[0])
        self.own = self.map_features(widths[0], bias=True)
        first = without_map(SAGEConv(widths[0], widths[0]), "lin_l", "lin_r")
        rest = (SAGEConv(a, b) for a, b in itertools.pairwise(widths))
        self.layers = nn.ModuleList([first, *rest])

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, C]."""
        x: Tensor = self.layers[0]((self.neighbours(step), self.own(step)))
        for place, layer in enumerate(self.layers[1:]):
            x = layer(self.drop(torch.relu(x), step, place))
        return x

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        widths = [model.hidden] * (explicit.layers - 1) + [classes]
        return Columns(
            rows=4 * sum(widths) + 2 * model.hidden,
            first=2 * widths[0],
            weights=widths[0] + linear(*widths) + affine(*widths),
            sent=widths[0],
        )
