"""Rows of one part out of the whole graph, a block of entries at a time.

The peak of memory is the block of the result plus a part of it, however many entries the graph has.
Letters: n nodes, O owned nodes, I interior nodes, B = O - I boundary nodes, H halo nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed_ignn.graph.building import positions, range_budget, row_ranges
from distributed_ignn.graph.data import CSRMatrix


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What a part reads, before its nodes are put in order.

    Args:
        nodes: int64 [O] owned global ids, ascending.
        on_boundary: bool [O], whether the node's row reads a node of another part.
        halo_nodes: int64 [H] global ids that owned rows read from other parts, ascending.
        entries, cut_entries: per channel, stored entries of the rows, and those that leave.
    """

    nodes: Tensor
    on_boundary: Tensor
    halo_nodes: Tensor
    entries: tuple[int, ...]
    cut_entries: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Entries of rows [first, last) of a list of nodes.

    Args:
        row: int64 [e], position in the list.
        col: int32 [e], global id.
        value: floating [e], or None where every entry is one.
    """

    first: int
    last: int
    row: NDArray[np.int64]
    col: NDArray[np.int32]
    value: NDArray[np.floating] | None


def _read_rows(graph: CSRMatrix, nodes: NDArray[np.int64]) -> Iterator[_Rows]:
    """All entries of ``nodes`` in blocks of whole rows, in that order."""
    rowptr, col = graph.rowptr.numpy(), graph.col.numpy()
    value = None if graph.value is None else graph.value.numpy()
    count = rowptr[nodes + 1] - rowptr[nodes]
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
    for first, last in row_ranges(ends, range_budget(int(ends[-1]))):
        row = np.repeat(np.arange(first, last), count[first:last])
        where = positions(rowptr, nodes[first:last])
        yield _Rows(first, last, row, col[where], None if value is None else value[where])


def outline(
    graphs: tuple[CSRMatrix, ...], owner: NDArray[np.int32], p: int, nodes: Tensor
) -> Outline:
    """What part ``p`` reads.

    Args:
        graphs: all channels.
        owner: int32 [n], owning part of every node.
        nodes: int64 [O], ascending: those of part ``p``.

    Raises:
        ValueError: a graph holds self-loops.
    """
    mine = nodes.numpy()
    on_boundary = np.zeros(mine.size, np.bool_)
    in_halo = np.zeros(owner.size, np.bool_)
    entries, cut_entries = [], []
    for graph in graphs:
        total = left = 0
        for block in _read_rows(graph, mine):
            if (mine[block.row] == block.col).any():
                raise ValueError("a graph to be cut holds self-loops; shards add them themselves")
            cut = np.flatnonzero(owner[block.col] != p)
            on_boundary[block.row[cut]] = True
            in_halo[block.col[cut]] = True
            total += block.col.size
            left += cut.size
        entries.append(total)
        cut_entries.append(left)
    return Outline(
        nodes=nodes,
        on_boundary=torch.from_numpy(on_boundary),
        halo_nodes=torch.from_numpy(np.flatnonzero(in_halo)),
        entries=tuple(entries),
        cut_entries=tuple(cut_entries),
    )


def cut_blocks(
    graph: CSRMatrix,
    owned_nodes: Tensor,
    interior: int,
    halo: int,
    local_id: NDArray[np.int32],
    outside: int,
) -> tuple[CSRMatrix, CSRMatrix]:
    """Owned block [O, O] with self-loops and boundary block [B, H] of one part's rows.

    Where the graph has weights, self-loops weigh 1.

    Args:
        owned_nodes: int64 [O] global ids in the part's order.
        interior: I.
        halo: H.
        local_id: int32 [n]; owned id o of an owned node, O + h for halo id h.
        outside: entries of the boundary block.
    """
    owned = owned_nodes.numel()
    mine = owned_nodes.numpy()
    entries = int((graph.rowptr[1:] - graph.rowptr[:-1])[owned_nodes].sum())
    kind = None if graph.value is None else graph.value.numpy().dtype
    inner = _Writer(owned, owned, entries - outside + owned, kind)
    outer = _Writer(owned - interior, halo, outside, kind)
    for block in _read_rows(graph, mine):
        col = local_id[block.col]
        leaves = col >= owned
        loop = np.arange(block.first, block.last)
        stays = ~leaves
        inside, across = _values(block, stays, loop.size), _values(block, leaves, 0)
        inner.append(
            block.first,
            block.last,
            np.concatenate([block.row[stays], loop]),
            np.concatenate([col[stays], loop.astype(np.int32)]),
            inside,
        )
        del stays
        first, last = (max(row - interior, 0) for row in (block.first, block.last))
        outer.append(first, last, block.row[leaves] - interior, col[leaves] - owned, across)
    return inner.matrix(), outer.matrix()


def _values(block: _Rows, chosen: NDArray[np.bool_], loops: int) -> NDArray[np.floating] | None:
    """Weights of the ``chosen`` entries and of so many self-loops."""
    if block.value is None:
        return None
    return np.concatenate([block.value[chosen], np.ones(loops, block.value.dtype)])


class _Writer:
    """A CSRMatrix that grows by blocks of whole rows; ``kind`` is the type of its values."""

    def __init__(self, rows: int, num_cols: int, entries: int, kind: np.dtype | None) -> None:
        self._num_cols = num_cols
        self._rowptr = np.zeros(rows + 1, np.int64)
        self._col = np.empty(entries, np.int32)
        self._value = None if kind is None else np.empty(entries, kind)

    def append(
        self,
        first: int,
        last: int,
        row: NDArray[np.int64],
        col: NDArray[np.int32],
        value: NDArray[np.floating] | None,
    ) -> None:
        """Rows [first, last), their entries in any order."""
        if first == last:
            return
        used = self._rowptr[first]
        keys = row - first
        keys <<= 32
        keys |= col
        if self._value is not None and value is not None:
            order = np.argsort(keys)
            self._value[used : used + keys.size] = value[order]
        keys.sort()
        ends = np.searchsorted(keys, np.arange(1, last - first + 1, dtype=np.int64) << 32)
        self._rowptr[first + 1 : last + 1] = used + ends
        self._col[used : used + keys.size] = keys  # the lower half: the column

    def matrix(self) -> CSRMatrix:
        value = None if self._value is None else torch.from_numpy(self._value)
        return CSRMatrix(
            torch.from_numpy(self._rowptr), torch.from_numpy(self._col), value, self._num_cols
        )
