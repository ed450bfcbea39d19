"""The user's own graph in a ``.mat`` file: that of Facebook100, or matrices by the usual names.

Letters: n nodes, E edges, F features, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from distributed_ignn.config.dataset import LARGEST_GRAPH, DataConfig
from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.fields import (
    SPLITS,
    Fields,
    chosen_fields,
    says_labels,
    some,
    with_names_of,
)
from distributed_ignn.reading.archives import Limits
from distributed_ignn.reading.mat_files import MatVariable, mat_variables
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.torch_files import sparse_tensor

logger = logging.getLogger(__name__)

FACEBOOK = ("status", "gender", "major", "second_major", "dorm", "year", "high_school")
"""The columns of ``local_info`` in a file of Facebook100 (Traud et al. 2012); 0 is not known."""

_USUAL = {
    "adjacency": ("edge_index", "a", "adj", "adjacency", "network", "net", "graph", "homo", "w"),
    "features": ("x", "features", "feature", "attributes", "attrb", "attr", "feat", "node_feat"),
    "label": ("y", "label", "labels", "group", "gnd", "class", "target"),
}
_MEANING = {"adjacency": "edge_index", "features": "x", "label": "y"}
_NUMBERED = ("edge_index", "num_classes", *(f"{split}_idx" for split in SPLITS))
_OTHERS = ("num_classes", "edge_weight", *(f"{s}_{k}" for s in SPLITS for k in ("mask", "idx")))


def mat_fields(path: Path, data: DataConfig, *, labelled: bool = True) -> Fields:
    """The arrays of a file by PyG's names.

    Args:
        path: of the file.
        data: the settings that name what is what, and weights of edges, are read.
        labelled: see ``chosen_fields``.

    Raises:
        OSError, ValueError: it cannot be read, or is damaged.
        UserError: it does not hold a graph, or not what the settings name.
    """
    variables = mat_variables(path)
    if {"A", "local_info"} <= variables.keys() and data.adjacency in (None, "A"):
        return _facebook(variables, path, data)
    asked = data if labelled else with_names_of(variables, data)
    return _by_names(variables, path, asked, labelled)


def _by_names(
    variables: Mapping[str, MatVariable], path: Path, data: DataConfig, labelled: bool
) -> Fields:
    """Each thing by the settings, else by the first of its usual names, whatever their case."""
    lower = {name.lower(): name for name in reversed(list(variables))}
    places = {name: lower[name] for name in _OTHERS if name in lower}
    for key, usual in _USUAL.items():
        found = data.names.get(key) or next((lower[n] for n in usual if n in lower), None)
        if found is not None:
            places[_MEANING[key]] = found
    absent = next((key for key, name in data.names.items() if name not in variables), None)
    if "edge_index" not in places or absent not in (None, "label"):
        raise _no_such(variables, path, data, absent)
    if absent == "label":
        del places["y"]
    if not labelled:
        places = {name: place for name, place in places.items() if not says_labels(name)}
    arrays: dict[str, Any] = {}
    for name, place in places.items():
        if variables[place].kind not in ("numbers", *(("words",) if name == "y" else ())):
            raise UserError(
                f"{path}: {in_one_line(place)} is {variables[place].kind}; a matrix of numbers is "
                "needed, save it as one"
            )
        arrays |= _arrays(name, variables[place].read(), path)
    unread = sorted(set(variables) - set(places.values()))
    if unread:
        logger.info("%s: not read: %s", path, in_one_line(some(unread)))
    plain = data.model_copy(update=dict.fromkeys(_USUAL))
    fields = chosen_fields(arrays, arrays.__getitem__, path, plain)
    return replace(fields, present=tuple(variables))


def _no_such(
    variables: Mapping[str, MatVariable], path: Path, data: DataConfig, absent: str | None
) -> UserError:
    held = in_one_line(some([_shown(variable) for variable in variables.values()]))
    if absent not in (None, "label"):
        wanted = f"data.{absent} = {data.names[absent]} is not in it"
    else:
        wanted = "none is called as edges usually are"
    return UserError(
        f"{path} holds {held}, and {wanted}; name its matrices, as in --data.adjacency A "
        "--data.features X --data.label y"
    )


def _shown(variable: MatVariable) -> str:
    """Name and shape, as in ``A [10 x 10]``."""
    size = " x ".join(map(str, variable.shape)) if min(variable.shape, default=0) >= 0 else "sparse"
    return f"{variable.name} [{size}]"


def _arrays(name: str, value: np.ndarray | sp.coo_array, path: Path) -> dict[str, Any]:
    """A variable as one array, or as several; vectors of MATLAB's have two dimensions."""
    if name == "edge_index":
        return _edges(value, path)
    if isinstance(value, sp.coo_array):
        if name == "x":
            ends = torch.from_numpy(np.stack([value.row, value.col]).astype(np.int64))
            numbers = torch.from_numpy(value.data.astype(np.float32))
            return {name: sparse_tensor("torch.sparse_coo", [ends, numbers], value.shape)}
        claimed = value.shape[0] * value.shape[1] * 8
        if claimed > max(Limits().free, Limits().ratio * value.data.nbytes):
            raise ValueError(f"a sparse matrix {value.shape} in the place of {name}")
        value = value.toarray()
    if value.dtype.kind == "U":
        return {name: np.array([word.strip() for word in value.reshape(-1)])}
    if name != "x" and value.ndim == 2 and 1 in value.shape:
        value = value.reshape(-1)
    if name in _NUMBERED and value.dtype.kind == "f":
        value = _whole(value, name)
    return {name: value.reshape(()) if name == "num_classes" and value.size == 1 else value}


def _whole(value: np.ndarray, name: str) -> np.ndarray:
    """MATLAB's numbers are floating unless they are made to be others."""
    if not (np.isfinite(value) & (value == value.round()) & (abs(value) < 2**53)).all():
        raise ValueError(f"{name} holds numbers that are not whole")
    return value.astype(np.int64)


def _edges(value: np.ndarray | sp.coo_array, path: Path) -> dict[str, Any]:
    """``edge_index``, and the values of a matrix unless all are 1."""
    if value.ndim == 2 and value.shape[0] == 2 != value.shape[1] and isinstance(value, np.ndarray):
        return {"edge_index": _whole(value, "edge_index")}
    if value.ndim != 2 or value.shape[0] != value.shape[1] or value.shape[0] > LARGEST_GRAPH:
        raise UserError(
            f"{path}: the edges have shape {value.shape}; a square matrix is needed, or a list "
            "[2, E] of nodes from 0 (of MATLAB's own [E, 2] from 1 it is (list - 1)')"
        )
    matrix = sp.coo_array(value)
    return matrix_arrays(matrix)


def matrix_arrays(matrix: sp.coo_array) -> dict[str, Tensor]:
    """Entry (i, j) says that node i reads node j; values that are all 1 are no weights."""
    ends = torch.stack([torch.from_numpy(part).long() for part in (matrix.col, matrix.row)])
    if matrix.data.dtype.kind == "b":  # False is no edge, as 0 is none
        return {"edge_index": ends[:, torch.from_numpy(matrix.data)]}
    arrays = {"edge_index": ends}
    if not (matrix.data == 1).all():
        arrays["edge_weight"] = torch.from_numpy(matrix.data.astype(float))
    return arrays


def _facebook(variables: Mapping[str, MatVariable], path: Path, data: DataConfig) -> Fields:
    """One column of ``local_info`` [n, 7] as labels, the values of the others as features.

    Features are 0 and 1, a column for each value that somebody has; what is 0 in the file is not
    known: such a label is -1, such a feature has no 1.
    """
    label = data.label or "gender"
    if label not in FACEBOOK:
        raise UserError(
            f"data.label = {label} is no column of {path}{suggest(label, FACEBOOK)}; take one of "
            f"{', '.join(FACEBOOK)}"
        )
    if data.features is not None:
        raise UserError(
            f"data.features = {data.features} has no effect on {path}, whose features are the "
            "columns of local_info; drop it"
        )
    info, edges = variables["local_info"].read(), variables["A"].read()
    if not isinstance(info, np.ndarray) or info.ndim != 2 or info.shape[1] != len(FACEBOOK):
        raise ValueError(f"local_info has shape {info.shape}; [nodes, {len(FACEBOOK)}] is needed")
    values = _whole(info, "local_info") if info.dtype.kind == "f" else info.astype(np.int64)
    if values.size and values.min() < 0:
        raise ValueError("local_info holds numbers below 0")
    known, labels = np.unique(values[:, FACEBOOK.index(label)], return_inverse=True)
    missing = int(known.size > 0 and known[0] == 0)
    rest = np.delete(values, FACEBOOK.index(label), axis=1)
    arrays = _edges(edges, path) | {"y": labels - missing} | _indicators(rest)
    logger.info(
        "%s: a file of Facebook100; %s is predicted, the other columns are features (--data.label "
        "takes another)",
        path,
        label,
    )
    unread = sorted(set(variables) - {"A", "local_info"})
    if unread:
        logger.info("%s: not read: %s", path, in_one_line(some(unread)))
    plain = data.model_copy(update={"label": None, "adjacency": None})
    fields = chosen_fields(arrays, arrays.__getitem__, path, plain)
    return replace(fields, class_names=tuple(str(value) for value in known[missing:]))


def _indicators(values: np.ndarray) -> dict[str, np.ndarray]:
    """A column for each value above 0 of each column [n, k], as the rows of a CSR matrix."""
    first, blocks = 0, []
    for column in values.T:
        known, places = np.unique(column, return_inverse=True)
        missing = int(known.size > 0 and known[0] == 0)
        blocks.append(np.where(column > 0, places - missing + first, -1))
        first += known.size - missing
    table = np.stack(blocks, axis=1)
    pointer = np.concatenate([[0], np.cumsum((table >= 0).sum(axis=1))])
    return {"x_indptr": pointer, "x_indices": table[table >= 0]}
