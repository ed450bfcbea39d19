"""Weights of edges: what they may be, and compressed rows that carry them.

A weight is a number above 0. Parallel edges add up; an edge of weight 0 is no edge, and self-loops
are left out, because A + I adds one of weight 1 to every node. Weights that are all 1 are no
weights. Letters: E edges, n nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.building import Ids, check_id_space, range_budget, row_ranges

Weights = NDArray[np.floating]
WeightedBlocks = Callable[[], Iterable[tuple[Ids, Ids, Weights]]]
WeightedRows = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]

#: Two directions whose weights differ by less, relative to the larger one, differ by rounding.
_ROUNDING = 1e-6


def checked_weights(given: Tensor, edges: int, what: str, without: str) -> Tensor:
    """The weights of a graph as float64 [E], if they can be used.

    Args:
        given: [E] or [E, 1], of any real type.
        edges: E.
        what: their name, the first words of any message.
        without: how to go without them, the last words of any message.

    Raises:
        UserError: several columns, another number of weights, a negative one, NaN or infinity.
    """
    if given.dim() == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.dim() != 1:
        raise UserError(
            f"{what} has shape {tuple(given.shape)}; one number an edge is needed, choose a column "
            f"and save it as edge_weight [E], or {without}"
        )
    if given.numel() != edges:
        raise UserError(
            f"{what} holds {given.numel()} weights for {edges} edges; give one an edge, or "
            f"{without}"
        )
    weight = given.to(torch.float64)
    bad = ~(weight >= 0.0) | weight.isinf()
    if bool(bad.any()):
        edge = int(bad.nonzero()[0])
        raise UserError(
            f"{what}: edge {edge} has weight {float(weight[edge]):g}; weights are finite numbers "
            f"from 0 on, correct it, or {without}"
        )
    if not bool(weight.sum().isfinite()):
        raise UserError(
            f"{what}: the weights sum to more than a number can hold; divide all of them by "
            f"{float(weight.max()):g}, or {without}"
        )
    return weight


def compress_weighted(blocks: WeightedBlocks, num_nodes: int) -> WeightedRows:
    """Offsets, ascending columns and sums of the weights of parallel entries, without self-loops.

    Equal entries are added in the order in which the blocks bring them.

    Args:
        blocks: called several times; yields the same triples (row, column, weight) every time.
        num_nodes: n; ids outside it are the caller's mistake.

    Raises:
        UserError: more nodes than 32-bit ids can name.
    """
    check_id_space(num_nodes, "nodes")
    given = np.zeros(num_nodes + 1, np.int64)
    for row, _, _ in _links(blocks):
        given[1:] += np.bincount(row, minlength=num_nodes)
    np.cumsum(given, out=given)
    entries = int(given[-1])
    rowptr = np.zeros(num_nodes + 1, np.int64)
    columns, values = np.empty(entries, np.int32), np.empty(entries, np.float64)
    used = 0
    for first, last in row_ranges(given, range_budget(entries)):
        keys, sums = _added_up(blocks, first, last, int(given[last] - given[first]))
        ends = np.searchsorted(keys, np.arange(1, last - first + 1, dtype=np.int64) << 32)
        rowptr[first + 1 : last + 1] = used + ends
        columns[used : used + keys.size] = keys  # the cast keeps the lower half: the column
        values[used : used + keys.size] = sums
        used += keys.size
    return rowptr, columns[:used].copy(), values[:used].copy()


def _links(blocks: WeightedBlocks) -> Iterable[tuple[Ids, Ids, Weights]]:
    """What counts as an edge."""
    for row, col, weight in blocks():
        keep = (row != col) & (weight != 0)
        yield row[keep], col[keep], weight[keep]


def _added_up(
    blocks: WeightedBlocks, first: int, last: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Distinct (row - first) * 2**32 + column of rows [first, last), ascending, and their sums."""
    keys, weights = np.empty(count, np.int64), np.empty(count, np.float64)
    filled = 0
    for row, col, weight in _links(blocks):
        chosen = np.flatnonzero((row >= first) & (row < last))
        part = slice(filled, filled + chosen.size)
        keys[part] = ((row[chosen].astype(np.int64) - first) << 32) | col[chosen]
        weights[part] = weight[chosen]
        filled += chosen.size
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    new = np.ones(count, np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    start = np.flatnonzero(new)
    return keys[start], np.add.reduceat(weights[order], start)


def mirrored(rows: WeightedRows) -> WeightedRows:
    """Both directions of every edge: one that is missing gets the weight of the other.

    Where both are there, each keeps its own weight, unless they differ by no more than rounding:
    then both get the mean.
    """
    rowptr, col, value = rows
    shape = (rowptr.size - 1, rowptr.size - 1)
    given = sp.csr_array((value, col, rowptr), shape=shape)
    turned = given.T.tocsr()
    missing = turned - turned.multiply(sp.csr_array((np.ones_like(value), col, rowptr), shape))
    both = given + missing  # entries that cancel are not stored
    both.sort_indices()
    back = both.T.tocsr()  # the pattern is symmetric, so entries correspond
    here, there = both.data, back.data
    equal = np.abs(here - there) <= _ROUNDING * np.maximum(here, there)
    value = np.where(equal, (here + there) / 2, here)
    return both.indptr.astype(np.int64), both.indices.astype(np.int32, copy=False), value


def stored_weights(value: NDArray[np.float64]) -> Tensor | None:
    """In as few bits as lose nothing: None where all are 1, float32 where that is exact."""
    if (value == 1.0).all():
        return None
    with np.errstate(over="ignore", under="ignore"):
        short = value.astype(np.float32)
    return torch.from_numpy(short if (short == value).all() else value)
