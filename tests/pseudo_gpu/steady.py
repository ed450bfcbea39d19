"""What one steady evaluation asks of a GPU, by solver; see ``evaluation_ceilings.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.graph.data import GraphData, csr_from_edges
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.implicit import SolvePlan
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.propagation.propagate import PropagationOptions
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver, Solution
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.captured import Captures
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.reduced import BasisCache
from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu.emulated import run_emulated
from tests.pseudo_gpu.entered import emulator
from tests.pseudo_gpu.evaluation_ceilings import CEILINGS, Ceiling

_NODES, _WIDTH, _MEMORY = 2000, 16, 5
# Two solves of one problem differ by evaluations in the middle alone: long after histories are
# full, and before anything has converged.
_SHORT, _LONG = 16, 48
_REGULARIZATION = 1e-8
_COLUMNS = {
    kinds.LAUNCH: "launches",
    kinds.SYNC: "syncs",
    kinds.UPLOAD: "uploads",
    kinds.NCCL: "nccl",
    kinds.PASSES: "passes",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A solver, and what it solves.

    Args:
        solver: makes it, from the model.
        codec: of halo rows.
        adjoint: whether the backward map is solved.
        recorded: evaluations in a group that is replayed; 0 for one by one.
    """

    solver: Callable[[ShardModel], AnySolver]
    codec: str = "fp32"
    adjoint: bool = False
    recorded: int = 0


def _learned(model: ShardModel) -> AnySolver:
    """Untrained, which asks for the same; never judged, since it would be replaced by Anderson."""
    estimator = ErrorEstimator(BasisCache(8), 1, 1, 20).to(model.head.weight)
    return NeuralSolver(None, _NODES, _REGULARIZATION, None, estimator, _MEMORY, safeguard=False)


_PLAIN = Case(lambda model: Anderson(_MEMORY))
CASES = {
    "picard": Case(lambda model: Picard()),
    "anderson": _PLAIN,
    "anderson, adjoint": replace(_PLAIN, adjoint=True),
    "anderson, large graph": Case(lambda model: Anderson(_MEMORY, judge_first=True)),
    "anderson, int4 halos": replace(_PLAIN, codec="int4"),
    "anderson, recorded by 8": replace(_PLAIN, recorded=8),
    "picard, recorded by 8": Case(lambda model: Picard(), recorded=8),
    "broyden": Case(lambda model: Broyden()),
    "learned": Case(_learned),
}


def _data() -> GraphData:
    """A random graph whose state is far larger than the weights."""
    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(0, _NODES, (2, 3 * _NODES), generator=generator)
    nodes = torch.arange(_NODES)
    return GraphData(
        name="steady",
        graphs=(csr_from_edges(edges[0], edges[1], _NODES, symmetric=True),),
        features=torch.randn(_NODES, 4, generator=generator),
        labels=nodes % 3,
        num_classes=3,
        task="multiclass",
        train_nodes=nodes[:100],
        val_nodes=nodes[100:200],
        test_nodes=nodes[200:],
    )


def count_case(comm: Communicator, name: str) -> Ceiling:
    """What one steady evaluation asks of this rank's GPU."""
    case, gpu = CASES[name], emulator()
    part = torch.arange(_NODES) % comm.world_size
    shard = list(build_shards(_data(), part, comm.world_size))[comm.rank]
    options = PropagationOptions(codec=case.codec)
    config = ModelConfig(hidden=_WIDTH, kappa=0.995, init="identity")
    model = ShardModel(shard, comm, config, torch.float32, 0, None, options)
    gpu.counts.state_entries = shard.num_owned * _WIDTH
    totals = []
    for evaluations in (_SHORT, _LONG):
        groups = Captures(case.recorded) if case.recorded else None
        for _ in range(3 if groups else 1):  # the first two warm up and record
            before = gpu.counts.totals()
            _solve(model, case, evaluations, groups)
        after = gpu.counts.totals()
        totals.append({kind: after.get(kind, 0) - before.get(kind, 0) for kind in _COLUMNS})
    per = {
        column: (totals[1][kind] - totals[0][kind]) / (_LONG - _SHORT)
        for kind, column in _COLUMNS.items()
    }
    return Ceiling(**per)


def _solve(model: ShardModel, case: Case, evaluations: int, groups: Captures | None) -> None:
    def start(cell: object, driver: Tensor) -> Tensor:
        return torch.zeros_like(driver)

    solutions: list[Solution] = []
    plan = SolvePlan(case.solver(model), start, 0.0, evaluations, solutions.append, captures=groups)
    injection, weights = model.injection().detach(), model.channel_weights()
    if case.adjoint:
        grad = injection.requires_grad_()
        inner = replace(plan, max_steps=2, done=lambda solution: None)
        model.layer(grad, weights, inner, plan).sum().backward()
    else:
        model.layer.solve(injection, weights, plan)
    (solution,) = solutions
    assert solution.steps == evaluations, "the solve ended early; nothing of it is steady"


def count_all(comm: Communicator) -> dict[str, Ceiling]:
    """Every case, on this rank."""
    return {name: count_case(comm, name) for name in CASES}


def measured() -> dict[str, Ceiling]:
    """Every case, the larger of two ranks' numbers."""
    ranks = run_emulated(count_all, 2)
    return {
        name: Ceiling(
            *(max(getattr(rank[name], column) for rank in ranks) for column in Ceiling.__slots__)
        )
        for name in CASES
    }


def above(found: dict[str, Ceiling], allowed: dict[str, Ceiling] = CEILINGS) -> list[str]:
    """What is above what is allowed, a line each."""
    return [
        f"{case}: {column} {getattr(counted, column):.2f} above {getattr(allowed[case], column):g}"
        for case, counted in found.items()
        for column in Ceiling.__slots__
        if getattr(counted, column) > getattr(allowed[case], column)
    ]


def table(found: dict[str, Ceiling]) -> str:
    """Text of what was counted, each with its ceiling."""
    names = ("launches", "syncs", "host to device", "NCCL calls", "passes over Z")
    lines = [f"{'one steady evaluation':24s}" + "".join(f"{name:>18s}" for name in names)]
    for case, counted in found.items():
        cells = (
            f"{getattr(counted, column):.1f} (<= {getattr(CEILINGS[case], column):g})"
            for column in Ceiling.__slots__
        )
        lines.append(f"{case:24s}" + "".join(f"{cell:>18s}" for cell in cells))
    return "\n".join(lines)
