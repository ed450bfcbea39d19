"""GAT: Velickovic et al. 2018, "Graph Attention Networks".

Its second dropout, on attention coefficients, is left out: a mask of edges would have to be drawn
inside the layer. That of nodes' rows is there. Weights of edges have no place in its attention.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, linear, without_map

# of an edge: scores of its ends, their sum, what makes a softmax of it, and that in another order
_KEPT_PER_HEAD = 10


class GAT(ExplicitModel):
    """Each head sums neighbours by its own attention; heads stand side by side, and elu follows.

    A head has D / heads columns, rounded up. The last layer gives logits, as the mean of its heads.
    """

    summary = "graph attention (Velickovic et al. 2018)"
    reads = frozenset({"layers", "heads"})
    drops_from = 2
    reads_weights = False
    normalises = False

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import GATConv

        heads, layers = site.explicit.heads, site.layers
        width = head_width(site.model, site.explicit)
        widths = [width] * (layers - 1) + [site.classes]
        self.first = self.map_features(widths[0] * heads)
        self.layers = nn.ModuleList(
            GATConv(width * heads, out, heads, concat=number < layers - 1)
            for number, out in enumerate(widths)
        )
        without_map(self.layers[0])

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, C]."""
        x: Tensor = self.layers[0](self.first(step))
        for place, layer in enumerate(self.layers[1:]):
            x = layer(self.drop(functional.elu(x), step, place))
        return x

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        width, heads = head_width(model, explicit), explicit.heads
        widths = [width * heads] * (explicit.layers - 1) + [classes * heads]
        # messages, which are made again for their gradients: rows of sources, and products
        return Columns(
            rows=5 * sum(widths),
            first=widths[0],
            # with scores of both ends, and biases
            weights=linear(*widths) + 2 * sum(widths) + sum(widths[:-1]) + classes,
            sent=max(widths),
            edges=_KEPT_PER_HEAD * heads * len(widths),
            passing=4 * max(widths),
            sums=False,
            blocks=True,
        )


def head_width(model: ModelConfig, explicit: ExplicitConfig) -> int:
    """Columns of a head."""
    return -(-model.hidden // explicit.heads)
