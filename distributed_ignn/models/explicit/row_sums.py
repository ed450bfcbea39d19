"""Sums of neighbours' rows as one sparse product, where a layer's messages are nothing more.

PyTorch Geometric's layers that multiply by a matrix say so with ``message_and_aggregate``, whose
one product is ``spmm``. Messages would be [E, D], many times the state, written and read again and
again. So that code of theirs is run on a stand-in for the matrix, with an ``spmm`` that multiplies
by the part's edges and, in the backward pass, by their transpose. It takes edges and weights that
stay the same: the graph's own, and what ``gcn_norm`` has found for them. All else is the layer's.

Letters: O owned nodes, H halo nodes, E edges into owned nodes, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import spmm

from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.models.explicit.graph_part import GraphPart
from distributed_ignn.models.explicit.rules import watched
from distributed_ignn.propagation.sparse import SparseMatrix, sparse_linear

_SUMS = ("add", "sum", "mean")
_NAMES = frozenset(
    {"spmm", "aggr", "isinstance", "str", "SparseTensor", "set_value"}
    | {"torch", "jit", "is_scripting", "EdgeIndex", "matmul"}
)
"""What the code of such a method may refer to: spmm, and kinds of matrices that ours is not."""


@dataclass(frozen=True, slots=True, eq=False)
class RowSums:
    """A [O, O + H] of a part's edges and their weights, and its transpose.

    Args:
        matrix, flipped: these.
        degree: edges into each node, at least 1, [O, 1].
    """

    matrix: SparseMatrix
    flipped: SparseMatrix
    degree: Tensor

    @classmethod
    def of(
        cls, edge_index: Tensor, weight: Tensor | None, part: GraphPart, dtype: torch.dtype
    ) -> RowSums:
        """Of edges [2, E] from sources to targets; weights [E], None for ones."""
        device = edge_index.device
        source, target = edge_index.cpu()
        order = torch.argsort(target * (part.num_owned + part.num_halo) + source)
        count = torch.bincount(target, minlength=part.num_owned)
        rowptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
        value = None if weight is None else weight.detach().cpu()[order]
        csr = CSRMatrix(
            rowptr, source[order].to(torch.int32), value, part.num_owned + part.num_halo
        )
        return cls(
            SparseMatrix.from_csr(csr, dtype, device),
            SparseMatrix.transposed(csr, dtype, device),
            count.clamp(min=1).to(device, dtype)[:, None],
        )

    def __call__(self, rows: Tensor, reduce: str) -> Tensor:
        """Sums or means [O, D] of the rows [O + H, D] that each owned node reads."""
        total = sparse_linear(self.matrix, self.flipped, rows.contiguous())
        return total / self.degree if reduce == "mean" else total


def summed_rows(
    layer: MessagePassing,
    cls: Any,
    part: GraphPart,
    edge_index: Tensor,
    given: Mapping[str, Any],
    rows: Mapping[str, Any],
) -> Tensor | None:
    """What ``propagate`` of a layer gives, [O, D], without messages; None where it needs them.

    Args:
        layer: of the class ``cls``.
        cls: the layer's own class, a subclass of ``MessagePassing``.
        part: of the graph.
        edge_index: that the layer was given, [2, E].
        given: further arguments of ``propagate``, of owned nodes.
        rows: the same with the halo's rows, as pairs of sources and targets.
    """
    code = _fused_code(cls)
    if code is None or layer.aggr not in _SUMS or layer.explain or watched(layer):
        return None
    names = code.__code__.co_varnames[2 : code.__code__.co_argcount]
    if not set(given) <= {*names, "edge_weight"} or not rows.keys() >= set(names):
        return None
    # a lone tensor is handed on as one, a pair as a pair
    arguments = {
        name: rows[name][0] if isinstance(given[name], Tensor) else rows[name]
        for name in names
        if name != "edge_weight"
    }
    first = next((a[0] if isinstance(a, tuple) else a for a in arguments.values()), None)
    if first is None or first.dim() != 2 or not first.is_floating_point():
        return None
    if "edge_weight" in names:
        arguments["edge_weight"] = rows["edge_weight"]
    dtype = first.dtype
    sums = _kept_sums(part, edge_index, given.get("edge_weight"), dtype)
    return None if sums is None else code(layer, sums, **arguments)


def _kept_sums(
    part: GraphPart, edge_index: Tensor, weight: Tensor | None, dtype: torch.dtype
) -> RowSums | None:
    """The product of edges that stay the same, made when it is first asked for."""
    channel = part.channel(edge_index)
    own = channel is not None and (weight is None or weight is part.edge_weights[channel])
    normal = any(edge_index is e and weight is w for e, w in part.norms.values())
    if not (own or normal):
        return None
    key = id(edge_index), id(weight), dtype
    if key not in part.sums:
        part.sums[key] = RowSums.of(edge_index, weight, part, dtype)
    return part.sums[key]


@cache
def _fused_code(cls: Any) -> Any:
    """``message_and_aggregate`` of a class with our product; None where it is no plain product."""
    owner = next(c for c in cls.__mro__ if "message_and_aggregate" in vars(c))
    method = vars(owner)["message_and_aggregate"]
    replaced = (cls.message, cls.aggregate, cls.update)
    told = vars(owner).get("message"), MessagePassing.aggregate, MessagePassing.update
    code = method.__code__
    if replaced != told or "spmm" not in code.co_names or not _NAMES.issuperset(code.co_names):
        return None
    if method.__globals__.get("spmm") is not spmm:
        return None
    return FunctionType(
        code, {**method.__globals__, "spmm": _product}, method.__name__, method.__defaults__
    )


def _product(sums: RowSums, rows: Tensor, reduce: str = "sum") -> Tensor:
    return sums(rows, reduce)
