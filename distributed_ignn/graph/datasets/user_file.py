"""The user's own graph in a file: a PyG ``Data`` object (``.pt``) or named arrays (``.npz``).

What the arrays may be is the part of ``attributes.py``. Letters: n nodes, E edges, F features,
C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.config.dataset import FILE_SUFFIXES, Directions, EdgeWeights
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets.attributes import (
    Fields,
    labelled_graph,
    plain_tensor,
    wanted_names,
)
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.reading.arrays import npz_names, read_npz
from distributed_ignn.reading.torch_files import read_torch

_Wanted = Callable[[Collection[str]], Iterable[str]]
"""What to read of the names that a file holds."""


def load_user_file(
    path: Path, edge_weights: EdgeWeights = "auto", directions: Directions = "undirected"
) -> GraphData:
    """Read a graph from ``path``; ``directions`` says what becomes of a directed one.

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
        edge_weights, directions: see ``DataConfig``.

    Raises:
        UserError: the file cannot be read or breaks a rule.
    """
    return labelled_graph(read_fields(path, edge_weights), path, edge_weights, directions)


def read_fields(path: Path, edge_weights: EdgeWeights) -> Fields:
    """The arrays of a file by name; only weights of edges that are to be used.

    Raises:
        UserError: the file is missing, or not of the kind that its name says.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {problem}; give the path of a {' or '.join(FILE_SUFFIXES)} file")
    if path.suffix not in FILE_SUFFIXES:
        raise UserError(f"{path} must end in {' or '.join(FILE_SUFFIXES)}")

    def wanted(present: Collection[str]) -> Iterable[str]:
        return wanted_names(present, edge_weights, path)

    return _read_pt(path, wanted) if path.suffix == ".pt" else _read_npz(path, wanted)


def _read_npz(path: Path, wanted: _Wanted) -> Fields:
    try:
        arrays = read_npz(path, wanted(npz_names(path)))
        return {key: from_numpy(array) for key, array in arrays.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a .npz file of plain number arrays ({brief(error)}); write it with "
            "numpy.savez and without object arrays"
        ) from error


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor of the same numbers, sharing their memory where it can."""
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch computes little with the wider unsigned types
    return torch.from_numpy(array)


def _read_pt(path: Path, wanted: _Wanted) -> Fields:
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
    return {key: plain_tensor(content[key], key, path) for key in wanted(present) if key in present}
