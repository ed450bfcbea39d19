"""The sparsified graph A_s that the learned solver reads, by the principle of relevant information.

Yu et al. (UAI 2022) choose a subgraph with few relevant edges by minimising
J = S(sigma) + beta D(sigma || rho), S the von Neumann entropy of the trace-normalised Laplacian of
the subgraph (sigma) and D the quantum Jensen-Shannon divergence to that of the whole graph (rho).
The exact entropy needs all eigenvalues. Here both terms use the quadratic entropy
S_2(sigma) = 1 - tr(sigma^2), for which everything is a sum over nodes and edges:

    tr(L_w^2) = sum_i d_i(w)^2 + sum_(entries) w^2,     tr(L_w) = sum_i d_i(w) = V
    tr(L_w L_1) = sum_i d_i(w) d_i(1) + sum_(entries) w
    D_2 = tr((sigma - rho)^2) / 4

Where edges have weights a of their own, w a stands for w in these sums, and a for 1.

w in [0, 1] per edge is found by mirror descent under a budget on sum(w), then every edge is kept
with probability w by a hash of its end points: linear time, one exchange of a one-column vector per
iteration, the same subgraph however the graph is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.data import csr_from_entries
from distributed_ignn.graph.hashing import hash_uniform
from distributed_ignn.graph.shard import ChannelShard, GraphShard
from distributed_ignn.propagation.halo import HaloExchange
from distributed_ignn.propagation.operators import ChannelOperator

_PRI_STEPS = 20
_PRI_RATE = 2.0
_PRI_DECREASE = 1e-9
_NEWTON_STEPS = 60  # about six are taken
_BUDGET_TOLERANCE = 1e-11


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Entries of channel 0 of one shard without self-loops, as a flat list.

    Args:
        row, col: int64 [E] global ids of the two ends.
        own, other: int64 [E] positions of the ends in the vector (owned, halo), [L].
        num_owned: O.
        weight: float64 [E], or None where every edge weighs 1.
    """

    row: Tensor
    col: Tensor
    own: Tensor
    other: Tensor
    num_owned: int
    weight: Tensor | None = None

    @property
    def full(self) -> Tensor:
        """Weight of every entry, float64 [E]."""
        if self.weight is not None:
            return self.weight
        return torch.ones(self.own.numel(), dtype=torch.float64)

    def weighed(self, share: Tensor) -> Tensor:
        """``share`` [E] of the weight of every entry."""
        return share if self.weight is None else share * self.weight


def list_edges(shard: GraphShard) -> Edges:
    """Entries of channel 0, owned block first and then the boundary block, self-loops left out."""
    channel = shard.channels[0]
    row_o, col_o = channel.owned.rows(), channel.owned.col
    keep = row_o != col_o
    own = torch.cat([row_o[keep], channel.boundary.rows() + shard.num_interior])
    other = torch.cat([col_o[keep], channel.boundary.col + shard.num_owned])
    local = torch.cat([shard.owned_nodes, shard.halo_nodes])
    weight = None
    if channel.owned.value is not None and channel.boundary.value is not None:
        weight = torch.cat([channel.owned.value[keep], channel.boundary.value]).double()
    return Edges(local[own], local[other], own, other, shard.num_owned, weight)


class Scope:
    """Sums over ranks and values of remote nodes, for the scores below."""

    def __init__(self, edges: Edges, halo: HaloExchange, comm: Communicator) -> None:
        self.edges = edges
        self._halo = halo
        self._comm = comm

    def total(self, *values: Tensor) -> list[float]:
        return self._comm.sum(torch.stack([v.sum() for v in values]).double()).tolist()

    def degrees(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """d_i(w) of the owned nodes, and of owned and halo nodes together."""
        own = torch.zeros(self.edges.num_owned, dtype=torch.float64)
        own.index_add_(0, self.edges.own, weight)
        halo = self._halo.start(own[:, None].to(self._comm.device)).wait()[:, 0]
        return own, torch.cat([own, halo.cpu()])


def _fit_budget(logits: Tensor, keep: float, scope: Scope) -> Tensor:
    """sigmoid(logits + shift) with the shift that makes the global mean ``keep``."""
    low, high, shift = -60.0, 60.0, 0.0
    for _ in range(_NEWTON_STEPS):
        weight = torch.sigmoid(logits + shift)
        kept, slope, count = scope.total(weight, weight * (1 - weight), torch.ones_like(weight))
        excess = kept - keep * count
        if abs(excess) <= _BUDGET_TOLERANCE * count:
            break
        low, high = (low, shift) if excess > 0 else (shift, high)
        # Newton's step where it stays between the known bounds, else their middle
        shift -= excess / max(slope, 1e-300)
        shift = shift if low < shift < high else (low + high) / 2
    return torch.sigmoid(logits + shift)


class Relevance:
    """J and its gradient.

    Without weights the budget fixes V, so only tr(L_w^2) and tr(L_w L_1) change.
    """

    def __init__(self, scope: Scope, beta: float) -> None:
        self._scope = scope
        self._own_full, self._all_full = scope.degrees(scope.edges.full)
        (self._volume_full,) = scope.total(self._own_full)
        self._factors = beta / 4 - 1, -beta / 2

    def evaluate(self, share: Tensor) -> tuple[float, Tensor]:
        """J without its constant terms, and dJ/dw [E] of the shares w [E]; one exchange."""
        edges, full = self._scope.edges, self._all_full
        weight = edges.weighed(share)
        own, everywhere = self._scope.degrees(weight)
        common = edges.weighed(weight)
        sums = own, own.square(), own * self._own_full, weight.square(), common
        volume, degrees, degrees_full, squares, total = self._scope.total(*sums)
        if volume == 0.0:
            return 0.0, torch.zeros_like(weight)
        both = volume * self._volume_full
        spread = (everywhere[edges.own] + everywhere[edges.other] + 2 * weight) / volume**2
        values = (degrees + squares) / volume**2, (degrees_full + total) / both
        value = self._factors[0] * values[0] + self._factors[1] * values[1]
        if edges.weight is None:
            match = (full[edges.own] + full[edges.other] + 2.0) / (2 * both)
            return value, self._factors[0] * spread + self._factors[1] * match
        match = (full[edges.own] + full[edges.other] + 2.0 * edges.weight) / (2 * both)
        # V follows the shares, too
        slopes = spread - 2.0 * values[0] / volume, match - values[1] / volume
        return value, edges.weighed(self._factors[0] * slopes[0] + self._factors[1] * slopes[1])


def _ones(edges: Edges) -> Tensor:
    return torch.ones(edges.own.numel(), dtype=torch.float64)


def pri_weights(scope: Scope, keep: float, beta: float) -> Tensor:
    """Probability per entry that lowers J under the budget, float64 [E].

    Mirror descent; a step that does not lower J is taken back and the next one is shorter.
    """
    relevance, rate = Relevance(scope, beta), _PRI_RATE
    ones = _ones(scope.edges)
    logits = torch.zeros_like(ones)
    weight = _fit_budget(logits, keep, scope)
    value, gradient = relevance.evaluate(weight)
    for _ in range(_PRI_STEPS):
        size, count = scope.total(gradient.square(), ones)
        if size == 0.0:
            break
        moved = (logits - rate * gradient / math.sqrt(size / count)).clamp_(-30, 30)
        candidate = _fit_budget(moved, keep, scope)
        next_value, next_gradient = relevance.evaluate(candidate)
        # more than rounding, which differs from cut to cut
        if next_value < value - _PRI_DECREASE * abs(value):
            logits, weight, value, gradient = moved, candidate, next_value, next_gradient
            rate *= 2
        else:
            rate /= 4
    return weight


def _degree_weights(scope: Scope, keep: float) -> Tensor:
    """Edges between nodes of low degree are kept first: w ~ 1 / d_i + 1 / d_j.

    That is the effective resistance on an expander (Spielman & Srivastava 2008), times the weight.
    """
    edges = scope.edges
    _, degree = scope.degrees(edges.full)
    other = degree[edges.other]
    # the other end of a directed entry may have none of its own
    other = other.clamp_min(1.0) if edges.weight is None else other.maximum(edges.weight)
    score = edges.weighed(1.0 / degree[edges.own] + 1.0 / other)
    return _fit_budget(torch.log(score), keep, scope)


def edge_probabilities(
    shard: GraphShard, comm: Communicator, method: str, keep: float, beta: float = 8.0
) -> tuple[Edges, Tensor]:
    """Every entry of channel 0 and the probability with which it is kept, float64 [E]."""
    edges = list_edges(shard)
    scope = Scope(edges, HaloExchange.from_shard(shard, comm), comm)
    if method == WHOLE:
        return edges, _alike(scope, 1.0)
    return edges, SPARSIFIERS[method].probabilities(scope, keep, beta)


def _alike(scope: Scope, keep: float) -> Tensor:
    return torch.full((scope.edges.own.numel(),), keep, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Sparsifier:
    """How edges are chosen.

    Args:
        probabilities: of keeping every entry [E], from the share to keep and the beta of ``pri``.
        summary: for the help.
    """

    probabilities: Callable[[Scope, float, float], Tensor]
    summary: str = ""


WHOLE = "none"
"""Instead of a sparsifier: the graph as it is."""

SPARSIFIERS = {
    "pri": Sparsifier(pri_weights, "principle of relevant information"),
    "degree": Sparsifier(lambda scope, keep, beta: _degree_weights(scope, keep)),
    "random": Sparsifier(lambda scope, keep, beta: _alike(scope, keep)),
}
"""The ways of thinning a graph, by name; a new one is entered here."""


def sparsify(
    shard: GraphShard,
    comm: Communicator,
    method: str,
    keep: float,
    dtype: torch.dtype,
    seed: int = 0,
) -> ChannelOperator:
    """A_s, normalised like A_hat with its own degrees, ready to multiply; every rank must call it.

    Args:
        shard: this rank's part; channel 0 is sparsified.
        comm: this rank's communicator.
        method: a key of ``SPARSIFIERS``, or ``WHOLE``.
        keep: fraction of the edges kept, in (0, 1].
        dtype: of the values.
        seed: of the hash that draws the edges.
    """
    edges, probability = edge_probabilities(shard, comm, method, keep)
    low, high = torch.minimum(edges.row, edges.col), torch.maximum(edges.row, edges.col)
    kept = hash_uniform(seed, low, high) < probability
    channel = _subgraph(shard, edges, kept, HaloExchange.from_shard(shard, comm), comm)
    return ChannelOperator.from_shard(channel, dtype, comm.device)


def _subgraph(
    shard: GraphShard, edges: Edges, kept: Tensor, halo: HaloExchange, comm: Communicator
) -> ChannelShard:
    """The kept entries as a ChannelShard with its own degrees."""
    own, other = edges.own[kept], edges.other[kept]
    weight = None if edges.weight is None else edges.weight[kept]
    degree = torch.bincount(own, weight, minlength=shard.num_owned)
    remote = other >= shard.num_owned
    loops = torch.arange(shard.num_owned)
    rows = torch.cat([own[~remote], loops])
    cols = torch.cat([other[~remote], loops])
    columns = degree[:, None].to(comm.device, torch.float64)
    degree_halo = halo.start(columns).wait()[:, 0].cpu().to(degree.dtype)
    inside = None if weight is None else torch.cat([weight[~remote], torch.ones(shard.num_owned)])
    return ChannelShard(
        owned=csr_from_entries(rows, cols, shard.num_owned, shard.num_owned, inside),
        boundary=csr_from_entries(
            own[remote] - shard.num_interior,
            other[remote] - shard.num_owned,
            shard.num_owned - shard.num_interior,
            shard.num_halo,
            None if weight is None else weight[remote],
        ),
        degree_owned=degree,
        degree_halo=degree_halo,
        symmetric=shard.channels[0].symmetric,
        normalisation=shard.channels[0].normalisation,
    )
