"""What the user hands over, as this package's own graph and features in one process.

Letters: n nodes, E edges, F features, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges, csr_from_entries
from distributed_ignn.graph.datasets.checks import check_ids
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.weights import checked_weights
from distributed_ignn.models.cells import GraphFit, fit_to_graph
from distributed_ignn.propagation.propagate import Propagation

_INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LocalGraph:
    """A whole graph in this process.

    Args:
        propagation: its normalised channels.
        nodes: their ids, int64 [n] on the device.
        fit: what it asks of the weights.
    """

    propagation: Propagation
    nodes: Tensor
    fit: GraphFit

    @classmethod
    def build(
        cls,
        channels: Sequence[CSRMatrix],
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> LocalGraph:
        """From one adjacency [n, n] per channel.

        Raises:
            UserError: the graph does not suit the cell.
        """
        n = channels[0].num_rows
        nobody = torch.zeros(0, dtype=torch.int64)
        data = GraphData(
            name="edge_index",
            graphs=tuple(channels),
            features=None,
            labels=torch.full((n,), -1),
            num_classes=1,
            task="multiclass",
            train_nodes=nobody,
            val_nodes=nobody,
            test_nodes=nobody,
        )
        (shard,) = build_shards(data, torch.zeros(n, dtype=torch.int64), 1)
        shard = shard.normalised(config.normalisation)
        comm = Communicator(device=device)
        propagation = Propagation(shard, comm, dtype)
        fit = fit_to_graph(config, shard, propagation, comm, dtype)
        return cls(propagation, shard.owned_nodes.to(device), fit)


@dataclass(frozen=True, slots=True, eq=False)
class GivenFeatures:
    """Features as ``FeatureStore`` reads them.

    Args:
        features: CSRMatrix [n, F] or Tensor [n, F].
        owned_nodes: int64 [n].
        name: for messages.
    """

    features: CSRMatrix | Tensor | None
    owned_nodes: Tensor
    name: str = "x"


def read_adjacency(given: Any, weight: Tensor | None, nodes: int) -> CSRMatrix:
    """The adjacency [n, n] of one channel; row i holds what node i gathers from.

    Args:
        given: ``edge_index`` int [2, E], or a transposed adjacency [n, n] (``adj_t``): a sparse
            tensor of torch or a ``SparseTensor``, whose values are the weights.
        weight: [E] or None.
        nodes: n.

    Raises:
        UserError: what is given is none of these, names nodes that there are not, or has weights
            that cannot be used.
    """
    if isinstance(given, Tensor) and given.layout is torch.strided:
        target, source = _read_edge_index(given)
    else:
        if weight is not None:
            raise UserError("edge_weight besides an adj_t: its values are the weights; give one")
        target, source, weight = _read_adj_t(given, nodes)
    check_ids(torch.stack([target, source]), nodes, "edge_index")
    if weight is not None:
        weight = checked_weights(
            weight.detach().cpu(), target.numel(), "edge_weight", "leave edge_weight out"
        )
    return csr_from_edges(target, source, nodes, weight, symmetric=False)


def _read_edge_index(given: Tensor) -> tuple[Tensor, Tensor]:
    """Targets and sources; PyG's messages go from the first row to the second."""
    if given.dtype not in _INTEGERS or given.dim() != 2 or given.shape[0] != 2:
        raise UserError(
            f"edge_index is {given.dtype} {list(given.shape)}; it must be int64 [2, E], or give an "
            "adj_t as a sparse tensor"
        )
    source, target = given.cpu()
    return target, source


def _read_adj_t(given: Any, nodes: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, columns and values."""
    if isinstance(given, Tensor):
        size, entries = list(given.shape), given.detach().cpu().to_sparse_coo().coalesce()
        row, col = entries.indices()
        value: Tensor | None = entries.values()
    elif hasattr(given, "coo") and hasattr(given, "sparse_sizes"):
        size = list(given.sparse_sizes())
        row, col, value = (None if part is None else part.detach().cpu() for part in given.coo())
    else:
        raise UserError(
            f"edge_index is a {type(given).__name__}; give a tensor [2, E], or an adj_t as a "
            "sparse tensor"
        )
    if size != [nodes, nodes]:
        raise UserError(f"adj_t is {size} and x has {nodes} rows; it must be [{nodes}, {nodes}]")
    if value is not None and bool((value == 1).all()):
        value = None  # the weighted form adds parallel edges up
    return row, col, value


def read_features(x: Any, in_features: int) -> CSRMatrix | Tensor:
    """x [n, F], dense as it is or as compressed rows.

    Raises:
        UserError: it has another shape or type, or is sparse and asks for a gradient.
    """
    if isinstance(x, Tensor) and x.layout is torch.strided:
        found: CSRMatrix | Tensor = x
        shape, floating = list(x.shape), x.is_floating_point()
    else:
        found, shape, floating = _read_sparse(x)
    if len(shape) != 2 or shape[1] != in_features or not floating:
        raise UserError(
            f"x is {_dtype_name(x)} {shape}; the model was made for floating [n, {in_features}]"
        )
    return found


def _read_sparse(x: Any) -> tuple[CSRMatrix, list[int], bool]:
    if isinstance(x, Tensor):
        if x.requires_grad:
            raise UserError("a sparse x gets no gradient; give x.detach(), or x.to_dense()")
        entries = x.cpu().to_sparse_coo().coalesce()
        row, col = entries.indices()
        value, shape = entries.values(), list(x.shape)
    elif hasattr(x, "coo") and hasattr(x, "sparse_sizes"):
        row, col, stored = x.coo()
        row, col, shape = row.cpu(), col.cpu(), list(x.sparse_sizes())
        value = torch.ones(row.numel()) if stored is None else stored.cpu()
    else:
        raise UserError(f"x is a {type(x).__name__}; give a tensor [n, F], dense or sparse")
    found = csr_from_entries(row, col, shape[0], shape[-1], value)
    return found, shape, value.is_floating_point()


def _dtype_name(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else type(x).__name__
