"""What keeps the map a contraction: a bound on the weights, and the graph's own growth factor.

f(Z) = relu(sum_c A_c Z W_c + b). Entry by entry |sum_c A_c Z W_c| <= sum_c A_c |Z| |W_c|. If a
positive vector w satisfies A_c w <= rho w for every channel c, then in the norm
max_ij |Z_ij| / w_i the map's Lipschitz constant is at most

    rho * max_j sum_c sum_k |W_c[k, j]|.

So the columns of the stacked weights are projected to sums of at most kappa / rho (Gu et al. 2020,
section 3: projection on the l1 ball). For one normalised channel the Perron vector is sqrt(D~) and
rho = 1, with or without weights of edges. For several symmetrically normalised channels no vector
fits all of them exactly; w is found by the power method on the monotone map w -> max_c A_c w, and
any positive w certifies its own rho = max_i max_c (A_c w)_i / w_i (Collatz-Wielandt). The search
may be as rough as the run's number format; rho is computed in float64, because float32 is off by
parts in ten thousand where a hub's row sums as many numbers.

Channels that are normalised by row, A_c = D_c^-1 (A_c + I) with D_c the row sums, all keep the
vector of ones: A_c 1 = 1, however many there are, directed or not, with weights or without. So
w = 1 and rho = 1 exactly, and kappa is not shared with the graph: this is what the in- and the
out-neighbours of a directed graph are propagated with (Dir-GNN, Rossi et al. 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.building import row_ranges
from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.propagation.operators import perron_vector
from distributed_ignn.propagation.propagate import Propagation

_POWER_STEPS = 200
_POWER_TOLERANCE = 1e-6
_POWER_PATIENCE = 20
_ENTRIES = 1 << 20


def project_columns_l1(weight: Tensor, radius: float) -> Tensor:
    """Nearest matrix whose columns have absolute sums of at most ``radius``.

    Sort-based projection on the l1 ball (Duchi et al. 2008), all columns at once on the device.

    Args:
        weight: [K, D].
        radius: bound on each column sum of |weight|, positive.
    """
    magnitude = weight.abs()
    ordered, _ = torch.sort(magnitude, dim=0, descending=True)
    excess = torch.cumsum(ordered, dim=0) - radius
    count = torch.arange(1, weight.shape[0] + 1, device=weight.device, dtype=weight.dtype)[:, None]
    active = (ordered * count > excess).sum(dim=0, keepdim=True).clamp_min(1)
    threshold = torch.gather(excess, 0, active - 1) / active
    inside = magnitude.sum(dim=0, keepdim=True) <= radius
    shrunk = torch.sign(weight) * (magnitude - threshold).clamp_min(0.0)
    return torch.where(inside, weight, shrunk)


def certified_growth(
    shard: GraphShard, propagation: Propagation, comm: Communicator, dtype: torch.dtype
) -> tuple[float, Tensor]:
    """rho, at least the joint Perron root of the channels, and the w [O] that certifies it.

    Both are float64, whatever the run computes in; every rank calls it.

    Args:
        shard: this rank's part.
        propagation: its normalised channels.
        comm: reduces the bound over ranks.
        dtype: of ``propagation``.
    """
    if propagation.num_channels == 1 or propagation.keeps_ones:
        return 1.0, first_vector(shard, comm.device, torch.float64)
    start = first_vector(shard, comm.device, dtype)
    w = growth_vector(propagation, start, comm)[1].double()
    return _growth_of(shard, propagation, comm, w), w


def _growth_of(shard: GraphShard, propagation: Propagation, comm: Communicator, w: Tensor) -> float:
    """max_i max_c (A_c w)_i / w_i over all ranks, from the stored entries; w is float64 [O]."""
    halo = propagation.halo.start(w[:, None].contiguous()).wait()[:, 0].cpu()
    own, found = w.cpu(), torch.zeros(1, dtype=torch.float64)
    for channel in shard.channels:
        scale = (channel.degree_owned + 1).double().rsqrt()
        far = halo * (channel.degree_halo + 1).double().rsqrt()
        image = _row_sums(channel.owned, own * scale)
        image[shard.num_interior :] += _row_sums(channel.boundary, far)
        if own.numel():
            found = found.maximum((image * scale / own).max())
    return float(comm.max(found))


def _row_sums(matrix: CSRMatrix, x: Tensor) -> Tensor:
    """``matrix`` x in float64, so many rows at a time as have about a million entries."""
    sums = x.new_zeros(matrix.num_rows)
    for first, last in row_ranges(matrix.rowptr.numpy(), _ENTRIES):
        offsets = matrix.rowptr[first : last + 1]
        part = slice(int(offsets[0]), int(offsets[-1]))
        terms = x.index_select(0, matrix.col[part])
        if matrix.value is not None:
            terms *= matrix.value[part].double()
        sums[first:last] = torch.segment_reduce(terms, "sum", lengths=offsets.diff())
    return sums


def first_vector(shard: GraphShard, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The Perron vector [O] of the dataset's own graph, where the search for w begins.

    It is the exact answer for one undirected channel, and for channels that are normalised by row.
    """
    return perron_vector(shard.channels[0], dtype, device)


def growth_vector(
    propagation: Propagation, start: Tensor, comm: Communicator
) -> tuple[float, Tensor]:
    """A w [O] whose rho is about the least, and that rho as far as the number format tells it.

    Args:
        propagation: this rank's normalised channels.
        start: positive [O], in the format of ``propagation``; see ``first_vector``.
        comm: reduces the bound over ranks.
    """
    if propagation.keeps_ones:
        return 1.0, torch.ones_like(start)
    w, bound, stalled = start, float("inf"), 0
    best = start
    for _ in range(_POWER_STEPS):
        products = propagation.apply(w[:, None].contiguous())
        image = torch.stack(products).amax(dim=0)[:, 0]
        ratio = (image / w).max() if w.numel() else image.new_zeros(())
        top = image.max() if w.numel() else image.new_zeros(())
        ratio_all, top_all = comm.max(torch.stack([ratio, top]).double().cpu()).tolist()
        # the bound never rises, but may rest for a while where the extreme node is far from others
        stalled = stalled + 1 if bound - ratio_all <= _POWER_TOLERANCE * bound else 0
        if ratio_all < bound:
            bound, best = ratio_all, w
        if stalled == _POWER_PATIENCE or bound <= 1.0 + _POWER_TOLERANCE:
            break
        w = (image / top_all).clamp_min(torch.finfo(w.dtype).tiny)
    return bound, best


def largest_column_sum(weight: Tensor) -> float:
    """max_j sum_k |weight[k, j]|, the quantity that kappa / rho bounds."""
    return float(weight.detach().abs().sum(dim=0).max())
