"""The kinds of learned solver there are: settings, trainer, budget and studies choose here.

A new one has a ``LearnedSolver`` of its own parts, a ``SolverTrainer`` that trains them, and a line
in ``SOLVER_KINDS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import NeuralSolverConfig, RunConfig
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.training.learned.paper_training import (
    PaperTrainer,
    build_paper_parts,
    paper_bytes,
    rollout_bytes,
)
from distributed_ignn.training.learned.phases import SolverTrainer
from distributed_ignn.training.learned_solver import (
    LearnedSolver,
    build_learned_solver,
    estimator_bytes,
)

Build = Callable[[RunConfig, ShardModel, GraphShard, Communicator, torch.dtype], LearnedSolver]
Bytes = Callable[[RunConfig, PartSizes, int], int]


@dataclass(frozen=True, slots=True)
class SolverKind:
    """A kind of learned solver.

    Args:
        build: makes its parts, with fresh weights.
        trainer: trains them.
        reads: the keys of the solver section that make a difference to it, with these settings.
        thins: whether it reads A_s, with these settings.
        solve_bytes: what it holds in a solve beside Anderson's history.
        training_bytes: what a step of its training holds besides; 0 where a solve holds more.
        backward: whether the backward solve may have an estimator of its own.
        summary: for the help.
    """

    build: Build
    trainer: type[SolverTrainer]
    reads: Callable[[NeuralSolverConfig], frozenset[str]]
    thins: Callable[[NeuralSolverConfig], bool]
    solve_bytes: Bytes
    training_bytes: Bytes
    backward: bool
    summary: str


_COMMON = frozenset({"kind", "initialiser", "memory", "compress", "safeguard", "target_tolerance"})
_COMMON |= {"target_max_steps"}
_NETWORK = frozenset({"steps", "hidden", "lambda1", "lambda2", "lambda3", "lr"})


def _estimator_reads(section: NeuralSolverConfig) -> frozenset[str]:
    read = set(_COMMON | {"estimator", "network", "fit_nodes"})
    if section.initialiser == "graph":
        read.add("initialiser_hops")
    if section.estimator != "none":
        read.add("estimator_steps")
    if section.estimator == "graph":
        read.add("estimator_hops")
    if section.network != "none":
        read |= _NETWORK | {"alpha"}
    if section.estimator == "graph" or section.network == "graph":
        read.add("sparsifier")
    if section.sparsifier != "none":
        read.add("keep")
    # closed-form fits weigh nothing against each other; 0 leaves a part untrained
    return frozenset(read | {key for key in ("lambda1", "lambda2") if getattr(section, key) == 0.0})


def _paper_reads(section: NeuralSolverConfig) -> frozenset[str]:
    read = set(_COMMON | _NETWORK | {"training", "graph_layer"})
    if section.lambda1 > 0.0:
        read.add("lambda1_steps")
    if section.initialiser != "none":
        read.add("bottleneck")
    if section.graph_layer:
        read.add("sparsifier")
        if section.sparsifier != "none":
            read.add("keep")
    return frozenset(read)


def _build_estimator(
    config: RunConfig, model: ShardModel, shard: GraphShard, comm: Communicator, dtype: torch.dtype
) -> LearnedSolver:
    return build_learned_solver(config, shard, comm, dtype)


SOLVER_KINDS: dict[str, SolverKind] = {
    "estimator": SolverKind(
        _build_estimator,
        SolverTrainer,
        _estimator_reads,
        lambda section: section.sparsifier != "none" or section.network == "graph",
        estimator_bytes,
        lambda config, sizes, item: 0,
        backward=True,
        summary="parts fitted in closed form, and networks that correct Anderson's weights",
    ),
    "paper": SolverKind(
        build_paper_parts,
        PaperTrainer,
        _paper_reads,
        lambda section: section.graph_layer,
        paper_bytes,
        rollout_bytes,
        backward=False,
        summary="the IGNN-Solver paper's own: an MLP of the features as initialiser, and a graph "
        "network that gives alpha and beta",
    ),
}
"""The kinds of learned solver, by name; a new one is entered here."""
