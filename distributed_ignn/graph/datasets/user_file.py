"""The user's own graph in a file, of any form in ``formats.py``.

What the arrays may be is the part of ``attributes.py``. Letters: n nodes, E edges, F features,
C classes.
"""

from __future__ import annotations

from pathlib import Path

from distributed_ignn.config.dataset import FILE_KINDS, DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets.attributes import labelled_graph
from distributed_ignn.graph.datasets.fields import Fields, chosen_fields
from distributed_ignn.graph.datasets.formats import read_any
from distributed_ignn.graph.datasets.ogb_folder import is_ogb_folder, ogb_folder


def load_user_file(path: Path, data: DataConfig) -> GraphData:
    """Read a graph from ``path``.

    A ``.pt`` file holds a ``torch_geometric.data.Data`` or a dictionary of tensors, a ``.npz`` file
    named arrays; a matrix or a table of edges goes together with the table of nodes of
    ``data.nodes``. Keys: ``edge_index`` [2, E], or a sparse ``adj_t`` [n, n], or ``indptr`` [n + 1]
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


def read_fields(path: Path, data: DataConfig, *, labelled: bool = True) -> Fields:
    """The arrays of a file by name; only weights of edges that are to be used.

    Args:
        path: the file, or a folder of OGB's form.
        data: edge weights and the table of nodes are read.
        labelled: see ``chosen_fields``.

    Raises:
        UserError: the file is missing, or not of the kind that its name says.
    """
    if is_ogb_folder(path):
        arrays = ogb_folder(path)
        return chosen_fields(arrays, arrays.__getitem__, path, data, labelled=labelled)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {problem}; give the path of a {FILE_KINDS} file")
    return read_any(path, data, labelled=labelled)
