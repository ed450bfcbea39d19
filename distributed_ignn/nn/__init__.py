"""Layers for the user's own loop, as ``torch.nn`` has them; no process group is needed.

``FixedPoint`` makes an equilibrium of any map, ``ImplicitGNN`` is this package's model on the graph
that it is called with.
"""

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
]
