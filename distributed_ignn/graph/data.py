"""A whole attributed graph in memory, as every loader returns it and the partitioner takes it.

Letters: n nodes, F features, C classes, E stored (directed) entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from distributed_ignn.graph.building import (
    Blocks,
    Ids,
    array_blocks,
    check_id_space,
    compress,
    positions,
    range_budget,
    row_ranges,
    slices,
)
from distributed_ignn.graph.feature_scaling import FeatureScaling
from distributed_ignn.graph.node_ids import NodeIds
from distributed_ignn.graph.weights import (
    WeightedBlocks,
    Weights,
    compress_weighted,
    mirrored,
    stored_weights,
)

Task = Literal["multiclass", "multilabel"]

UNKNOWN = -1
"""Stands for a label that is not known, in place of a class, or of 0 and 1."""
_ENTRIES = 1 << 20  # that are summed at once


@dataclass(frozen=True, slots=True, eq=False)
class CSRMatrix:
    """A sparse matrix in compressed rows.

    Args:
        rowptr: int64 [rows + 1], entry r to r + 1 delimits row r.
        col: int32 [E], ascending inside a row, without repeats.
        value: floating [E], or None where every entry is one.
        num_cols: number of columns.
    """

    rowptr: Tensor
    col: Tensor
    value: Tensor | None
    num_cols: int

    @property
    def num_rows(self) -> int:
        return self.rowptr.numel() - 1

    @property
    def num_entries(self) -> int:
        return self.col.numel()

    def problem(self) -> str | None:
        """Why the arrays are not compressed rows, in a few words; None if they are.

        Columns are not looked at: what they may be depends on what the matrix is for.
        """
        whole = (torch.int32, torch.int64)
        if self.rowptr.dtype is not torch.int64 or self.col.dtype not in whole:
            return f"its offsets and columns are {self.rowptr.dtype} and {self.col.dtype}"
        if self.rowptr.dim() != 1 or self.col.dim() != 1 or self.rowptr.numel() == 0:
            return "its offsets or columns are no plain list"
        if self.value is not None and self.value.shape != self.col.shape:
            return f"it has {self.value.numel()} values for {self.num_entries} entries"
        if int(self.rowptr[0]) != 0 or int(self.rowptr[-1]) != self.num_entries:
            return f"its offsets do not run from 0 to its {self.num_entries} entries"
        if bool((self.rowptr[1:] < self.rowptr[:-1]).any()):
            return "its offsets decrease"
        return None

    def pattern(self) -> CSRMatrix:
        """The same entries, all of them one."""
        return CSRMatrix(self.rowptr, self.col, None, self.num_cols)

    def row_sums(self) -> Tensor:
        """Sum of each row [rows]: int64 where every entry is one, else float64."""
        counts = self.rowptr[1:] - self.rowptr[:-1]
        if self.value is None:
            return counts
        sums = torch.empty(self.num_rows, dtype=torch.float64)
        for first, last in row_ranges(self.rowptr.numpy(), _ENTRIES):
            part = self.value[int(self.rowptr[first]) : int(self.rowptr[last])].double()
            sums[first:last] = torch.segment_reduce(part, "sum", lengths=counts[first:last])
        return sums

    def rows(self) -> Tensor:
        """Row index of every entry, int64 [E]."""
        counts = self.rowptr[1:] - self.rowptr[:-1]
        return torch.repeat_interleave(torch.arange(self.num_rows), counts)

    def select_rows(self, index: Tensor) -> CSRMatrix:
        """The matrix of rows ``index`` (int64 [k]), in that order."""
        rowptr = torch.zeros(index.numel() + 1, dtype=torch.int64)
        torch.cumsum((self.rowptr[1:] - self.rowptr[:-1])[index], 0, out=rowptr[1:])
        entries = int(rowptr[-1])
        col = torch.empty(entries, dtype=self.col.dtype)
        value = None if self.value is None else torch.empty(entries, dtype=self.value.dtype)
        for first, last in row_ranges(rowptr.numpy(), range_budget(entries)):
            where = torch.from_numpy(positions(self.rowptr.numpy(), index[first:last].numpy()))
            part = slice(int(rowptr[first]), int(rowptr[last]))
            col[part] = self.col[where]
            if value is not None and self.value is not None:
                value[part] = self.value[where]
        return CSRMatrix(rowptr, col, value, self.num_cols)

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Dense copy [rows, num_cols], which has to fit into memory."""
        dense = torch.zeros(self.num_rows, self.num_cols, dtype=dtype)
        dense[self.rows(), self.col] = 1.0 if self.value is None else self.value.to(dtype)
        return dense


def csr_from_blocks(blocks: Blocks, num_nodes: int, *, symmetric: bool = True) -> CSRMatrix:
    """Adjacency from blocks of edges: repeats and self-loops removed, both directions if symmetric.

    The peak of memory is the result plus at most half of it.

    Args:
        blocks: called several times; yields the same pairs of id arrays every time.
        num_nodes: n; ids lie in [0, n).
        symmetric: store every edge in both directions.

    Raises:
        UserError: more nodes than 32-bit ids can name.
    """
    rowptr, col = compress(blocks, num_nodes, num_nodes, mirrored=symmetric, loops=False)
    return CSRMatrix(torch.from_numpy(rowptr), torch.from_numpy(col), None, num_nodes)


def csr_from_weighted_blocks(
    blocks: WeightedBlocks, num_nodes: int, *, symmetric: bool = True
) -> CSRMatrix:
    """Adjacency with weights: parallel edges added up, self-loops and edges of weight 0 removed.

    Args:
        blocks: called several times; yields the same triples (row, column, weight) every time.
        num_nodes: n; ids lie in [0, n).
        symmetric: give every edge both directions. A missing one gets the weight of the other;
            where both are there, each keeps its own.

    Returns:
        Values in float32 where that is exact, else in float64; none where all of them are 1.

    Raises:
        UserError: more nodes than 32-bit ids can name.
    """
    found = compress_weighted(blocks, num_nodes)
    rowptr, col, value = mirrored(found) if symmetric else found
    kept = stored_weights(value)
    return CSRMatrix(torch.from_numpy(rowptr), torch.from_numpy(col), kept, num_nodes)


def entry_blocks(matrix: CSRMatrix) -> Blocks:
    """The entries of ``matrix`` as blocks of rows (int64) and columns."""
    rowptr, col = matrix.rowptr.numpy(), matrix.col.numpy()

    def blocks() -> Iterator[tuple[Ids, Ids]]:
        for first, last in row_ranges(rowptr, range_budget(col.size)):
            row = np.repeat(np.arange(first, last), np.diff(rowptr[first : last + 1]))
            yield row, col[rowptr[first] : rowptr[last]]

    return blocks


def csr_from_entries(
    row: Tensor, col: Tensor, num_rows: int, num_cols: int, value: Tensor | None = None
) -> CSRMatrix:
    """Compressed rows of entries in any order.

    Args:
        row, col: integers [E]; a pair may be repeated only without ``value``, and is stored once.
        num_rows, num_cols: shape of the matrix.
        value: [E], or None where every entry is one.

    Raises:
        UserError: more rows or columns than 32-bit ids can name.
    """
    if value is None:
        found = compress(array_blocks(row.numpy(), col.numpy()), num_rows, num_cols)
        return CSRMatrix(torch.from_numpy(found[0]), torch.from_numpy(found[1]), None, num_cols)
    check_id_space(max(num_rows, num_cols), "rows or columns")
    order = torch.argsort(row.to(torch.int64) * num_cols + col)
    rowptr = torch.zeros(num_rows + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=num_rows), 0, out=rowptr[1:])
    return CSRMatrix(rowptr, col[order].to(torch.int32), value[order], num_cols)


def csr_from_edges(
    source: Tensor,
    target: Tensor,
    num_nodes: int,
    weight: Tensor | None = None,
    *,
    symmetric: bool = True,
) -> CSRMatrix:
    """As ``csr_from_blocks`` or ``csr_from_weighted_blocks``, from what is in memory or mapped.

    Args:
        source, target: integers [E]: row and column of every edge. Where directions matter, note
            that PyG's messages go from ``edge_index[0]`` to ``edge_index[1]``, which is the row.
        num_nodes: n; ids lie in [0, n).
        weight: floating [E], finite and not negative (``checked_weights``), or None.
        symmetric: give every edge both directions.

    Raises:
        UserError: more nodes than 32-bit ids can name.
    """
    row, col = source.numpy(), target.numpy()
    if weight is None:
        return csr_from_blocks(array_blocks(row, col), num_nodes, symmetric=symmetric)
    value = weight.numpy()

    def blocks() -> Iterator[tuple[Ids, Ids, Weights]]:
        for part in slices(row.size):
            yield row[part], col[part], value[part]

    return csr_from_weighted_blocks(blocks, num_nodes, symmetric=symmetric)


def is_symmetric(graph: CSRMatrix) -> bool:
    """Whether every entry (i, j) has its entry (j, i), of the same value.

    Reading a symmetric matrix row by row meets the entries of every column in the order in which
    its own row stores them, so a cursor for every row replaces a transposed copy.
    """
    if graph.num_rows != graph.num_cols:
        return False
    rowptr, col = graph.rowptr.numpy(), graph.col.numpy()
    value = None if graph.value is None else graph.value.numpy()
    cursor, ends = rowptr[:-1].copy(), rowptr[1:]
    for first, last in row_ranges(rowptr, range_budget(col.size)):
        span = slice(rowptr[first], rowptr[last])
        entries = np.ones(span.stop - span.start, np.int8) if value is None else value[span]
        flipped = _flipped(entries, graph, first, last)
        count = np.diff(flipped.indptr)
        if (cursor + count > ends).any():
            return False
        where = np.repeat(cursor - flipped.indptr[:-1], count)
        where += np.arange(where.size)
        if (col[where] != flipped.indices + first).any():
            return False
        if value is not None and (value[where] != flipped.data).any():
            return False
        cursor += count
    return True


def transpose(matrix: CSRMatrix) -> tuple[CSRMatrix, Tensor]:
    """Pattern of the transpose and, per entry of it, the position in ``matrix``, int64 [E]."""
    position = np.arange(matrix.num_entries)
    flipped = _flipped(position, matrix, 0, matrix.num_rows)
    rowptr = torch.from_numpy(flipped.indptr.astype(np.int64))
    col = torch.from_numpy(flipped.indices.astype(np.int32, copy=False))
    return CSRMatrix(rowptr, col, None, matrix.num_rows), torch.from_numpy(flipped.data)


def turned(matrix: CSRMatrix) -> CSRMatrix:
    """The transpose, with its values."""
    pattern, position = transpose(matrix)
    value = None if matrix.value is None else matrix.value[position]
    return CSRMatrix(pattern.rowptr, pattern.col, value, pattern.num_cols)


def _flipped(entries: np.ndarray, matrix: CSRMatrix, first: int, last: int) -> sp.csc_array:
    """Rows [first, last) by column, each entry with its own of ``entries``."""
    rowptr = matrix.rowptr.numpy()[first : last + 1]
    col = matrix.col.numpy()[rowptr[0] : rowptr[-1]]
    shape = (last - first, matrix.num_cols)
    # scipy counts instead of sorting
    return sp.csr_array((entries, col, rowptr - rowptr[0]), shape=shape).tocsc()


@dataclass(frozen=True, slots=True, eq=False)
class GraphData:
    """One attributed graph with its task and its splits, whole, on the CPU.

    Args:
        name: dataset name.
        graphs: one adjacency [n, n] per propagation channel, without self-loops; the first
            ``graph_channels`` are the dataset's own graph. Values are weights, above 0; None: every
            edge weighs 1.
        features: CSRMatrix [n, F] or dense floating Tensor [n, F]; None means that the model
            learns an embedding per node.
        labels: int64 [n] for multiclass, float32 [n, C] of 0 and 1 for multilabel; -1 where one is
            not known.
        num_classes: C.
        task: which loss and metric apply.
        train_nodes, val_nodes, test_nodes: int64, ascending, disjoint node ids.
        clusters: int64 [n], the node's cluster of the coarse level, or None without one. Not part
            of the fingerprint: it follows from the graphs and the partition settings.
        graph_channels: how many channels, from the first, are the dataset's own graph: 1, or 2
            where whom a node reads and who reads it have a channel each; the second is then the
            transpose of the first.
        scaling: what was done to the features, where the settings alone do not say it; not part of
            the fingerprint, which has the features.
        class_names: one for each class, or none where classes have numbers alone.
        node_ids: what the user's own table calls the nodes, where it does not count them from 0.
    """

    name: str
    graphs: tuple[CSRMatrix, ...]
    features: CSRMatrix | Tensor | None
    labels: Tensor
    num_classes: int
    task: Task
    train_nodes: Tensor
    val_nodes: Tensor
    test_nodes: Tensor
    clusters: Tensor | None = None
    graph_channels: int = 1
    scaling: FeatureScaling | None = None
    class_names: tuple[str, ...] = ()
    node_ids: NodeIds | None = None

    @property
    def num_nodes(self) -> int:
        return self.graphs[0].num_rows

    @property
    def num_features(self) -> int:
        """F, or 0 without features."""
        if self.features is None:
            return 0
        if isinstance(self.features, CSRMatrix):
            return self.features.num_cols
        return self.features.shape[1]

    @property
    def num_undirected_edges(self) -> int:
        """Edges of channel 0, each counted once whatever its directions stored."""
        graph = self.graphs[0]
        if is_symmetric(graph):
            return graph.num_entries // 2
        return csr_from_blocks(entry_blocks(graph), self.num_nodes).num_entries // 2

    def fingerprint(self) -> str:
        """sha256 over every array: shards of other data, or of other settings, do not match."""
        digest = hashlib.sha256(f"{self.task}:{self.num_classes}".encode())
        if self.graph_channels > 1:
            digest.update(f"graph channels {self.graph_channels}".encode())
        if self.class_names:
            digest.update(repr(self.class_names).encode())
        tensors: list[Tensor | None] = [
            self.labels,
            self.train_nodes,
            self.val_nodes,
            self.test_nodes,
        ]
        for matrix in (*self.graphs, self.features):
            if isinstance(matrix, CSRMatrix):
                tensors += [matrix.rowptr, matrix.col, matrix.value]
            else:
                tensors.append(matrix)
        if self.node_ids is not None:
            tensors += [self.node_ids.tensors[name] for name in sorted(self.node_ids.tensors)]
        for tensor in tensors:
            if tensor is None:
                digest.update(b"none")
                continue
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()
