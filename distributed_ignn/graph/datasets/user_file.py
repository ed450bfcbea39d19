"""The user's own graph in a file: a PyG ``Data`` object (``.pt``) or named arrays (``.npz``).

What the arrays may be is the part of ``attributes.py``. Letters: n nodes, E edges, F features,
C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed_ignn.config.dataset import FILE_SUFFIXES, DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets.attributes import labelled_graph
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.graph.datasets.fields import LABELS, Fields, chosen_fields
from distributed_ignn.graph.datasets.torch_content import ADVICE, named_values, value_of
from distributed_ignn.reading.arrays import npz_names, read_npz
from distributed_ignn.reading.torch_files import open_torch


def load_user_file(path: Path, data: DataConfig) -> GraphData:
    """Read a graph from ``path``.

    A ``.pt`` file holds a ``torch_geometric.data.Data`` or a dictionary of tensors, a ``.npz`` file
    named arrays. Keys: ``edge_index`` [2, E], or a sparse ``adj_t`` [n, n], or ``indptr`` [n + 1]
    and ``indices`` [E]; ``x`` [n, F], or ``x_indptr``, ``x_indices`` and ``x_data`` (optional:
    ones), or none of them; ``y`` [n], of numbers or words, or [n, C] of 0 and 1 (-1 and NaN: not
    known); ``train_mask``, ``val_mask``, ``test_mask`` [n] or ``train_idx``, ``val_idx``,
    ``test_idx``, several of them as columns; optionally ``num_classes``.

    Weights of edges, finite and not negative: ``edge_weight`` [E], else ``edge_attr`` [E] or
    [E, 1], else the values of ``adj_t``, else ``data`` [E] beside ``indptr`` and ``indices``.
    Parallel edges add up, and edges of weight 0 are left out. Self-loops are left out, too: A + I
    adds one of weight 1 to every node. A missing direction gets the weight of the other; where both
    are there with different weights, each keeps its own. As in PyG, node ``edge_index[1]`` then
    reads node ``edge_index[0]``, and node i reads node j where ``adj_t`` has an entry (i, j).

    Args:
        path: the file.
        data: edge weights, directions and the split are read.

    Raises:
        UserError: the file cannot be read or breaks a rule.
    """
    return labelled_graph(read_fields(path, data), data)


def read_fields(path: Path, data: DataConfig) -> Fields:
    """The arrays of a file by name; only weights of edges that are to be used.

    Raises:
        UserError: the file is missing, or not of the kind that its name says.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {problem}; give the path of a {' or '.join(FILE_SUFFIXES)} file")
    if path.suffix not in FILE_SUFFIXES:
        raise UserError(f"{path} must end in {' or '.join(FILE_SUFFIXES)}")
    return _read_pt(path, data) if path.suffix == ".pt" else _read_npz(path, data)


def _read_npz(path: Path, data: DataConfig) -> Fields:
    try:
        names = npz_names(path)
        return chosen_fields(
            names,
            lambda name: read_npz(path, [name], kinds="biufU" if name in LABELS else "biuf")[name],
            path,
            data.edge_weights,
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a .npz file of plain number arrays ({brief(error)}); write it with "
            "numpy.savez and without object arrays"
        ) from error


def _read_pt(path: Path, data: DataConfig) -> Fields:
    try:
        with open_torch(path) as file:
            values = named_values(file, path)

            def read(name: str) -> Any:
                try:
                    return value_of(file, values[name])
                except ValueError as error:
                    raise UserError(
                        f"{path}: {name} is {brief(error)}, a plain tensor is needed; save one in "
                        "its place"
                    ) from error

            return chosen_fields(values, read, path, data.edge_weights)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} holds something other than a PyG Data object ({brief(error)}); {ADVICE}"
        ) from error
