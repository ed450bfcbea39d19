"""Kinds: the explicit models that ``model.kind`` may name, besides the implicit one."""

from distributed_ignn.models.kinds.acmgcn import ACMGCN
from distributed_ignn.models.kinds.amgcn import AMGCN
from distributed_ignn.models.kinds.appnp import APPNP
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site
from distributed_ignn.models.kinds.demonet import DemoNet
from distributed_ignn.models.kinds.gat import GAT
from distributed_ignn.models.kinds.gcn import GCN
from distributed_ignn.models.kinds.gcnii import GCNII
from distributed_ignn.models.kinds.graphsage import GraphSAGE
from distributed_ignn.models.kinds.jknet import JKNet
from distributed_ignn.models.kinds.mlp import MLP
from distributed_ignn.models.kinds.sgc import SGC

__all__ = ["KINDS", "Columns", "ExplicitModel", "Site"]

KINDS: dict[str, type[ExplicitModel]] = {
    "gcn": GCN,
    "gat": GAT,
    "sgc": SGC,
    "appnp": APPNP,
    "jknet": JKNet,
    "amgcn": AMGCN,
    "demonet": DemoNet,
    "gcnii": GCNII,
    "acmgcn": ACMGCN,
    "graphsage": GraphSAGE,
    "mlp": MLP,
}
"""The explicit models there are, by name; a new one is a file and a line here."""
