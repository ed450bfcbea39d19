"""What a trainer is made of, from the settings of a run: model, learned solver, losses."""

from __future__ import annotations

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.kinds import KINDS, Site
from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.propagation.operators import ChannelOperator
from distributed_ignn.propagation.propagate import PropagationOptions, choose_codec
from distributed_ignn.propagation.sparsify import sparsify
from distributed_ignn.training.learned.phases import SolverTrainer
from distributed_ignn.training.learned.solver_kinds import SOLVER_KINDS
from distributed_ignn.training.learned_solver import LearnedSolver
from distributed_ignn.training.losses.objective import Objective
from distributed_ignn.training.losses.regularizer import Regularizer
from distributed_ignn.training.schedule import Schedule


def build_model(
    config: RunConfig, shard: GraphShard, comm: Communicator, objective: Objective
) -> NodeModel:
    """The model that ``model.kind`` names, on this rank's part; every rank calls it.

    Args:
        config: of the run.
        shard: normalised as the model wants it.
        comm: this rank's communicator.
        objective: knows how often each label is that of a training node.
    """
    dtype = _dtype(config)
    if config.model.kind in KINDS:
        site = Site(shard, comm, config.model, config.explicit, dtype, config.seed)
        return KINDS[config.model.kind](site)
    options = PropagationOptions(
        config.train.kernel, choose_codec(config.comm.halo, comm), config.comm.stale
    )
    thinned = _thinned(config, shard, comm)
    model = ShardModel(shard, comm, config.model, dtype, config.seed, thinned, options)
    if config.train.prior_bias:
        with torch.no_grad():
            model.head.bias.copy_(objective.prior_logits())
    return model


def _thinned(config: RunConfig, shard: GraphShard, comm: Communicator) -> ChannelOperator | None:
    """A_s, where a learned solver reads it."""
    solver = config.solver
    if not (config.learns_forward and SOLVER_KINDS[solver.kind].thins(solver)):
        return None
    return sparsify(shard, comm, solver.sparsifier, solver.keep, _dtype(config), config.seed)


def build_learned_solver(
    config: RunConfig, model: NodeModel, shard: GraphShard, comm: Communicator
) -> LearnedSolver | None:
    """The learned solver of the model's solves, untrained; None where the run has none."""
    if not (config.learns_forward and isinstance(model, ShardModel)):
        return None
    kind = SOLVER_KINDS[config.solver.kind]
    return kind.build(config, model, shard, comm, _dtype(config))


def build_solver_trainer(
    config: RunConfig,
    learned: LearnedSolver | None,
    schedule: Schedule,
    comm: Communicator,
    shard: GraphShard,
) -> SolverTrainer | None:
    """Who trains the learned solver, if there is one."""
    if learned is None:
        return None
    kind = SOLVER_KINDS[config.solver.kind]
    return kind.trainer(learned, config.solver, schedule, comm, shard.owned_nodes)


def build_regularizer(
    config: RunConfig, model: NodeModel, shard: GraphShard, comm: Communicator
) -> Regularizer | None:
    """The penalties on the map, where there is one."""
    if not isinstance(model, ShardModel):
        return None
    return Regularizer(model, config.train, shard, comm, config.seed)


def _dtype(config: RunConfig) -> torch.dtype:
    return torch.float64 if config.train.dtype == "float64" else torch.float32
