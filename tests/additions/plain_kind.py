"""An explicit model of one hop: relu(A_hat X Theta), and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site


class Plain(ExplicitModel):
    """One hop."""

    summary = "one hop and a head"

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import LGConv

        self.first = self.map_features(site.hidden, bias=True)
        self.hop = LGConv()
        self.head = nn.Linear(site.hidden, site.classes)

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, D]."""
        return torch.relu(self.hop(self.first(step)))

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        return Columns.of_sums([model.hidden])
