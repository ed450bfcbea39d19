"""AM-GCN: Wang et al. 2020, "AM-GCN: Adaptive Multi-channel Graph Convolutional Networks".

Its two constraints compare all pairs of nodes. They are computed from Gram matrices of columns,
which ranks add up: ||A A' - B B'||^2 = ||A'A||^2 - 2 ||A'B||^2 + ||B'B||^2, and
tr(R A A' R B B') = ||A'R B||^2 with R = I - 1 1'/n. Both are means over pairs here, so that their
weights do not depend on n.

Letters: n nodes, O owned nodes, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, affine, without_map

_ATTENTION = 16  # width of the attention, as in the AM-GCN paper
_EMBEDDINGS = 5  # that make up the state: the mixture, topology, common twice, features


class Attention(nn.Module):
    """Weights of embeddings, node by node: softmax of q' tanh(W_i z_i + b_i), and their mixture.

    Args:
        width: D.
        count: embeddings.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, _ATTENTION) for _ in range(count))
        self.query = nn.Linear(_ATTENTION, 1, bias=False)

    def forward(self, embeddings: Sequence[Tensor]) -> Tensor:
        """The mixture [O, D] of embeddings [O, D]."""
        pairs = zip(self.maps, embeddings, strict=True)
        scores = [self.query(torch.tanh(own(embedding))) for own, embedding in pairs]
        shares = torch.softmax(torch.cat(scores, dim=1), dim=1)
        return (torch.stack(list(embeddings), dim=2) * shares[:, None, :]).sum(dim=2)


class AMGCN(ExplicitModel):
    """GCNs on the graph, on the neighbour graph of the features, and one common to both.

    Attention mixes the three, the common embedding being the mean of its two. The state holds all
    embeddings, [O, 5 D], the mixture first, since the constraints read them.
    """

    summary = "graph, feature graph and what both share (Wang et al. 2020); needs data.knn"
    reads = frozenset({"layers", "similarity", "disparity"})

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import GCNConv

        width, layers = site.hidden, site.layers
        self._explicit, self._nodes_in_all = site.explicit, site.shard.num_nodes
        self._ranks, self._width = site.comm.world_size, width
        self._graphs = 0, site.shard.graph_channels
        if len(site.shard.channels) <= site.shard.graph_channels:
            raise UserError(
                "model.kind = amgcn needs the neighbour graph of the features, and these shards "
                "have none; divide the graph with --data.knn 5"
            )
        self.first = self.map_features(3 * width)
        self.topology, self.common, self.features = (
            nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers - 1))
            for _ in range(3)
        )
        self.bias = nn.Parameter(torch.zeros(layers, 3, width))
        self.spread = without_map(GCNConv(2 * width, 2 * width, bias=False))
        self.attention = Attention(width, 3)
        self.head = nn.Linear(width, site.classes)

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, 5 D]."""
        topology, common, features = self.first(step).tensor_split(3, dim=1)
        on_graph, on_features = (topology, common), (features, common)
        for layer in range(len(self.bias)):
            if layer > 0:
                on_graph = self._mapped(self.topology, on_graph, step, layer, 0)
                on_features = self._mapped(self.features, on_features, step, layer, 1)
            own_t, own_c, own_f = self.bias[layer]
            on_graph = self._hop(on_graph, self._graphs[0], own_t, own_c)
            on_features = self._hop(on_features, self._graphs[1], own_f, own_c)
        (z_t, z_ct), (z_f, z_cf) = on_graph, on_features
        mixed = self.attention([z_t, (z_ct + z_cf) / 2.0, z_f])
        return torch.cat([mixed, z_t, z_ct, z_cf, z_f], dim=1)

    def _mapped(
        self,
        own: nn.ModuleList,
        pair: tuple[Tensor, Tensor],
        step: int | None,
        layer: int,
        graph: int,
    ) -> tuple[Tensor, Tensor]:
        """What enters a later layer: relu, dropout and the linear maps of own and common."""
        rows = self.drop(torch.relu(torch.cat(pair, dim=1)), step, 2 * layer + graph)
        mine, common = rows.tensor_split(2, dim=1)
        return own[layer - 1](mine), self.common[layer - 1](common)

    def _hop(
        self, pair: tuple[Tensor, Tensor], graph: int, own: Tensor, common: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A_hat of one graph, on both embeddings in one exchange, and their biases."""
        edges, weights = self.part.edge_indices[graph], self.part.edge_weights[graph]
        spread = self.spread(torch.cat(pair, dim=1), edges, weights)
        mine, shared = spread.tensor_split(2, dim=1)
        return mine + own, shared + common

    def read_out(
        self, state: Tensor, step: int | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """See ``NodeModel``; from the mixture."""
        return super().read_out(state[:, : self._width], step, rows)

    def embeddings(self, state: Tensor) -> Tensor:
        """See ``NodeModel``; the mixture."""
        return state[:, : self._width]

    def penalty(self, state: Tensor, step: int) -> Tensor | float:
        """See ``NodeModel``: the common embeddings are to be alike, own and common ones unlike."""
        similarity, disparity = self._explicit.similarity, self._explicit.disparity
        if similarity == disparity == 0.0:
            return 0.0
        _, z_t, z_ct, z_cf, z_f = state.tensor_split(_EMBEDDINGS, dim=1)
        total = similarity * self._unlikeness(z_ct, z_cf)
        total = total + disparity * (self._dependence(z_t, z_ct) + self._dependence(z_f, z_cf))
        return total / self._ranks

    def _unlikeness(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean square of (S_a - S_b)_ij, S = N N' with the rows of N of length 1; of all ranks."""
        a, b = functional.normalize(a, dim=1), functional.normalize(b, dim=1)
        squares = self.part.total(torch.stack([a.T @ a, a.T @ b, b.T @ b])).square().sum((1, 2))
        return (squares[0] - 2.0 * squares[1] + squares[2]) / self._nodes_in_all**2

    def _dependence(self, a: Tensor, b: Tensor) -> Tensor:
        """The Hilbert-Schmidt independence criterion of two embeddings, linear kernels."""
        n = self._nodes_in_all
        sums = self.part.total(torch.stack([a.sum(dim=0), b.sum(dim=0)]))
        product = self.part.total(a.T @ b) - torch.outer(sums[0], sums[1]) / n
        return product.square().sum() / max(n - 1, 1) ** 2

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        # four embeddings in every layer, and what attention and constraints make of them
        width, layers = model.hidden, explicit.layers
        attention = 3 * affine(width, _ATTENTION) + _ATTENTION
        return Columns(
            rows=width * (4 * 4 * layers + 4 * _EMBEDDINGS),
            first=3 * width,
            weights=3 * ((layers - 1) * width + layers) * width
            + attention
            + affine(width, classes),
            sent=2 * width,
        )
