"""Which modules can be exact on a divided graph, which need no rehearsal, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch.nn import Dropout, Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch_geometric.nn import MessagePassing

from distributed_ignn.errors import UserError

#: PyG layers of which tests compare 1, 2 and 4 ranks: outputs, gradients and exchanges.
VERIFIED = frozenset(
    f"torch_geometric.nn.conv.{name}"
    for name in (
        "gcn_conv.GCNConv",
        "gat_conv.GATConv",
        "gatv2_conv.GATv2Conv",
        "sage_conv.SAGEConv",
        "gin_conv.GINConv",
        "gin_conv.GINEConv",
        "graph_conv.GraphConv",
        "transformer_conv.TransformerConv",
        "appnp.APPNP",
        "sg_conv.SGConv",
        "gcn2_conv.GCN2Conv",
        "res_gated_graph_conv.ResGatedGraphConv",
        "tag_conv.TAGConv",
        "ssg_conv.SSGConv",
        "arma_conv.ARMAConv",
        "lg_conv.LGConv",
    )
)

_OF_MESSAGES = ("_propagate", "_message", "_aggregate", "_edge_update")
_STATISTICS = "it reads statistics of all nodes; take BatchNorm, which is synchronised"
_ORDER = (
    "its result depends on the order of a node's edges, which belongs to the part; take another "
    "aggregation, such as mean, max or softmax"
)
_QUANTILE = (
    "torch_geometric cannot compute it where the last of a part's nodes has no edge; take another "
    "aggregation, such as mean, max or std"
)
_NEIGHBOURS = (
    "it looks for neighbours among all nodes; build the graph beforehand and take EdgeConv"
)
_HETERO = "it is for graphs with types of nodes, of which a DistributedGraph has one"
_DROPOUT = "its masks cannot be drawn node by node; take Dropout"
_POOL = "it makes another graph out of all nodes; pool the rows of graph.gather instead"

#: By class name: why a module cannot be exact, and what can.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "GraphNorm",
            "InstanceNorm",
            "InstanceNorm1d",
            "InstanceNorm2d",
            "InstanceNorm3d",
            "PairNorm",
            "MeanSubtractionNorm",
            "GraphSizeNorm",
            "HeteroBatchNorm",
            "HeteroLayerNorm",
        ),
        _STATISTICS,
    ),
    **dict.fromkeys(
        (
            "LSTMAggregation",
            "GRUAggregation",
            "MLPAggregation",
            "SortAggregation",
            "LCMAggregation",
            "PatchTransformerAggregation",
            "GraphMultisetTransformer",
        ),
        _ORDER,
    ),
    **dict.fromkeys(("MedianAggregation", "QuantileAggregation"), _QUANTILE),
    **dict.fromkeys(("DynamicEdgeConv", "GravNetConv", "XConv"), _NEIGHBOURS),
    **dict.fromkeys(("HGTConv", "HANConv", "HeteroConv"), _HETERO),
    **dict.fromkeys(
        ("AlphaDropout", "FeatureAlphaDropout", "Dropout1d", "Dropout2d", "Dropout3d"), _DROPOUT
    ),
    **dict.fromkeys(
        ("TopKPooling", "SAGPooling", "ASAPooling", "EdgePooling", "PANPooling"), _POOL
    ),
    "SuperGATConv": "its loss samples pairs of nodes that no edge links; take GATConv or GATv2Conv",
    "FusedGATConv": "it takes its edges in another form; take GATConv, which is the same layer",
    "ChebConv": "it counts degrees at the sources of edges; take TAGConv or GCNConv",
    "PANConv": "it multiplies whole adjacencies; take TAGConv, which has the same powers",
    "HypergraphConv": "it has edges between more than two nodes; take a layer for graphs",
    "MultiheadAttention": "it attends from every node to all; take TransformerConv, along edges",
}


def check(module: Module) -> None:
    """Refuse what is known not to be exact, by name.

    Raises:
        UserError: some module inside cannot be exact, or its sizes are not known yet.
    """
    for name, part in module.named_modules():
        reason = _problem(part)
        if reason is not None:
            where = f" ({name})" if name else ""
            raise UserError(
                f"{type(part).__name__}{where} cannot be exact on a divided graph: {reason}"
            )
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise UserError(
            f"the size of {type(module).__name__}'s {lazy[0]} is not known yet (in_channels = -1); "
            "give it, such as graph.num_features, so that all ranks begin alike"
        )


def _problem(module: Module) -> str | None:
    for cls in type(module).__mro__:
        if cls.__name__ in REFUSED and cls.__module__.startswith(("torch.", "torch_geometric.")):
            return REFUSED[cls.__name__]
    if type(module).__name__ == "LayerNorm" and getattr(module, "mode", "node") == "graph":
        return f"in mode 'graph', {_STATISTICS}, or LayerNorm with mode='node'"
    if getattr(module, "allow_single_element", False):
        return "allow_single_element counts the rows of one rank; leave it off"
    if hasattr(module, "exact_binding"):
        return "it is bound to a graph already; build a new one for another graph"
    return None


def needs_rehearsal(module: Module) -> bool:
    """Whether tests of this package say nothing about a module as a whole."""
    if isinstance(module, (_BatchNorm, Dropout)):
        return False
    return not verified(type(module))


def verified(cls: type) -> bool:
    """Whether a class is one of ``VERIFIED``."""
    return f"{cls.__module__}.{cls.__qualname__}" in VERIFIED


def watched(layer: MessagePassing) -> bool:
    """Whether somebody looks at or changes what goes through the layer's messages."""
    return any(
        value
        for name, value in vars(layer).items()
        if name.endswith("_hooks") and name.startswith(_OF_MESSAGES)
    )


def dropping(module: Module) -> Iterator[str]:
    """Layers that draw masks of their own in training."""
    for part in module.modules():
        rate = getattr(part, "dropout", 0.0)
        if isinstance(part, MessagePassing) and isinstance(rate, float) and rate > 0.0:
            yield f"{type(part).__name__}.dropout = {rate:g}"
