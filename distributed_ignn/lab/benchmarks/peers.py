"""torchdeq's solvers as peers: the whole graph is one batch element, its state [1, n * D].

torchdeq (Geng and Kolter) is optional: ``pip install 'distributed-ignn[torchdeq]'``. It knows
nothing of ranks, so it is measured in a single process. Both methods have its defaults, except
that Anderson holds six iterates, as ours with M = 5 does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.problem import Problem
from distributed_ignn.solvers.base import FixedPointMap

Drive = Callable[[FixedPointMap, Tensor, int, Problem], None]


def torchdeq_drives(comm: Communicator) -> tuple[dict[str, Drive], str]:
    """torchdeq's methods by name, and one line that says why there are none (else empty)."""
    if comm.world_size > 1:
        return {}, "torchdeq's solvers are left out: they work in a single process only"
    try:
        from torchdeq.solver.anderson import anderson_solver
        from torchdeq.solver.broyden import broyden_solver
    except ImportError:
        return {}, "torchdeq's solvers are left out: pip install torchdeq to measure them too"
    return {
        "torchdeq anderson 5": _drive(anderson_solver, m=6),
        "torchdeq broyden": _drive(broyden_solver),
    }, ""


def _drive(method: Callable[..., Any], **options: Any) -> Drive:
    def drive(fixed_point_map: FixedPointMap, z0: Tensor, most: int, problem: Problem) -> None:
        def flat_map(flat: Tensor) -> Tensor:
            return fixed_point_map(flat.view(z0.shape), None).image.reshape(1, -1)

        try:
            # a tolerance of zero is never met: the observed map ends the run
            method(
                flat_map, z0.reshape(1, -1), max_iter=most + 1, tol=0.0, stop_mode="rel", **options
            )
        except torch.linalg.LinAlgError:
            return  # its mixing system is singular; what it has so far is recorded

    return drive
