"""The user's own graph: a PyG ``Data`` object (``.pt``) or named arrays (``.npz``).

Both become one dictionary of arrays first, so that they share every check. Letters: n nodes,
E edges, F features, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from distributed_ignn.config.dataset import FILE_SUFFIXES, EdgeWeights
from distributed_ignn.errors import UserError
from distributed_ignn.graph.building import check_id_space
from distributed_ignn.graph.data import CSRMatrix, GraphData, Task, csr_from_edges, is_symmetric
from distributed_ignn.graph.datasets.checks import brief, check_ids
from distributed_ignn.graph.weights import checked_weights
from distributed_ignn.reading.arrays import npz_names, read_npz
from distributed_ignn.reading.torch_files import check_tensor, read_torch

logger = logging.getLogger(__name__)

_KEYS = (
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

_WEIGHTS = ("edge_weight", "edge_attr", "data")

_Fields = dict[str, Tensor]
_Wanted = Callable[[Collection[str]], Iterable[str]]
"""What to read of the names that a file holds."""


def load_user_file(path: Path, edge_weights: EdgeWeights = "auto") -> GraphData:
    """Read a graph from ``path``; a directed graph gets the missing directions.

    A ``.pt`` file holds a ``torch_geometric.data.Data`` or a dictionary of tensors, a ``.npz`` file
    named arrays. Keys: ``edge_index`` [2, E], or in an npz ``indptr`` [n + 1] and ``indices`` [E];
    ``x`` [n, F], or ``x_indptr``, ``x_indices`` and ``x_data`` (optional: ones), or none of them;
    ``y`` [n] (-1: unlabelled) or [n, C] of 0 and 1; ``train_mask``, ``val_mask``, ``test_mask`` [n]
    or ``train_idx``, ``val_idx``, ``test_idx``; optionally ``num_classes``.

    Weights of edges, finite and not negative: ``edge_weight`` [E], else ``edge_attr`` [E] or
    [E, 1], else ``data`` [E] beside ``indptr`` and ``indices``. Parallel edges add up, and edges of
    weight 0 are left out. Self-loops are left out, too: A + I adds one of weight 1 to every node. A
    missing direction gets the weight of the other; where both are there with different weights,
    each keeps its own. As in PyG, node ``edge_index[1]`` then reads node ``edge_index[0]``.

    Args:
        path: the file.
        edge_weights: see ``DataConfig``.

    Raises:
        UserError: the file cannot be read or breaks a rule.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {problem}; give the path of a {' or '.join(FILE_SUFFIXES)} file")
    if path.suffix not in FILE_SUFFIXES:
        raise UserError(f"{path} must end in {' or '.join(FILE_SUFFIXES)}")

    def wanted(present: Collection[str]) -> Iterable[str]:
        return _wanted(present, edge_weights, path)

    fields = _read_pt(path, wanted) if path.suffix == ".pt" else _read_npz(path, wanted)
    _check_forms(fields, path)
    labels, num_classes, task = _labels(fields, path)
    n = labels.shape[0]
    return GraphData(
        name=path.stem,
        graphs=(_graph(fields, n, path, edge_weights),),
        features=_features(fields, n, path),
        labels=labels,
        num_classes=num_classes,
        task=task,
        train_nodes=_split(fields, "train", n, path),
        val_nodes=_split(fields, "val", n, path),
        test_nodes=_split(fields, "test", n, path),
    )


def _wanted(present: Collection[str], edge_weights: EdgeWeights, path: Path) -> Iterable[str]:
    """All keys, and of those that may hold weights the first that is there."""
    csr = "indptr" in present and "edge_index" not in present
    name = next((name for name in (_WEIGHTS if csr else _WEIGHTS[:2]) if name in present), None)
    if name is not None and edge_weights == "ignore":
        logger.info("%s: %s is ignored, every edge weighs 1", path, name)
        name = None
    return _KEYS if name is None else (*_KEYS, name)


def _read_npz(path: Path, wanted: _Wanted) -> _Fields:
    try:
        arrays = read_npz(path, wanted(npz_names(path)))
        return {key: _from_numpy(array) for key, array in arrays.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a .npz file of plain number arrays ({brief(error)}); write it with "
            "numpy.savez and without object arrays"
        ) from error


def _check_forms(fields: _Fields, path: Path) -> None:
    """Only x may be sparse, nothing may be complex, and a number of classes is one number."""
    for key, value in fields.items():
        if value.is_complex():
            raise UserError(f"{path}: {key} has type {value.dtype}; real numbers are needed")
        if value.layout is not torch.strided and key != "x":
            raise UserError(f"{path}: {key} is sparse; only x may be, save {key}.to_dense()")
    classes = fields.get("num_classes")
    if classes is not None and (classes.numel() != 1 or classes.is_floating_point()):
        raise UserError(
            f"{path}: num_classes has shape {tuple(classes.shape)} and type {classes.dtype}; one "
            "whole number is needed"
        )


def _from_numpy(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch computes little with the wider unsigned types
    return torch.from_numpy(array)


def _read_pt(path: Path, wanted: _Wanted) -> _Fields:
    from torch_geometric.data import Data
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    allowed = [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]
    advice = "save it again with torch.save(data.to_dict(), path)"
    try:
        content = read_torch(path, allowed)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} holds something other than a PyG Data object ({brief(error)}); {advice}"
        ) from error
    if type(content) is Data:
        # as its to_dict does, but the file had a say in what a method of it finds
        store = vars(content).get("_store")
        content = vars(store).get("_mapping") if type(store) is GlobalStorage else None
    if type(content) is not dict:
        kind = type(content).__name__
        raise UserError(f"{path} holds a {kind}, not a PyG Data object; {advice}")
    present = {key for key, value in content.items() if value is not None}
    return {key: _tensor(content[key], key, path) for key in wanted(present) if key in present}


def _tensor(value: Any, key: str, path: Path) -> Tensor:
    if type(value) is int and abs(value) < 2**63:
        return torch.tensor(value)
    if not isinstance(value, Tensor):
        raise UserError(f"{path}: {key} is a {type(value).__name__}, a tensor is needed")
    try:
        check_tensor(value)
    except ValueError as error:
        raise UserError(f"{path}: {key} is {brief(error)}; a plain tensor is needed") from error
    return _signed(value.detach())


def _signed(value: Tensor) -> Tensor:
    wide = value.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return value.to(torch.int64) if wide else value


def _integers(fields: _Fields, key: str, path: Path, *, dim: int = 1) -> Tensor:
    value = fields[key]
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise UserError(
            f"{path}: {key} has type {str(value.dtype).removeprefix('torch.')}; whole numbers are "
            "needed, convert it to int64"
        )
    if value.dim() != dim:
        raise UserError(
            f"{path}: {key} has shape {tuple(value.shape)}; {dim} dimension(s) are needed"
        )
    return value.to(torch.int64).contiguous()


def _row_pointer(fields: _Fields, key: str, n: int, entries: int, path: Path) -> Tensor:
    pointer = _integers(fields, key, path)
    if pointer.numel() != n + 1 or int(pointer[0]) != 0 or int(pointer[-1]) != entries:
        raise UserError(
            f"{path}: {key} must have {n + 1} entries (one per node of y, and one) from 0 to "
            f"{entries}, it has {pointer.numel()}"
        )
    if bool((pointer[1:] < pointer[:-1]).any()):
        raise UserError(f"{path}: {key} decreases; it counts the entries before each row")
    return pointer


def _graph(fields: _Fields, n: int, path: Path, edge_weights: EdgeWeights) -> CSRMatrix:
    row, col = _entries(fields, n, path)
    for ends in (row, col):
        check_ids(ends, n, f"{path}: edges ({n} nodes by y)")
    weight = _weights(fields, row.numel(), path, edge_weights)
    if weight is not None:
        _tell_what_is_left_out(weight, row == col, path)
    graph = csr_from_edges(row, col, n, weight, symmetric=False)
    if is_symmetric(graph):
        return graph
    if not is_symmetric(graph.pattern()):
        logger.info("%s: the graph is directed; adding the missing directions", path)
    graph = csr_from_edges(row, col, n, weight)
    if graph.value is not None and not is_symmetric(graph):
        logger.info("%s: some edges have two directions of different weight; both are kept", path)
    return graph


def _entries(fields: _Fields, n: int, path: Path) -> tuple[Tensor, Tensor]:
    """Row and column of every entry, int64 [E]: who reads, and who is read."""
    if "edge_index" in fields:
        edges = _integers(fields, "edge_index", path, dim=2)
        if edges.shape[0] != 2:
            raise UserError(
                f"{path}: edge_index has shape {tuple(edges.shape)}; [2, E] is needed, transpose "
                "it if it has a row for each edge"
            )
        return edges[1], edges[0]
    if "indptr" not in fields or "indices" not in fields:
        raise UserError(f"{path}: edges are missing; give edge_index [2, E] or indptr and indices")
    col = _integers(fields, "indices", path)
    pointer = _row_pointer(fields, "indptr", n, col.numel(), path)
    return torch.repeat_interleave(torch.arange(n), pointer.diff()), col


def _weights(fields: _Fields, edges: int, path: Path, edge_weights: EdgeWeights) -> Tensor | None:
    """Weight of every edge, float64 [E], or None."""
    name = next((name for name in _WEIGHTS if name in fields), None)
    if name is None and edge_weights == "use":
        raise UserError(
            f"data.edge_weights = use and {path} has no weights; give edge_weight [E], or drop "
            "the setting"
        )
    if name is None:
        return None
    weight = checked_weights(fields[name], edges, f"{path}: {name}")
    logger.info(
        "%s: edges are weighted by %s (--data.edge-weights ignore goes without)", path, name
    )
    return weight


def _tell_what_is_left_out(weight: Tensor, loop: Tensor, path: Path) -> None:
    zeros, loops = int((weight == 0).sum()), int(loop.sum())
    if zeros:
        logger.info("%s: %d edges of weight 0 are left out", path, zeros)
    if loops:
        text = "%s: %d self-loops are left out; every node has one of weight 1"
        logger.info(text, path, loops)


def _features(fields: _Fields, n: int, path: Path) -> CSRMatrix | Tensor | None:
    if "x_indptr" in fields or "x_indices" in fields:
        return _sparse_features(fields, n, path)
    if "x" not in fields:
        logger.info("%s: no features; the model learns an embedding for each node", path)
        return None
    x = fields["x"]
    if x.dim() != 2 or (x.layout is not torch.strided and x.dense_dim() > 0):
        raise UserError(f"{path}: x has shape {tuple(x.shape)}; [nodes, features] is needed")
    if x.layout is torch.strided:
        return x.to(torch.float32).contiguous()
    if x.shape[0] != n:  # before memory is taken for as many rows
        raise UserError(f"{path}: {x.shape[0]} feature rows for {n} nodes; give one row a node")
    check_id_space(x.shape[1], "columns of x")
    coo = x.to(torch.float32).to_sparse_coo().coalesce()
    return _csr(sp.csr_array((coo.values().numpy(), tuple(coo.indices().numpy())), x.shape))


def _sparse_features(fields: _Fields, n: int, path: Path) -> CSRMatrix:
    if "x_indptr" not in fields or "x_indices" not in fields:
        raise UserError(f"{path}: sparse features need both x_indptr and x_indices")
    col = _integers(fields, "x_indices", path)
    pointer = _row_pointer(fields, "x_indptr", n, col.numel(), path)
    if col.numel() == 0 or int(col.min()) < 0:
        raise UserError(f"{path}: x_indices must hold column numbers from 0, and at least one")
    value = fields.get("x_data", torch.ones(col.numel())).to(torch.float32)
    if value.shape != col.shape:
        raise UserError(f"{path}: x_data has {value.numel()} entries, x_indices has {col.numel()}")
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


def _labels(fields: _Fields, path: Path) -> tuple[Tensor, int, Task]:
    if "y" not in fields:
        raise UserError(f"{path}: labels are missing; give y, one row a node")
    y = fields["y"]
    if y.dim() == 2 and y.shape[1] == 1:
        y = y.flatten()
    if y.dim() == 2:
        return y.to(torch.float32), y.shape[1], "multilabel"
    if y.dim() != 1 or y.numel() == 0:
        raise UserError(
            f"{path}: y has shape {tuple(y.shape)}; [nodes] or [nodes, classes] is needed"
        )
    if y.is_floating_point():
        y = y.to(torch.float64)  # the shorter formats cannot be rounded
    if y.is_floating_point() and not torch.equal(y, y.round()):
        raise UserError(f"{path}: y holds numbers that are no class; use whole numbers from 0")
    labels = y.to(torch.int64)
    num_classes = int(fields.get("num_classes", labels.max() + 1))
    if num_classes > y.numel():
        raise UserError(
            f"{path}: {num_classes} classes (largest label + 1) for {y.numel()} nodes; number the "
            "classes from 0 without gaps"
        )
    return labels, num_classes, "multiclass"


def _split(fields: _Fields, split: str, n: int, path: Path) -> Tensor:
    if f"{split}_idx" in fields:
        nodes = _integers(fields, f"{split}_idx", path)
        check_ids(nodes, n, f"{path}: {split}_idx")
        return torch.sort(nodes).values
    key = f"{split}_mask"
    if key not in fields:
        raise UserError(f"{path}: {split} nodes are missing; give {key} or {split}_idx")
    mask = fields[key]
    if mask.shape != (n,) or not bool(((mask == 0) | (mask == 1)).all()):
        raise UserError(
            f"{path}: {key} has shape {tuple(mask.shape)}; {n} values, true or false, are needed"
        )
    return mask.nonzero().flatten()
