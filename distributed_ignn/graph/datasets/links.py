"""The edges of the user's own graph, their weights and directions.

Letters: n nodes, E edges.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from distributed_ignn.config.dataset import Directions, EdgeWeights
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, csr_from_edges, is_symmetric, turned
from distributed_ignn.graph.datasets.checks import check_ids
from distributed_ignn.graph.datasets.fields import WEIGHTS, Fields
from distributed_ignn.graph.weights import checked_weights

logger = logging.getLogger(__name__)

_FEW = 0.05
"""Share of edges without a way back up to which ``directions = auto`` adds what is missing."""

_WITHOUT = "leave them out (for training, --data.edge-weights ignore does that)"


def graph_channels(
    fields: Fields, n: int, edge_weights: EdgeWeights, directions: Directions
) -> tuple[CSRMatrix, ...]:
    """The undirected graph, or who each node reads and who reads it.

    Args:
        fields: with ``edge_index``, ``adj_t``, or ``indptr`` and ``indices``.
        n: number of nodes.
        edge_weights, directions: see ``DataConfig``.

    Raises:
        UserError: edges are missing or break a rule.
    """
    origin = fields.origin
    row, col, weight = _entries(fields, n, edge_weights)
    source = "y" if "y" in fields else "x"
    for ends in (row, col):
        check_ids(ends, n, f"{origin}: edges ({n} nodes by {source})")
    given = csr_from_edges(row, col, n, weight, symmetric=False)
    _tell_what_is_left_out(weight, row, col, given.num_entries, origin)
    same = is_symmetric(given)
    graph = given if same else csr_from_edges(row, col, n, weight)
    # each edge without a way back has been given one
    one_way = (graph.num_entries - given.num_entries) / max(given.num_entries, 1)
    if _takes_both(directions, one_way, _names_each_once(row, col), origin):
        return given, turned(given)
    if one_way > 0.0 and directions == "undirected":
        # a warning, since programs show no less: their own layers would read other edges
        logger.warning(
            "%s: the graph is directed, and the missing directions are added; data.directions = "
            "both keeps edges as they are, and their reverse as a second channel",
            origin,
        )
    if not same and graph.value is not None and not is_symmetric(graph):
        logger.info("%s: some edges have two directions of different weight; both are kept", origin)
    return (graph,)


def _names_each_once(row: Tensor, col: Tensor) -> bool:
    """Whether all edges go up in ids, or all down: so undirected edges are listed once each."""
    return bool((row <= col).all()) or bool((row >= col).all())


def _takes_both(directions: Directions, one_way: float, once: bool, origin: Path) -> bool:
    """Whether the directions of edges become two channels; the log says why.

    Args:
        directions: what was asked for.
        one_way: share of the edges without a way back.
        once: see ``_names_each_once``.
        origin: the first word of the line.
    """
    both = directions == "both" or (directions == "auto" and one_way > _FEW and not once)
    if directions != "undirected" and (one_way > 0.0 or both):
        order = ", but all name their ends in one order, as undirected edges" if once else ""
        text = "%s: %.1f %% of the edges have no way back%s; data.directions = %s: %s"
        made = "in- and out-neighbours are two channels" if both else "every edge counts both ways"
        logger.info(text, origin, 100.0 * one_way, order, directions, made)
    return both


def _entries(
    fields: Fields, n: int, edge_weights: EdgeWeights
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Row and column of every entry, int64 [E]: who reads, and who is read; and its weight."""
    if "adj_t" in fields:
        row, col, value = _matrix_entries(fields, n)
        return row, col, _weights(value, "adj_t", row.numel(), fields.origin, edge_weights)
    row, col = _named_entries(fields, n)
    name = next((name for name in WEIGHTS if name in fields), None)
    value = None if name is None else fields[name]
    return row, col, _weights(value, name, row.numel(), fields.origin, edge_weights)


def _matrix_entries(fields: Fields, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Those of ``adj_t``: by entry (i, j) node i reads node j. Values that all are 1 are none."""
    matrix = fields["adj_t"]
    if matrix.layout is torch.strided or matrix.sparse_dim() != 2 or matrix.dense_dim() != 0:
        raise UserError(
            f"{fields.origin}: adj_t has shape {tuple(matrix.shape)} and layout {matrix.layout}; "
            f"a sparse matrix [{n}, {n}] is needed, or edge_index [2, E]"
        )
    if matrix.shape != (n, n):
        raise UserError(
            f"{fields.origin}: adj_t is {matrix.shape[0]} x {matrix.shape[1]} and there are {n} "
            "nodes; give one row and one column a node"
        )
    if matrix.layout is torch.sparse_coo:
        # parallel entries of a matrix that is not coalesced add up later, as parallel edges do
        (row, col), value = matrix._indices(), matrix._values()
    elif matrix.layout is torch.sparse_csr:
        row, col, value = _spread(matrix.crow_indices()), matrix.col_indices(), matrix.values()
    else:
        row, col, value = matrix.row_indices(), _spread(matrix.ccol_indices()), matrix.values()
    if value.dtype == torch.bool:  # False is no edge, as 0 is none
        row, col, value = row[value], col[value], value[value]
    return row.long(), col.long(), None if bool((value == 1).all()) else value


def _spread(pointer: Tensor) -> Tensor:
    """The row of every entry, from where the rows begin."""
    return torch.repeat_interleave(torch.arange(pointer.numel() - 1), pointer.diff())


def _named_entries(fields: Fields, n: int) -> tuple[Tensor, Tensor]:
    if "edge_index" in fields:
        edges = fields.integers("edge_index", dim=2)
        if edges.shape[0] != 2:
            raise UserError(
                f"{fields.origin}: edge_index has shape {tuple(edges.shape)}; [2, E] is needed, "
                "transpose it if it has a row for each edge"
            )
        return edges[1], edges[0]
    if "indptr" not in fields or "indices" not in fields:
        raise UserError(
            f"{fields.origin}: edges are missing; give edge_index [2, E], adj_t, or indptr and "
            "indices"
        )
    col = fields.integers("indices")
    return _spread(fields.row_pointer("indptr", n, col.numel())), col


def _weights(
    value: Tensor | None, name: str | None, edges: int, origin: Path, edge_weights: EdgeWeights
) -> Tensor | None:
    """Weight of every edge, float64 [E], or None."""
    if value is None or name is None:
        if edge_weights == "use":
            raise UserError(
                f"data.edge_weights = use and {origin} has no weights; give edge_weight [E], or "
                "drop the setting"
            )
        return None
    if edge_weights == "ignore":
        logger.info("%s: the values of %s are ignored, every edge weighs 1", origin, name)
        return None
    weight = checked_weights(value, edges, f"{origin}: {name}", _WITHOUT)
    logger.info(
        "%s: edges are weighted by %s (--data.edge-weights ignore goes without)", origin, name
    )
    return weight


def _tell_what_is_left_out(
    weight: Tensor | None, row: Tensor, col: Tensor, kept: int, origin: Path
) -> None:
    """Edges that make no entry of their own; ``kept`` is the number of entries."""
    zeros = 0 if weight is None else int((weight == 0).sum())
    loops = int((row == col).sum())
    again = row.numel() - loops - kept
    if zeros:
        logger.info("%s: %d edges of weight 0 are left out", origin, zeros)
    if loops:
        text = "%s: %d self-loops are left out; every node has one of weight 1"
        logger.info(text, origin, loops)
    if again > 0 and weight is None:
        logger.info("%s: %d edges are there more than once and count once", origin, again)
