"""Variants of the learned solver, each trained afresh on the frozen model of a run.

All start from the same point, which is not trained: the run's initialiser, or f(0). Closed-form
parts are fitted once; networks get the same number of gradient steps, the run's own settings and
seed. So only what turns residuals into a step differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from distributed_ignn.config import NeuralSolverConfig, ScheduleConfig
from distributed_ignn.lab.benchmarks.problem import Problem
from distributed_ignn.propagation.sparsify import sparsify
from distributed_ignn.solvers.initialiser import Initialiser
from distributed_ignn.solvers.predictors import NETWORKS, SCOPES
from distributed_ignn.training.learned.solver_kinds import SOLVER_KINDS
from distributed_ignn.training.learned_solver import LearnedSolver
from distributed_ignn.training.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Variant:
    """What a variant changes in the solver section.

    Args:
        name: as tables show it.
        changes: settings of ``NeuralSolverConfig``.
    """

    name: str
    changes: Mapping[str, Any]

    @property
    def has_network(self) -> bool:
        """Whether there is something to train by gradient steps."""
        paper = self.changes.get("kind", "estimator") == "paper"
        return paper or self.changes.get("network", "none") != "none"


def all_variants() -> list[Variant]:
    """The estimator with and without neighbours, every network in its place, and one on top.

    Then the paper's own solver, with its safeguard and without.
    """
    plain: dict[str, Any] = {"kind": "estimator", "alpha": "global", "safeguard": True}
    plain |= {"sparsifier": "none", "network": "none"}
    found = [
        Variant("graph estimator", plain | {"estimator": "graph", "estimator_hops": 1}),
        Variant("graph estimator, 2 hops", plain | {"estimator": "graph", "estimator_hops": 2}),
        Variant("own estimator", plain | {"estimator": "own"}),
    ]
    for network in NETWORKS:
        for alpha in SCOPES:
            if (network, alpha) != ("table", "node"):
                settings = {"estimator": "none", "network": network, "alpha": alpha}
                found.append(Variant(f"{network} {alpha}", plain | settings))
    on_top = {"estimator": "graph", "network": "graph"}
    found.append(Variant("graph estimator and graph global", plain | on_top))
    paper = {"kind": "paper", "sparsifier": "pri", "estimator": "none", "network": "none"}
    found.append(Variant("paper", paper | {"safeguard": True}))
    return [*found, Variant("paper, no safeguard", paper | {"safeguard": False})]


def ensure_thinned(problem: Problem) -> None:
    """Give the model an A_s where it has none: networks with a graph layer read it."""
    layer, config = problem.trainer.implicit.layer, problem.trainer.config
    if layer.sparsified is None:
        dtype, keep = problem.injection.dtype, config.solver.keep
        thinned = sparsify(problem.trainer.shard, problem.comm, "pri", keep, dtype, config.seed)
        problem.trainer.implicit.layer = replace(layer, sparsified=thinned)


def train_variant(
    problem: Problem, variant: Variant, start: Initialiser | None, steps: int
) -> LearnedSolver:
    """A learned solver of that kind, trained from a fixed starting point; every rank calls it.

    Args:
        problem: whose model is learned, and stays as it is.
        variant: of the solver.
        start: the initialiser that makes the starting point; None for f(0).
        steps: gradient steps of its network, if it has one.
    """
    # lambda2 = 0 keeps the initialiser as it is
    changes = dict(variant.changes) | {"initialiser": "none", "lambda2": 0.0}
    section = problem.trainer.config.solver.model_copy(update=changes)
    return train_solver(problem, section, steps, start)


def train_solver(
    problem: Problem, section: NeuralSolverConfig, steps: int, start: Initialiser | None = None
) -> LearnedSolver:
    """A learned solver for forward solves, trained from scratch; every rank calls it.

    Args:
        problem: whose model is learned, and stays as it is.
        section: settings of the solver.
        steps: gradient steps of its network, if it has one.
        start: an initialiser to be used in place of its own.
    """
    trainer, comm = problem.trainer, problem.comm
    adjoint = trainer.config.adjoint.model_copy(update={"method": "anderson"})
    config = trainer.config.model_copy(update={"solver": section, "adjoint": adjoint})
    kind = SOLVER_KINDS[section.kind]
    where = trainer.implicit, trainer.shard, comm
    learned = kind.build(config, *where, problem.injection.dtype)
    if start is not None:
        learned.initialiser = start
    schedule = Schedule(
        ScheduleConfig(warmup_epochs=0, warmup_solver_steps=steps), epochs=1, active=True
    )
    nodes = trainer.shard.owned_nodes
    teacher = kind.trainer(learned, section, schedule, comm, nodes)
    with torch.enable_grad():
        teacher.phase(trainer.implicit, trainer.planner, steps, torch.zeros_like)
    return learned
