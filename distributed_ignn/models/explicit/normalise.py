"""The symmetric normalisation of GCN-like layers, with degrees counted over the whole graph.

PyTorch Geometric's ``gcn_norm`` counts degrees over the edges it is given. A part has all edges
into its own nodes and none into its halo, whose degrees are therefore fetched.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import add_remaining_self_loops, scatter

from distributed_ignn.models.explicit.graph_part import GraphPart


def gcn_norm(
    graph: GraphPart,
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    num_nodes: int | None = None,
    improved: bool = False,
    add_self_loops: bool = True,
    flow: str = "source_to_target",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """D~^-1/2 A~ D~^-1/2 as ``torch_geometric.nn.conv.gcn_conv.gcn_norm`` has it for the whole.

    The result for the graph's own edges is kept, so that an exchange is needed once.

    Args:
        graph: the part.
        edge_index, edge_weight, improved, add_self_loops, dtype: as there, with local ids.
        num_nodes, flow: as there, and not read: targets are the owned nodes.
    """
    channel = graph.channel(edge_index)
    own = channel is not None and (
        edge_weight is None or edge_weight is graph.edge_weights[channel]
    )
    if not own:
        return _normalised(graph, edge_index, edge_weight, improved, add_self_loops, dtype)
    key = (channel, edge_weight is None, improved, add_self_loops, dtype)
    if key not in graph.norms:
        with torch.no_grad():
            found = _normalised(graph, edge_index, edge_weight, improved, add_self_loops, dtype)
        graph.norms[key] = found
    return graph.norms[key]


def _normalised(
    graph: GraphPart,
    edge_index: Tensor,
    edge_weight: Tensor | None,
    improved: bool,
    add_self_loops: bool,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    if add_self_loops:
        edge_index, edge_weight = add_remaining_self_loops(
            edge_index, edge_weight, 2.0 if improved else 1.0, graph.num_owned
        )
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.shape[1], dtype=dtype, device=edge_index.device)
    source, target = edge_index
    degree = scatter(edge_weight, target, 0, dim_size=graph.num_owned, reduce="sum")
    scale = degree.pow(-0.5)
    scale = scale.masked_fill(scale == float("inf"), 0.0)
    (scales,) = graph.with_halo([scale], 0, "gcn_norm")
    return edge_index, scales[source] * edge_weight * scale[target]
