"""Implicit graph neural networks trained on one graph divided among many processes.

The names below are loaded when they are first asked for, so that importing the package costs
nothing:

- ``fit(data, ...)`` trains, ``load(path)`` opens what was trained; both give a ``Run``.
- ``make_trainer(config, workers=N)`` is the same as a trainer of Ray Train.
- ``nn.FixedPoint`` and ``nn.ImplicitGNN`` are layers for a loop of your own.
- ``DistributedGraph`` is this rank's part of a divided graph, on which ``nn.exact`` lets layers of
  PyTorch Geometric give what they give in one process.
- ``UserError`` is a mistake in what was given, told in one line; ``JobError`` a rank that was lost.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed_ignn import nn
    from distributed_ignn.api import Prediction, Run, fit, load, make_trainer
    from distributed_ignn.config import RunConfig
    from distributed_ignn.distributed_graph import DistributedGraph
    from distributed_ignn.errors import JobError, UserError

__version__ = "0.1.0"

__all__ = [
    "DistributedGraph",
    "JobError",
    "Prediction",
    "Run",
    "RunConfig",
    "UserError",
    "__version__",
    "fit",
    "load",
    "make_trainer",
    "nn",
]

# of a library that nobody listens to, logging would print the warnings
logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    **dict.fromkeys(("Prediction", "Run", "fit", "load", "make_trainer"), "distributed_ignn.api"),
    "DistributedGraph": "distributed_ignn.distributed_graph",
    "RunConfig": "distributed_ignn.config",
    **dict.fromkeys(("JobError", "UserError"), "distributed_ignn.errors"),
}


def __getattr__(name: str) -> Any:
    """A public name, from the module where it lives."""
    if name == "nn":
        return importlib.import_module("distributed_ignn.nn")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
