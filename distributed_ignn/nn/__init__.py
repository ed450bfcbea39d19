"""Layers for the user's own loop, as ``torch.nn`` has them.

``FixedPoint`` makes an equilibrium of any map and ``ImplicitGNN`` is this package's model on the
graph that it is called with; no process group is needed. ``exact`` lets layers of PyTorch Geometric
work on a graph that is divided among ranks.
"""

from distributed_ignn.models.explicit.exact import exact
from distributed_ignn.nn.fixed_point import FixedPoint
from distributed_ignn.nn.implicit_gnn import ImplicitGNN, ImplicitOutput
from distributed_ignn.nn.solving import NotConvergedWarning, Solve, SolveInfo

__all__ = [
    "FixedPoint",
    "ImplicitGNN",
    "ImplicitOutput",
    "NotConvergedWarning",
    "Solve",
    "SolveInfo",
    "exact",
]
