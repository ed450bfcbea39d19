"""Named arrays of a graph, called as PyG's ``Data`` calls them, and the graph that they make.

The user's own graph becomes such a dictionary first, whether it comes from a file or from memory,
so that both share every check. Letters: n nodes, E edges, F features, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from distributed_ignn.config.dataset import Directions, EdgeWeights
from distributed_ignn.errors import UserError
from distributed_ignn.graph.building import check_id_space
from distributed_ignn.graph.data import (
    CSRMatrix,
    GraphData,
    Task,
    csr_from_edges,
    is_symmetric,
    turned,
)
from distributed_ignn.graph.datasets.checks import brief, check_ids
from distributed_ignn.graph.weights import checked_weights
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.torch_files import check_tensor

logger = logging.getLogger(__name__)

_NAMES = (
    *(
        "indptr",
        "indices",
        "edge_index",
        "x",
        "x_indptr",
        "x_indices",
        "x_data",
        "y",
        "num_classes",
    ),
    *(f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("mask", "idx")),
)
#: Names that are not read where another is there, which says the same.
_SECOND = {
    "indptr": ("edge_index",),
    "indices": ("edge_index",),
    "x": ("x_indptr", "x_indices"),
    **{f"{split}_mask": (f"{split}_idx",) for split in ("train", "val", "test")},
}
_SHOWN = 12  # names in a message

_FEW = 0.05
"""Share of edges without a way back up to which ``directions = auto`` adds what is missing."""

_WITHOUT = "go without them: --data.edge-weights ignore"
_WEIGHTS = ("edge_weight", "edge_attr", "data")

Fields = dict[str, Tensor]
_NO_NODES = torch.empty(0, dtype=torch.int64)


def labelled_graph(
    fields: Fields,
    origin: Path,
    edge_weights: EdgeWeights,
    directions: Directions = "undirected",
) -> GraphData:
    """A graph to train on; what its fields may be, ``load_user_file`` says.

    Args:
        fields: by name.
        origin: where they come from, the first word of any message.
        edge_weights, directions: see ``DataConfig``.

    Raises:
        UserError: something is missing or breaks a rule.
    """
    _check_forms(fields, origin)
    labels, num_classes, task = _labels(fields, origin)
    n = labels.shape[0]
    graphs = _graphs(fields, n, origin, edge_weights, directions)
    return GraphData(
        name=origin.stem,
        graphs=graphs,
        graph_channels=len(graphs),
        features=_features(fields, n, origin),
        labels=labels,
        num_classes=num_classes,
        task=task,
        train_nodes=_split(fields, "train", n, origin),
        val_nodes=_split(fields, "val", n, origin),
        test_nodes=_split(fields, "test", n, origin),
    )


def unlabelled_graph(
    fields: Fields,
    origin: Path,
    edge_weights: EdgeWeights,
    num_classes: int,
    task: Task,
    directions: Directions = "undirected",
) -> GraphData:
    """A graph to predict on: edges and features; labels and splits that are there are not read.

    Args:
        fields, origin, edge_weights, directions: as in ``labelled_graph``.
        num_classes, task: of the model.

    Raises:
        UserError: something is missing or breaks a rule.
    """
    _check_forms(fields, origin)
    n = _feature_rows(fields, origin)
    graphs = _graphs(fields, n, origin, edge_weights, directions)
    return GraphData(
        name=origin.stem,
        graphs=graphs,
        graph_channels=len(graphs),
        features=_features(fields, n, origin),
        **no_labels(n, num_classes, task),
    )


def no_labels(n: int, num_classes: int, task: Task) -> dict[str, Any]:
    """The fields of a ``GraphData`` of n nodes that predicting does without."""
    several = task == "multilabel"
    return {
        "labels": torch.zeros(n, num_classes) if several else torch.full((n,), -1),
        "num_classes": num_classes,
        "task": task,
        **dict.fromkeys(("train_nodes", "val_nodes", "test_nodes"), _NO_NODES),
    }


def _feature_rows(fields: Fields, origin: Path) -> int:
    if "x" not in fields and "x_indptr" not in fields:
        raise UserError(f"{origin}: features are missing; give x [nodes, features]")
    return fields["x"].shape[0] if "x" in fields else fields["x_indptr"].numel() - 1


def wanted_names(
    present: Collection[str], edge_weights: EdgeWeights, origin: Path
) -> Iterable[str]:
    """What to read of the names that are there: all that have a meaning, and one for weights.

    The others are named in one line of the log.
    """
    csr = "indptr" in present and "edge_index" not in present
    weights = next((name for name in (_WEIGHTS if csr else _WEIGHTS[:2]) if name in present), None)
    if weights is not None and edge_weights == "ignore":
        logger.info("%s: %s is ignored, every edge weighs 1", origin, weights)
    wanted = [name for name in _NAMES if not any(o in present for o in _SECOND.get(name, ()))]
    unread = sorted(str(name) for name in present if name not in (*wanted, weights))
    if unread:
        logger.info("%s: not read: %s", origin, in_one_line(_some(unread)))
    return wanted if weights is None or edge_weights == "ignore" else (*wanted, weights)


def _some(names: Sequence[str]) -> str:
    """Names with commas between them, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_forms(fields: Fields, origin: Path) -> None:
    """Only x may be sparse, nothing may be complex, and a number of classes is one number."""
    for key, value in fields.items():
        if value.is_complex():
            raise UserError(f"{origin}: {key} has type {value.dtype}; real numbers are needed")
        if value.layout is not torch.strided and key != "x":
            raise UserError(f"{origin}: {key} is sparse; only x may be, save {key}.to_dense()")
    classes = fields.get("num_classes")
    if classes is not None and (classes.numel() != 1 or classes.is_floating_point()):
        raise UserError(
            f"{origin}: num_classes has shape {tuple(classes.shape)} and type {classes.dtype}; one "
            "whole number is needed"
        )


def plain_tensor(value: Any, key: str, origin: Path) -> Tensor:
    """A tensor, or a whole number, in a form that every later step can read.

    Raises:
        UserError: it is something else, or a tensor that is not plain.
    """
    if type(value) is int and abs(value) < 2**63:
        return torch.tensor(value)
    if not isinstance(value, Tensor):
        raise UserError(f"{origin}: {key} is a {type(value).__name__}, a tensor is needed")
    try:
        check_tensor(value)
    except ValueError as error:
        raise UserError(f"{origin}: {key} is {brief(error)}; a plain tensor is needed") from error
    return _signed(value.detach())


def _signed(value: Tensor) -> Tensor:
    wide = value.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return value.to(torch.int64) if wide else value


def _integers(fields: Fields, key: str, origin: Path, *, dim: int = 1) -> Tensor:
    value = fields[key]
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise UserError(
            f"{origin}: {key} has type {str(value.dtype).removeprefix('torch.')}; whole numbers "
            "are needed, convert it to int64"
        )
    if value.dim() != dim:
        raise UserError(
            f"{origin}: {key} has shape {tuple(value.shape)}; {dim} dimension(s) are needed"
        )
    return value.to(torch.int64).contiguous()


def _row_pointer(fields: Fields, key: str, n: int, entries: int, origin: Path) -> Tensor:
    pointer = _integers(fields, key, origin)
    if pointer.numel() != n + 1 or int(pointer[0]) != 0 or int(pointer[-1]) != entries:
        raise UserError(
            f"{origin}: {key} must have {n + 1} entries (one per node of y, and one) from 0 to "
            f"{entries}, it has {pointer.numel()}"
        )
    if bool((pointer[1:] < pointer[:-1]).any()):
        raise UserError(f"{origin}: {key} decreases; it counts the entries before each row")
    return pointer


def _graphs(
    fields: Fields, n: int, origin: Path, edge_weights: EdgeWeights, directions: Directions
) -> tuple[CSRMatrix, ...]:
    """The undirected graph, or who each node reads and who reads it."""
    row, col = _entries(fields, n, origin)
    source = "y" if "y" in fields else "x"
    for ends in (row, col):
        check_ids(ends, n, f"{origin}: edges ({n} nodes by {source})")
    weight = _weights(fields, row.numel(), origin, edge_weights)
    if weight is not None:
        _tell_what_is_left_out(weight, row == col, origin)
    given = csr_from_edges(row, col, n, weight, symmetric=False)
    same = is_symmetric(given)
    graph = given if same else csr_from_edges(row, col, n, weight)
    # each edge without a way back has been given one
    one_way = (graph.num_entries - given.num_entries) / max(given.num_entries, 1)
    if _takes_both(directions, one_way, _names_each_once(row, col), origin):
        return given, turned(given)
    if one_way > 0.0:
        logger.info("%s: the graph is directed; adding the missing directions", origin)
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
    if directions != "undirected":
        order = ", but all name their ends in one order, as undirected edges" if once else ""
        text = "%s: %.1f %% of the edges have no way back%s; data.directions = %s: %s"
        made = "in- and out-neighbours are two channels" if both else "every edge counts both ways"
        logger.info(text, origin, 100.0 * one_way, order, directions, made)
    return both


def _entries(fields: Fields, n: int, origin: Path) -> tuple[Tensor, Tensor]:
    """Row and column of every entry, int64 [E]: who reads, and who is read."""
    if "edge_index" in fields:
        edges = _integers(fields, "edge_index", origin, dim=2)
        if edges.shape[0] != 2:
            raise UserError(
                f"{origin}: edge_index has shape {tuple(edges.shape)}; [2, E] is needed, transpose "
                "it if it has a row for each edge"
            )
        return edges[1], edges[0]
    if "indptr" not in fields or "indices" not in fields:
        raise UserError(
            f"{origin}: edges are missing; give edge_index [2, E] or indptr and indices"
        )
    col = _integers(fields, "indices", origin)
    pointer = _row_pointer(fields, "indptr", n, col.numel(), origin)
    return torch.repeat_interleave(torch.arange(n), pointer.diff()), col


def _weights(fields: Fields, edges: int, origin: Path, edge_weights: EdgeWeights) -> Tensor | None:
    """Weight of every edge, float64 [E], or None."""
    name = next((name for name in _WEIGHTS if name in fields), None)
    if name is None and edge_weights == "use":
        raise UserError(
            f"data.edge_weights = use and {origin} has no weights; give edge_weight [E], or drop "
            "the setting"
        )
    if name is None:
        return None
    weight = checked_weights(fields[name], edges, f"{origin}: {name}", _WITHOUT)
    logger.info(
        "%s: edges are weighted by %s (--data.edge-weights ignore goes without)", origin, name
    )
    return weight


def _tell_what_is_left_out(weight: Tensor, loop: Tensor, origin: Path) -> None:
    zeros, loops = int((weight == 0).sum()), int(loop.sum())
    if zeros:
        logger.info("%s: %d edges of weight 0 are left out", origin, zeros)
    if loops:
        text = "%s: %d self-loops are left out; every node has one of weight 1"
        logger.info(text, origin, loops)


def _features(fields: Fields, n: int, origin: Path) -> CSRMatrix | Tensor | None:
    if "x_indptr" in fields or "x_indices" in fields:
        return _sparse_features(fields, n, origin)
    if "x" not in fields:
        logger.info("%s: no features; the model learns an embedding for each node", origin)
        return None
    x = fields["x"]
    if x.dim() != 2 or (x.layout is not torch.strided and x.dense_dim() > 0):
        raise UserError(f"{origin}: x has shape {tuple(x.shape)}; [nodes, features] is needed")
    if x.layout is torch.strided:
        return x.to(torch.float32).contiguous()
    if x.shape[0] != n:  # before memory is taken for as many rows
        raise UserError(f"{origin}: {x.shape[0]} feature rows for {n} nodes; give one row a node")
    check_id_space(x.shape[1], "columns of x")
    coo = x.to(torch.float32).to_sparse_coo().coalesce()
    return _csr(sp.csr_array((coo.values().numpy(), tuple(coo.indices().numpy())), x.shape))


def _sparse_features(fields: Fields, n: int, origin: Path) -> CSRMatrix:
    if "x_indptr" not in fields or "x_indices" not in fields:
        raise UserError(f"{origin}: sparse features need both x_indptr and x_indices")
    col = _integers(fields, "x_indices", origin)
    pointer = _row_pointer(fields, "x_indptr", n, col.numel(), origin)
    if col.numel() == 0 or int(col.min()) < 0:
        raise UserError(f"{origin}: x_indices must hold column numbers from 0, and at least one")
    value = fields.get("x_data", torch.ones(col.numel())).to(torch.float32)
    if value.shape != col.shape:
        raise UserError(
            f"{origin}: x_data has {value.numel()} entries, x_indices has {col.numel()}"
        )
    shape = (n, int(col.max()) + 1)
    check_id_space(shape[1], "columns of x")
    return _csr(sp.csr_array((value.numpy(), col.numpy(), pointer.numpy()), shape))


def _csr(matrix: sp.csr_array) -> CSRMatrix:
    matrix.sum_duplicates()  # sorts the columns too
    value = None if (matrix.data == 1).all() else torch.from_numpy(matrix.data)
    check_id_space(max(matrix.shape), "rows or columns of x")
    rowptr = torch.from_numpy(matrix.indptr.astype(np.int64))
    col = torch.from_numpy(matrix.indices.astype(np.int32, copy=False))
    return CSRMatrix(rowptr, col, value, matrix.shape[1])


def _labels(fields: Fields, origin: Path) -> tuple[Tensor, int, Task]:
    if "y" not in fields:
        raise UserError(f"{origin}: labels are missing; give y, one row a node")
    y = fields["y"]
    if y.dim() == 2 and y.shape[1] == 1:
        y = y.flatten()
    if y.dim() == 2:
        return y.to(torch.float32), y.shape[1], "multilabel"
    if y.dim() != 1 or y.numel() == 0:
        raise UserError(
            f"{origin}: y has shape {tuple(y.shape)}; [nodes] or [nodes, classes] is needed"
        )
    if y.is_floating_point():
        y = y.to(torch.float64)  # the shorter formats cannot be rounded
    if y.is_floating_point() and not torch.equal(y, y.round()):
        raise UserError(f"{origin}: y holds numbers that are no class; use whole numbers from 0")
    labels = y.to(torch.int64)
    num_classes = int(fields.get("num_classes", labels.max() + 1))
    if num_classes > y.numel():
        raise UserError(
            f"{origin}: {num_classes} classes (largest label + 1) for {y.numel()} nodes; number "
            "the classes from 0 without gaps"
        )
    return labels, num_classes, "multiclass"


def _split(fields: Fields, split: str, n: int, origin: Path) -> Tensor:
    if f"{split}_idx" in fields:
        nodes = _integers(fields, f"{split}_idx", origin)
        check_ids(nodes, n, f"{origin}: {split}_idx")
        return torch.sort(nodes).values
    key = f"{split}_mask"
    if key not in fields:
        raise UserError(f"{origin}: {split} nodes are missing; give {key} or {split}_idx")
    mask = fields[key]
    if mask.dim() == 2 and mask.shape[0] == n and mask.shape[1] > 1:
        raise UserError(
            f"{origin}: {key} holds {mask.shape[1]} splits; choose one, as in "
            "data.train_mask = data.train_mask[:, 0], and the same of val_mask and test_mask"
        )
    if mask.shape != (n,) or not bool(((mask == 0) | (mask == 1)).all()):
        raise UserError(
            f"{origin}: {key} has shape {tuple(mask.shape)}; {n} values, true or false, are needed"
        )
    return mask.nonzero().flatten()
