"""What files of ``torch.save`` hold where people keep a graph in them, as named values.

A PyG ``Data``, a dictionary, the tuple that PyG keeps in ``processed/`` or OGB's pair of graph and
labels; a ``HeteroData`` of one kind of nodes and edges. A pickle is described and not run, so PyG's
classes are only names here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.fields import SPLITS
from distributed_ignn.reading.pickles import Described, Named
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.torch_files import TorchFile, is_numbers, sparse_tensor

ADVICE = "save it again with torch.save(data.to_dict(), path)"
_DATA = ("torch_geometric.data.data.Data", "torch_geometric.data.Data")
_HETERO = "torch_geometric.data.hetero_data.HeteroData"
_TEMPORAL = "torch_geometric.data.temporal.TemporalData"
_SPARSE = "torch_sparse.tensor.SparseTensor"
_ROWS = ("row", "rowptr", "col", "value", "sparse_sizes")


def named_values(file: TorchFile, origin: object) -> dict[str, Any]:
    """Name and value of everything that may be an array of the graph; None is left out.

    Values are records still; ``value_of`` reads one.

    Args:
        file: the open file.
        origin: its path, the first word of any message.

    Raises:
        UserError: the file holds something else.
    """
    content = _attributes(_graph(file.content, file, origin), origin)
    found = {str(key): value for key, value in content.items() if value is not None}
    return with_split_ids(found)


def with_split_ids(found: dict[str, Any]) -> dict[str, Any]:
    """OGB's ``split_idx``, a dictionary of three lists, as those lists."""
    split = found.get("split_idx")
    if not isinstance(split, Mapping) or not all(type(key) is str for key in split):
        return found
    lists = {f"{key}_idx": nodes for key, nodes in split.items() if key in (*SPLITS, "valid")}
    return {key: value for key, value in found.items() if key != "split_idx"} | lists


def value_of(file: TorchFile, found: Any) -> Any:
    """A tensor, an array of numpy's, a number, or a list.

    Raises:
        ValueError: a tensor or an array is damaged, or it is an object of any other class.
    """
    if isinstance(found, Described) and found.name == _SPARSE:
        return _sparse_tensor(file, found)
    value = file.value(found)
    if isinstance(value, Described | Named):
        raise ValueError(f"a {in_one_line(value.name)}")
    return value


def _graph(content: Any, file: TorchFile, origin: object) -> Any:
    """The graph itself, of what PyG and OGB put around it."""
    if isinstance(content, list) and len(content) == 1:
        return content[0]
    if not isinstance(content, tuple) or not content:
        return content
    first, second = content[0], content[1] if len(content) > 1 else None
    if isinstance(first, dict) and len(content) == 2 and is_numbers(second):
        return first | {"y": second}  # OGB's graph and labels
    if isinstance(second, dict) and second:  # where each of several graphs begins
        bounds = [file.value(value) for value in second.values()]
        counts = [b.numel() - 1 for b in bounds if isinstance(b, Tensor) and b.dim() == 1]
        several = max(counts, default=1)
        if several > 1:
            raise UserError(
                f"{origin} holds {several} graphs one after the other; save the one to train on "
                "by itself: torch.save(dataset[0].to_dict(), path)"
            )
    if isinstance(second, dict) or second is None:
        return first
    return content


def _attributes(content: Any, origin: object) -> Mapping[Any, Any]:
    if isinstance(content, Described):
        content = _of_object(content, origin)
    if isinstance(content, list | tuple):
        raise UserError(
            f"{origin} holds a list of {len(content)}; save the graph in it by itself, as in "
            "torch.save(data[0].to_dict(), path)"
        )
    if not isinstance(content, dict):
        name = content.name if isinstance(content, Described | Named) else type(content).__name__
        raise UserError(f"{origin} holds a {in_one_line(name)}, not a PyG Data object; {ADVICE}")
    return content


def _of_object(content: Described, origin: object) -> Any:
    """The attributes of an object of PyG's; the object itself where it is of no known kind."""
    state = content.state if isinstance(content.state, dict) else {}
    if content.name in _DATA:
        # objects of PyG 1 have no store: their attributes are the state
        return _mapping(state["_store"]) if "_store" in state else state
    if content.name == _HETERO:
        return _single_kind(state, origin)
    if content.name == _TEMPORAL:
        raise UserError(
            f"{origin} holds a TemporalData, which is a list of events and has no labels of nodes; "
            'save edge_index = torch.stack([data.src, data.dst]) in a dictionary with "x", "y" '
            "and masks of the nodes"
        )
    return content


def _single_kind(state: Mapping[str, Any], origin: object) -> Mapping[Any, Any]:
    """Nodes and edges of a ``HeteroData`` that has one kind of each."""
    nodes, edges = state.get("_node_store_dict"), state.get("_edge_store_dict")
    if not isinstance(nodes, dict) or not isinstance(edges, dict):
        raise UserError(f"{origin} holds a damaged HeteroData; {ADVICE}")
    if len(nodes) != 1 or len(edges) != 1:
        raise UserError(
            f"{origin} holds a HeteroData of {len(nodes)} kinds of nodes and {len(edges)} of "
            "edges; one kind of each is read, so save all in one with "
            "torch.save(data.to_homogeneous().to_dict(), path)"
        )
    return _mapping(*nodes.values()) | _mapping(*edges.values())


def _mapping(store: Any) -> dict[Any, Any]:
    """The attributes that a store of PyG's has."""
    state = store.state if isinstance(store, Described) else None
    found = state.get("_mapping") if isinstance(state, dict) else None
    if not isinstance(found, dict):
        raise ValueError("a Data object without attributes")
    return found


def _sparse_tensor(file: TorchFile, found: Described) -> Tensor:
    """The parts of torch_sparse's ``SparseTensor`` as a sparse tensor of torch's own."""
    storage = found.state.get("storage") if isinstance(found.state, dict) else None
    parts = storage.state if isinstance(storage, Described) else None
    if not isinstance(parts, dict):
        raise ValueError("a SparseTensor without parts")
    values = [file.value(parts.get(f"_{name}")) for name in _ROWS]
    return from_rows(*values)


def from_rows(row: Any, pointer: Any, col: Any, value: Any, sizes: Any) -> Tensor:
    """A sparse tensor of torch's from the rows of another kind; without values it is of True.

    Args:
        row: of each entry, or None.
        pointer: where each row begins, where ``row`` is None.
        col, value: of each entry; ``value`` may be None.
        sizes: rows and columns.

    Raises:
        ValueError: the parts do not belong together.
    """
    if not isinstance(col, Tensor) or not isinstance(sizes, tuple | list):
        raise ValueError("a SparseTensor without parts")
    value = torch.ones(col.shape, dtype=torch.bool) if value is None else value
    if not isinstance(row, Tensor):
        return sparse_tensor("torch.sparse_csr", [pointer, col, value], tuple(sizes))
    if row.shape != col.shape:
        raise ValueError("a SparseTensor whose parts do not belong together")
    return sparse_tensor("torch.sparse_coo", [torch.stack([row, col]), value], tuple(sizes))
