"""A trained run as a fixed-point problem with a known answer.

Z* is found in float64, from the same weights, by Anderson to a relative residual of 1e-12 or as far
as it goes. Every method then works in the run's own number format and is compared with it. Where
nobody asks for distances, the run's own number format and 1e-4 will do.

Letters: O owned rows, D columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.implicit import Cell, SolvePlan
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.runs.predict import load_run
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import Solution
from distributed_ignn.training.trainer import Trainer

_TOLERANCE, _ROUGH = 1e-12, 1e-4
_MAX_STEPS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """The map of a trained run and its fixed point, on this rank's rows.

    Args:
        trainer: of the run, at its best epoch.
        injection: b [O, D] in the run's number format.
        target: Z* [O, D], float64 if it is exact.
        target_norm: ||Z*|| over all ranks.
        target_residual: relative residual that Z* was found to.
        metric: test metric of the readout at Z*.
    """

    trainer: Trainer
    injection: Tensor
    target: Tensor
    target_norm: float
    target_residual: float
    metric: float

    @property
    def comm(self) -> Communicator:
        return self.trainer.comm

    def cell(self) -> EquilibriumCell:
        """The map f, fresh."""
        model = self.trainer.implicit
        return model.layer.cell(self.injection, model.channel_weights())

    @torch.no_grad()
    def test_metric(self, state: Tensor) -> float:
        """Test metric of the readout at a state [O, D]; every rank calls it."""
        logits = self.trainer.model.read_out(state)
        return self.trainer.objective.metrics(logits, ("test",)).get("test", math.nan)

    @torch.no_grad()
    def agreement(self, state: Tensor) -> float:
        """Share of nodes predicted at a state [O, D] as at Z*; every rank calls it."""
        read_out, dtype = self.trainer.model.read_out, self.injection.dtype
        found, wanted = read_out(state), read_out(self.target.to(dtype))
        if self.trainer.shard.task == "multilabel":
            same = ((found > 0.0) == (wanted > 0.0)).all(dim=1)
        else:
            same = found.argmax(dim=1) == wanted.argmax(dim=1)
        total = self.comm.sum(same.sum().reshape(1).cpu())
        return int(total) / self.trainer.shard.num_nodes

    def distance(self, *states: Tensor) -> list[float]:
        """||Z - Z*|| / ||Z*|| of each state [O, D]; one reduction, every rank calls it."""
        squares = torch.stack([(state.double() - self.target).square().sum() for state in states])
        sums = self.comm.sum(squares.cpu()).tolist()
        return [math.sqrt(square) / self.target_norm for square in sums]


@torch.no_grad()
def load_problem(run: Path, comm: Communicator) -> Problem:
    """The problem of the run in a folder; every rank calls it.

    Args:
        run: output folder of a training run, whatever its method.
        comm: this rank's communicator.

    Raises:
        UserError: see ``load_run``.
    """
    return pose(load_run(run, comm))


@torch.no_grad()
def pose(trainer: Trainer, *, exact: bool = True) -> Problem:
    """The problem of a trainer's present weights; every rank calls it.

    Args:
        trainer: of a run.
        exact: whether its fixed point is for measuring distances.
    """
    trainer.model.eval()
    solution = _solve_exactly(trainer) if exact else _solve(trainer.implicit, _ROUGH)
    square = float(trainer.comm.sum(solution.image.square().sum().reshape(1).cpu()))
    injection = trainer.implicit.injection()
    logits = trainer.model.read_out(solution.image.to(injection.dtype))
    return Problem(
        trainer=trainer,
        injection=injection,
        target=solution.image,
        target_norm=math.sqrt(max(square, 1e-300)),
        target_residual=solution.residual,
        metric=trainer.objective.metrics(logits, ("test",)).get("test", math.nan),
    )


def _at_zero(cell: Cell, injection: Tensor) -> Tensor:
    return cell.form.activate(injection) if isinstance(cell, EquilibriumCell) else injection


def _solve_exactly(trainer: Trainer) -> Solution:
    """Z* of the same weights in float64."""
    config = trainer.config
    model = ShardModel(trainer.shard, trainer.comm, config.model, torch.float64, config.seed)
    model.load_state_dict(trainer.model.state_dict())
    model.eval()
    return _solve(model, _TOLERANCE)


def _solve(model: ShardModel, tolerance: float) -> Solution:
    plan = SolvePlan(Anderson(), _at_zero, tolerance, _MAX_STEPS, lambda solution: None)
    return model.solve(plan)
