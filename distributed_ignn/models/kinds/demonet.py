"""DEMO-Net: Wu et al. 2019, "Demo-Net: Degree-specific Graph Neural Networks", by hashing.

Nodes of one degree are a task of their own, whose weights come out of shared ones by a hash of
degree and column (feature hashing for multi-task learning, Weinberger et al. 2009). The mean over
neighbours stands for their sum: both differ by the degree, which the weights know.

Letters: O owned nodes, D hidden width, M width that is hashed to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.graph.hashing import hash_uniform
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, affine

_BUCKET, _SIGN = 101, 102  # seeds of the hash functions, which belong to the model and to no run
_COMMON = -1  # the degree whose task all nodes share


class DegreeHash:
    """phi(x)_i = sum of xi(j) x_j over the columns j with rho(j) = i, once for all and per degree.

    Args:
        degrees: int64 [O].
        width: D.
        buckets: M.
    """

    def __init__(self, degrees: Tensor, width: int, buckets: int) -> None:
        self._buckets = buckets
        common = degrees.new_full((1,), _COMMON)
        # one row for each node, and one for all of them
        self._tasks = [_hashed(task, width, buckets) for task in (degrees, common)]

    def __call__(self, rows: Tensor) -> Tensor:
        """[O, M] of rows [O, D]: the degree's own task, and the one that all share, added."""
        found = rows.new_zeros(rows.shape[0], self._buckets)
        for rho, negative in self._tasks:
            found = found.scatter_add(1, rho.expand_as(rows), torch.where(negative, -rows, rows))
        return found


def _hashed(task: Tensor, width: int, buckets: int) -> tuple[Tensor, Tensor]:
    """Of tasks [T]: the bucket of every column [T, D], and whether it is negated."""
    task, columns = task[:, None], torch.arange(width, device=task.device)[None, :]
    rho = (hash_uniform(_BUCKET, task, columns) * buckets).long().clamp_(max=buckets - 1)
    return rho, hash_uniform(_SIGN, task, columns) < 0.5


class DemoNet(ExplicitModel):
    """H_l = relu([own H_l-1 W_l + b_l, phi_degree(mean of neighbours' H_l-1) U_l]), and a head.

    Half of the columns speak of the node itself (seed-oriented, in their words), half of its
    neighbours (degree-aware and order-free). H_0 = relu(X Theta + b). Where edges have weights the
    mean is theirs, and the degree is the number of edges.
    """

    summary = "weights for each degree, by hashing (Wu et al. 2019)"
    reads = frozenset({"layers", "hash_width"})
    normalises = False

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import SimpleConv

        width, near = site.hidden, site.hidden // 2
        self.first = self.map_features(width, bias=True)
        self.own = nn.ModuleList(nn.Linear(width, width - near) for _ in range(site.layers))
        buckets = site.explicit.hash_width
        self.near = nn.ModuleList(nn.Linear(buckets, near) for _ in range(site.layers))
        self.mean = SimpleConv(aggr="mean")
        self.head = nn.Linear(width, site.classes)

    def _join(self, site: Site) -> None:
        super()._join(site)
        targets = self.part.edge_indices[0][1]
        degrees = torch.bincount(targets, minlength=self.part.num_owned)
        self._hash = DegreeHash(degrees, site.hidden, site.explicit.hash_width)
        # PyG divides sums by the number of edges, whatever they weigh
        weights = self.part.edge_weights[0]
        self._scale = None if weights is None else _over_weights(degrees, targets, weights)

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, D]."""
        x = torch.relu(self.first(step))
        for place, (own, near) in enumerate(zip(self.own, self.near, strict=True)):
            x = self.drop(x, step, place)
            mean = self.mean(x) if self._scale is None else self.mean(x) * self._scale
            x = torch.relu(torch.cat([own(x), near(self._hash(mean))], dim=1))
        return x

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        width, layers = model.hidden, explicit.layers
        hashed = explicit.hash_width + 2 * width  # what is hashed, and the rows before that
        constants = 5 * width  # buckets and signs
        near = width // 2
        return Columns(
            rows=(4 * width + hashed) * layers + constants,
            first=width,
            weights=width
            + layers * (affine(width, width - near) + affine(explicit.hash_width, near))
            + affine(width, classes),
            sent=width,
        )


def _over_weights(degrees: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """[O, 1], edges of each node over the sum of their weights; 1 where that is 0."""
    total = weights.new_zeros(degrees.numel()).index_add_(0, targets, weights)
    return torch.where(total > 0.0, degrees / total, 1.0)[:, None]
