"""How far a point may be from the equilibrium: a bound that holds, not an estimate.

Where f contracts by c < 1 in a norm, ||Y - Z*|| <= ||f(Y) - Y|| / (1 - c) (Banach). Here Y is the
state that predictions are read out from, f(Y) is evaluated once more with exact halo rows, and c is
that of the present weights, which is often well below the kappa that they are bounded by. What
rounding can have done to the evaluation is added to the residual: a sum of m products is off by at
most m eps times the sum of their absolute values (Higham 2002, section 3.1), and the sum of the
absolute values is the same map with absolute values in it. So the bound holds for the exact
equilibrium of the given weights and b(X).

One number for the whole graph says little about a single node. With r_i the residual of a row and
e_i any bound on its error, r_i + (1 - t) e_i + t sum_c s_c (B_c e)_i is one too, s_c the gain of
W_c. So the bounds on rows are improved by sweeps of one column each, as long as that helps.

Letters: O owned nodes, D hidden width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.shard import ChannelShard, GraphShard
from distributed_ignn.models.cells.base import CellWeights
from distributed_ignn.models.maps import CellForm
from distributed_ignn.models.shard_model import ShardModel

_BLOCK_ROWS = 1 << 15
_SWEEPS = 500
_WORTHWHILE = 0.99  # a sweep that leaves more than this of the rows' bounds is the last
_FEW = 16  # roundings of a row besides those of its sums: scaling, activation, subtraction

NORMS = {
    "max": "max_ij |Z_ij| / w_i",
    "rows": "max_i ||Z_i||_2 / w_i",
    "frobenius": "Frobenius",
}
"""What the norms of ``CellWeights.norm`` are called; w is the vector of ``certified_growth``."""


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """A bound on the distance of a point to the equilibrium.

    Args:
        norm: a key of ``NORMS``.
        contraction: c of the present weights, rounded up.
        residual: ||f(Y) - Y|| with what rounding may have hidden of it.
        size: ||Y||.
        rows: by how much a row may be off, [O] float64: every entry of it where the norm is
            ``max``, its length in the others.
    """

    norm: str
    contraction: float
    residual: float
    size: float
    rows: Tensor

    @property
    def distance(self) -> float:
        """The bound on ||Y - Z*||."""
        return self.residual / (1.0 - self.contraction)

    @property
    def relative(self) -> float:
        """The bound in parts of ||Y||; 0 where both vanish."""
        return self.distance / self.size if self.distance > 0.0 else 0.0


@torch.no_grad()
def certify(
    model: ShardModel, shard: GraphShard, comm: Communicator, point: Tensor
) -> Certificate | None:
    """Certificate of a state [O, D]; None where the present weights do not contract.

    Nor is there one where the activation does not promise what the bound on rounding counts on.

    It costs two exchanges and the sweeps of one column. Every rank calls it.
    """
    weights: CellWeights = model.cell_weights
    unit = _rounding(shard, comm, point)
    # computed in float64, unlike the point
    slack = unit * torch.finfo(torch.float64).eps / torch.finfo(point.dtype).eps
    contraction = weights.present_contraction() * (1.0 + slack)
    certified = model.layer.form.activation.certified
    if not certified or not contraction < 1.0:  # or not a number
        return None
    scale = torch.ones(point.shape[0], dtype=torch.float64, device=point.device)
    if weights.vector is not None:
        scale = weights.vector
    sizes = torch.zeros(3, dtype=torch.float64)
    image, worst = _evaluate(model, point)
    left = torch.zeros_like(scale)
    for rows in _blocks(point):
        here, there = point[rows].double(), image[rows].double()
        error = unit * worst[rows].double()
        parts = (there - here, error, here)
        found = torch.stack([_norm(part, scale[rows], weights.norm) for part in parts])
        left[rows] = sum(_lengths(part, weights.norm) for part in parts[:2])
        sizes = sizes + found.cpu() if weights.norm == "frobenius" else sizes.maximum(found.cpu())
    sizes = comm.sum(sizes).sqrt() if weights.norm == "frobenius" else comm.max(sizes)
    residual, error_size, size = sizes.tolist()
    total = residual + error_size
    if not math.isfinite(total) or size == 0.0 < total:
        return None
    bound = scale * (total / (1.0 - contraction))
    rows_bound = _sweep(model, comm, bound, left, 1.0 + unit)
    return Certificate(weights.norm, contraction, total, size, rows_bound)


@torch.no_grad()
def settled_nodes(
    model: ShardModel,
    certificate: Certificate,
    state: Tensor,
    multilabel: bool,
    nodes: Tensor | None = None,
) -> Tensor:
    """Nodes whose predicted label is certain to be that of the equilibrium, bool [O], or [R].

    The difference of two logits moves by at most the bound on its node's row times the dual norm of
    the difference of their weights.

    Args:
        model: its readout.
        certificate: of ``state``.
        state: [O, D].
        multilabel: whether labels are signs of logits instead of the largest one.
        nodes: owned ids [R] of the nodes asked for; None for all.
    """
    bounds = certificate.rows
    if nodes is not None:
        state, bounds = state.index_select(0, nodes), bounds.index_select(0, nodes)
    weight = model.head.weight.double()
    order = 1.0 if certificate.norm == "max" else 2.0
    eps = (weight.shape[1] + _FEW) * torch.finfo(state.dtype).eps
    bias = model.head.bias.double().abs()
    settled = []
    for rows in _blocks(state):
        logits = model.read_out(state[rows]).double()
        slack = eps * (state[rows].double().abs() @ weight.abs().T + bias)
        reach = bounds[rows][:, None]
        if multilabel:
            moves = reach * weight.norm(order, dim=1) + slack
            settled.append((logits.abs() > moves).all(dim=1))
            continue
        top = logits.argmax(dim=1)
        gaps = torch.cdist(weight, weight, p=order)[top]
        lead = logits.gather(1, top[:, None]) - logits
        moves = reach * gaps + slack + slack.gather(1, top[:, None])
        safe = (lead > moves).scatter_(1, top[:, None], True)
        settled.append(safe.all(dim=1))
    return torch.cat(settled) if settled else torch.zeros(0, dtype=torch.bool)


def _rounding(shard: GraphShard, comm: Communicator, point: Tensor) -> float:
    """eps times the most numbers that any entry of an image is summed from, on any rank."""
    longest = [_longest_row(channel) for channel in shard.channels]
    terms = comm.max(torch.tensor(longest, dtype=torch.int64)).sum()
    count = int(terms) + len(longest) * point.shape[1] + _FEW
    return count * torch.finfo(point.dtype).eps


def _longest_row(channel: ChannelShard) -> int:
    """The most entries that any owned row has in both blocks."""
    count = channel.owned.rowptr.diff()
    count[count.numel() - channel.boundary.num_rows :] += channel.boundary.rowptr.diff()
    return int(count.max()) if count.numel() else 0


def _evaluate(model: ShardModel, point: Tensor) -> tuple[Tensor, Tensor]:
    """f(Y), and the same sums with absolute values, [O, D] each; exact halo rows."""
    injection, weights = model.injection(), model.channel_weights()
    cell = model.layer.cell(injection, weights)
    form: CellForm = cell.form
    total = cell.pre_activation(point).mul_(form.step).add_(point, alpha=1.0 - form.step)
    image = form.activate(total)
    largest = model.layer.cell(injection.abs(), [weight.abs() for weight in weights])
    worst = largest.pre_activation(point.abs()).add_(point.abs())
    return image, worst


def _sweep(
    model: ShardModel, comm: Communicator, bound: Tensor, left: Tensor, margin: float
) -> Tensor:
    """Better bounds on the rows' errors [O] than ``bound``, from their residuals ``left`` [O].

    ``margin`` is for the rounding of a sweep.
    """
    matrices = torch.stack(model.channel_weights()).double()
    if model.cell_weights.norm == "max":
        gains = matrices.abs().sum(dim=1)  # [C, D]: of every column
    else:
        gains = torch.linalg.matrix_norm(matrices, ord=2)[:, None]
    step = model.layer.form.at(model.channel_weights()).step
    total = float(comm.sum(bound.sum().cpu().reshape(1)))
    for _ in range(_SWEEPS):
        columns = bound[:, None].to(model.head.weight.dtype)
        products = torch.cat(model.layer.products(columns), dim=1).double()
        reach = torch.empty_like(bound)
        for rows in _blocks(bound):
            reach[rows] = (products[rows] @ gains).amax(dim=1)
        bound = bound.minimum(((1.0 - step) * bound + step * reach + left) * margin)
        before, total = total, float(comm.sum(bound.sum().cpu().reshape(1)))
        if total > _WORTHWHILE * before:
            break
    return bound


def _norm(rows: Tensor, scale: Tensor, norm: str) -> Tensor:
    """Of some rows; its square where squares are summed."""
    if norm == "frobenius":
        return rows.square().sum()
    lengths = _lengths(rows, norm)
    return (lengths / scale).max() if lengths.numel() else lengths.new_zeros(())


def _lengths(rows: Tensor, norm: str) -> Tensor:
    """Of each row [r, D]: its largest entry where the norm is ``max``, else its length."""
    return rows.abs().amax(dim=1) if norm == "max" else rows.norm(dim=1)


def _blocks(rows: Tensor) -> Iterator[slice]:
    for begin in range(0, rows.shape[0], _BLOCK_ROWS):
        yield slice(begin, begin + _BLOCK_ROWS)
