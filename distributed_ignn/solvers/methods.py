"""The methods there are, in one list: settings, help, budget, planner and layers read it.

A new one is a file with a class that has the four methods of ``FixedPointSolver``,
``held_bytes`` and ``moved_bytes``, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySizedSolver
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.picard import Picard

SETTING = {"storage": "history_dtype"}
"""Arguments of solvers that the settings of a solve have under another name."""

_OF_THE_GRAPH = "num_nodes"  # what is not set but known


@dataclass(frozen=True, slots=True)
class SolverSettings:
    """What a method may read; see the settings of the same names.

    Args:
        memory: past iterates or steps, M.
        beta: mixing factor.
        regularization: of the mixing weights.
        storage: number format of past iterates; None for that of the points.
        trained: makes the trained solver; None where there is none, or not yet.
        num_nodes: of all ranks; 0 where that makes no difference.
    """

    memory: int = 5
    beta: float = 1.0
    regularization: float = 1e-8
    storage: torch.dtype | None = None
    trained: Callable[[], AnySizedSolver] | None = None
    num_nodes: int = 0


@dataclass(frozen=True, slots=True)
class Method:
    """How a method is built.

    Args:
        build: the solver's class; its arguments are named like fields of ``SolverSettings``.
        arguments: those that it takes.
        summary: for the help.
        learned: whether ``build`` only stands in until a solver is trained.
    """

    build: Callable[..., AnySizedSolver]
    arguments: tuple[str, ...]
    summary: str = ""
    learned: bool = False

    @property
    def reads(self) -> frozenset[str]:
        """Keys of a solve's settings that make a difference to it."""
        names = {SETTING.get(name, name) for name in self.arguments if name != _OF_THE_GRAPH}
        groups = hasattr(self.build, "in_groups") and not self.learned
        return frozenset(names | {"capture"} if groups else names)

    def solver(self, settings: SolverSettings) -> AnySizedSolver:
        """The method with these settings."""
        if self.learned and settings.trained is not None:
            return settings.trained()
        return self.build(**{name: getattr(settings, name) for name in self.arguments})


_MIXING = ("memory", "beta", "regularization", "storage", _OF_THE_GRAPH)

METHODS: dict[str, Method] = {
    "picard": Method(Picard, ("beta",), "plain iteration"),
    "anderson": Method(Anderson, _MIXING, "mixes past iterates"),
    "broyden": Method(Broyden, ("memory",), "quasi-Newton"),
    "neural": Method(Anderson, _MIXING, "the learned solver, see section solver", learned=True),
}


def build_solver(name: str, settings: SolverSettings | None = None) -> AnySizedSolver:
    """The method of that name, a key of ``METHODS``."""
    return METHODS[name].solver(settings or SolverSettings())
