"""What a cut edge costs METIS: the weights of all channels as the integers that it counts in.

Letters: n nodes, E entries of the union of the channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed_ignn.graph.data import CSRMatrix

#: What an edge of median weight counts; lighter ones are told apart down to a hundredth of it.
_MEDIAN = 100.0
#: Edges heavier than so many of median weight are never cut where it can be helped, and count so
#: much: a few enormous ones would else leave nothing to tell the others apart by.
_HEAVIEST = 1000.0
_LARGEST_SUM = 2**31 - 1  # METIS adds them up in 32 bits


def link_weights(graphs: tuple[CSRMatrix, ...]) -> tuple[CSRMatrix, Tensor]:
    """The union of the channels, and what each of its entries counts, int32 [E], at least 1.

    Channels without weights count 1 an edge, and both directions of an edge together, so that the
    result is symmetric.

    Args:
        graphs: adjacencies [n, n].
    """
    total = sp.csr_array((graphs[0].num_rows, graphs[0].num_rows), dtype=np.float64)
    for graph in graphs:
        total = total + _matrix(graph)
    total = (total + total.T).tocsr()
    total.sort_indices()
    rowptr = torch.from_numpy(total.indptr.astype(np.int64))
    col = torch.from_numpy(total.indices.astype(np.int32, copy=False))
    union = CSRMatrix(rowptr, col, None, graphs[0].num_cols)
    return union, torch.from_numpy(_integers(total.data))


def _matrix(graph: CSRMatrix) -> sp.csr_array:
    value = np.ones(graph.num_entries) if graph.value is None else graph.value.numpy()
    shape = (graph.num_rows, graph.num_cols)
    return sp.csr_array((value.astype(np.float64), graph.col.numpy(), graph.rowptr.numpy()), shape)


def _integers(weight: NDArray[np.float64]) -> NDArray[np.int32]:
    """Proportional to ``weight`` as far as whole numbers from 1 on go, and their sum in bounds."""
    weight = np.minimum(weight / np.median(weight), _HEAVIEST)
    room = max(_LARGEST_SUM - weight.size, 0)
    unit = min(_MEDIAN, room / weight.sum())
    return np.maximum(np.floor(weight * unit), 1.0).astype(np.int32)


def cut_weight(graphs: tuple[CSRMatrix, ...], part: Tensor) -> tuple[float, float]:
    """Weights of all entries of the weighted channels, and of those between different parts.

    Args:
        part: int64 [n], owner of every node.
    """
    total = cut = 0.0
    for value, row, col in _weighted_entries(graphs):
        total += float(value.sum())
        cut += float(value[part[row] != part[col]].sum())
    return total, cut


def _weighted_entries(graphs: tuple[CSRMatrix, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for graph in graphs:
        if graph.value is not None:
            yield graph.value.double(), graph.rows(), graph.col.long()
