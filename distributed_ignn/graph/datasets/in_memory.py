"""The user's own graph as a Python object: a PyG ``Data``, or a dictionary of its attributes.

What the attributes may be is the part of ``attributes.py``. Nothing is copied that can be used as
it is, and the user's tensors are never written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.config.dataset import EdgeWeights
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.attributes import Fields, plain_tensor, wanted_names
from distributed_ignn.graph.datasets.user_file import from_numpy

ORIGIN = Path("data")
"""The first word of messages about a graph in memory."""


def is_in_memory(data: object) -> bool:
    """Whether ``data`` is a graph, and not the name or path of one."""
    return not isinstance(data, str | Path)


def fields_in_memory(data: object, edge_weights: EdgeWeights) -> Fields:
    """The arrays of a graph in memory by name; only weights of edges that are to be used.

    Args:
        data: a PyG ``Data``, or a mapping from its attributes' names to tensors or numpy arrays, on
            any device.
        edge_weights: see ``DataConfig``.

    Raises:
        UserError: it is something else, or an attribute is no plain tensor.
    """
    content = _attributes(data)
    names = wanted_names(content.keys(), edge_weights, ORIGIN)
    return {
        key: plain_tensor(_on_cpu(content[key]), key, ORIGIN) for key in names if key in content
    }


def _attributes(data: object) -> dict[str, Any]:
    """Name and value of every attribute that there is."""
    from torch_geometric.data import Data

    if isinstance(data, Data):
        found: Mapping[str, Any] = data.to_dict()
    elif isinstance(data, Mapping):
        found = data
    else:
        raise UserError(f"data is a {type(data).__name__}{_way_out(data)}")
    return {str(key): value for key, value in found.items() if value is not None}


def _way_out(data: object) -> str:
    from torch_geometric.data import Dataset, HeteroData

    if isinstance(data, Dataset):
        return "; give one graph of it, as in data = dataset[0]"
    if isinstance(data, HeteroData):
        return ", with several kinds of nodes; give one kind, as in data = hetero.to_homogeneous()"
    return (
        "; give a torch_geometric.data.Data, a dictionary of its attributes, the name of a "
        "dataset, or the path of a .pt or .npz file"
    )


def _on_cpu(value: Any) -> Any:
    """A plain tensor with memory of its own for every entry; anything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return from_numpy(value)
    if isinstance(value, np.integer):
        return int(value)
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    if value.layout is not torch.strided:
        return value
    # PyG has kinds of tensors of its own, as for edges
    return value.as_subclass(torch.Tensor).contiguous()
