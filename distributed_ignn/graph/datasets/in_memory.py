"""The user's own graph as a Python object: a PyG ``Data``, or a dictionary of its attributes.

What the attributes may be is the part of ``attributes.py``. Nothing is copied that can be used as
it is, and the user's tensors are never written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from distributed_ignn.config.dataset import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.graph.datasets.fields import Fields, chosen_fields, plain_tensor
from distributed_ignn.graph.datasets.torch_content import from_rows, with_split_ids
from distributed_ignn.reading.torch_files import sparse_tensor

ORIGIN = Path("data")
"""The first word of messages about a graph in memory."""


def is_in_memory(data: object) -> bool:
    """Whether ``data`` is a graph, and not the name or path of one."""
    return not isinstance(data, str | Path)


def fields_in_memory(data: object, settings: DataConfig, *, labelled: bool = True) -> Fields:
    """The arrays of a graph in memory by name; only weights of edges that are to be used.

    Args:
        data: a PyG ``Data``, or a mapping from its attributes' names to tensors or numpy arrays, on
            any device.
        settings, labelled: see ``chosen_fields``.

    Raises:
        UserError: it is something else, or an attribute is no plain tensor.
    """
    content = _attributes(data)
    if labelled:
        content = with_split_ids(content)

    def read(name: str) -> Any:
        try:
            return _on_cpu(content[name])
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{ORIGIN}: {name} is {brief(error)}; give a plain tensor, or a scipy matrix of "
                "two dimensions"
            ) from error

    return chosen_fields(content, read, ORIGIN, settings, labelled=labelled)


def _attributes(data: object) -> dict[str, Any]:
    """Name and value of every attribute that there is."""
    found = data if isinstance(data, Mapping) else _of_pyg(data)
    return {str(key): value for key, value in found.items() if value is not None}


def _of_pyg(data: object) -> Mapping[str, Any]:
    """The attributes of one of PyG's graphs; importing PyG takes as long as importing torch."""
    from torch_geometric.data import Data, HeteroData

    if isinstance(data, Data):
        found: Mapping[str, Any] = data.to_dict()
    elif isinstance(data, HeteroData) and len(data.node_types) == len(data.edge_types) == 1:
        found = data[data.node_types[0]].to_dict() | data[data.edge_types[0]].to_dict()
    else:
        raise UserError(f"data is a {type(data).__name__}{_way_out(data)}")
    return found


def _way_out(data: object) -> str:
    from torch_geometric.data import Dataset, HeteroData

    if isinstance(data, Dataset):
        return "; give one graph of it, as in data = dataset[0]"
    if isinstance(data, HeteroData):
        return ", with several kinds of nodes; give one kind, as in data = hetero.to_homogeneous()"
    return (
        "; give a torch_geometric.data.Data, a dictionary of its attributes, the name of a "
        "dataset, or the path of a file"
    )


def _on_cpu(value: Any) -> Any:
    """A plain tensor with memory of its own for every entry; anything else as it is."""
    if callable(getattr(value, "csr", None)) and callable(getattr(value, "sparse_sizes", None)):
        # torch_sparse's, which this package does without
        pointer, col, entries = (None if part is None else _on_cpu(part) for part in value.csr())
        return from_rows(None, pointer, col, entries, tuple(value.sparse_sizes()))
    if sp.issparse(value):
        matrix = sp.coo_array(value)
        ends = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
        entries = plain_tensor(np.ascontiguousarray(matrix.data), "its values", ORIGIN)
        return sparse_tensor("torch.sparse_coo", [ends, entries], matrix.shape)
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    if value.layout is not torch.strided:
        return value
    # PyG has kinds of tensors of its own, as for edges
    return value.as_subclass(torch.Tensor).contiguous()
