"""Training of the learned solver with the model frozen (IGNN-Solver, section 4.2).

A phase finds Z*, fits initialiser and estimator to it in closed form (``fit.py``), and then
takes gradient steps for the network that corrects alpha, where there is one, on

    L = lambda1 sum_k w_k log(||Z_k - Z*|| / ||Z*||)
        + lambda3 sum_k log(||sum_i alpha_i H_i|| / ||H_k||)

The paper's norms appear as logarithms: plain norms are dominated by the first step. w_k grows with
k; lambda1 rises linearly from 0 and lambda3 falls linearly to 0 over all network steps of the run.

Each step's weights are trained on the point they produce, whose history is held constant: the
derivative of log ||y - Z*|| with y = sum_i alpha_i (Z_i + beta H_i) needs only the inner products
<Z_i, y - Z*> and <H_i, y - Z*>. So nothing is propagated back through a sparse product, and a
network step costs K evaluations of the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import NeuralSolverConfig
from distributed_ignn.errors import UserError
from distributed_ignn.models.implicit import Cell
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.solvers.base import AnySizedSolver, Outcome, Solution
from distributed_ignn.solvers.blocks import square_sum
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.solve import solve
from distributed_ignn.training.adam import Adam
from distributed_ignn.training.engines.gradients import sum_gradients
from distributed_ignn.training.learned.fit import FitSample, SolverFit
from distributed_ignn.training.learned.rollout import Rollout
from distributed_ignn.training.learned_solver import LearnedSolver
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.plans import EVALUATE, SolvePlanner
from distributed_ignn.training.schedule import Schedule
from distributed_ignn.training.state import Count, State, Values


class _Done(Values):
    steps: Count = 0
    ready: bool = False


_ESTIMATOR_NODES = 1000  # each brings D equations for a dozen coefficients

Incoming = Callable[[Tensor], Tensor]
"""g = dL/dZ* [O, D] of the training loss at a state [O, D]."""


class SolverTrainer:
    """Trains the learned solver, one phase at a time.

    Args:
        learned: what is trained.
        config: the solver section.
        schedule: gives the position within all network steps of the run.
        comm: this rank's communicator.
        nodes: global ids of the owned nodes [O].
    """

    def __init__(
        self,
        learned: LearnedSolver,
        config: NeuralSolverConfig,
        schedule: Schedule,
        comm: Communicator,
        nodes: Tensor,
    ) -> None:
        self._learned = learned
        self._config = config
        self._schedule = schedule
        self._comm = comm
        nodes = nodes.to(comm.device)  # the rows they choose lie there
        many = FitSample.draw(nodes, learned.num_nodes, config.fit_nodes)
        limit = min(config.fit_nodes, _ESTIMATOR_NODES)
        few = FitSample.draw(nodes, learned.num_nodes, limit)
        self._fit = SolverFit(
            comm, many, few, learned.memory, learned.regularization, learned.storage
        )
        trained = self.trained_parameters()
        self.optimizer = Adam(trained, lr=config.lr) if trained else None
        self.steps_done = 0

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """Return what gradient steps move; the rest is fitted in closed form."""
        predictor = self._learned.predictor
        return [] if predictor is None else list(predictor.parameters())

    def phase(
        self, model: ShardModel, planner: SolvePlanner, steps: int, incoming: Incoming | None
    ) -> float | None:
        """Fit to one freshly solved Z*, then ``steps`` network steps.

        Args:
            model: frozen.
            planner: its kept states are where the solves for Z* and v* start.
            steps: of the network, if there is one.
            incoming: gives the right-hand side of the backward solve; None leaves the backward
                solve's estimator as it is.

        Returns:
            log(||Z - Z*|| / ||Z*||) where the fitted steps lead to, or the network's last loss;
            None where nothing was fitted.

        Raises:
            NumbersError: a solve diverges, or the network's gradient is not finite (on every rank).
        """
        target, loss = self._phase_forward(model, planner, steps)
        if self._learned.adjoint is not None and incoming is not None:
            self._fit_adjoint(model, self._learned.adjoint, target, incoming)
        return loss

    def _phase_forward(
        self, model: ShardModel, planner: SolvePlanner, steps: int
    ) -> tuple[Tensor, float | None]:
        """Do everything that belongs to the forward solve; return Z* and the loss."""
        with torch.no_grad():
            injection = model.injection()
            cell = model.layer.cell(injection, model.channel_weights())
            target = self._target(cell, injection, planner)
            start, loss = self._fit_forward(cell, injection, target)
        self._learned.ready = True
        for _ in range(steps if self._learned.predictor is not None else 0):
            loss = self._step(cell, start, target)
        return target, loss

    def _fit_forward(
        self, cell: EquilibriumCell, injection: Tensor, target: Tensor
    ) -> tuple[Tensor, float | None]:
        """Fit, and return the starting point of later solves and how far the fitted steps lead."""
        learned, activate = self._learned, cell.form.activate
        start = activate(injection)
        if learned.initialiser is not None:
            if self._config.lambda2 > 0.0:
                self._fit.initialiser(learned.initialiser, cell, injection, target)
            start = learned.initialiser(cell, injection, activate)
        if learned.estimator is None or self._config.lambda1 == 0.0:
            return start, None
        point = self._fit.estimator(learned.estimator, cell, start, target)
        error, norm = self._sum(square_sum(point - target), square_sum(target)).tolist()
        return start, 0.5 * math.log(max(error, 1e-300) / max(norm, 1e-300))

    def _fit_adjoint(
        self,
        model: ShardModel,
        beta: ErrorEstimator,
        target: Tensor,
        incoming: Incoming,
    ) -> None:
        """Fit the backward solve's estimator to the v of the current loss."""
        cell = model.layer.adjoint_cell(target, model.channel_weights(), incoming(target))
        with torch.no_grad():
            solver = self._learned.adjoint_solver(self._config.target_tolerance)
            first = [self._learned.adjoint_start(cell, cell.start())]
            found = self._solve(cell, first.pop(), solver).image
            self._fit.estimator(beta, cell, torch.zeros_like(found), found)

    def _target(self, cell: EquilibriumCell, injection: Tensor, planner: SolvePlanner) -> Tensor:
        """Find Z* to a tight tolerance, from the last validation's state if it is kept."""
        planner.forget_unused()
        solver = self.target_solver()
        if EVALUATE in planner.states:
            return self._solve(cell, planner.states[EVALUATE], solver).image
        return self._solve(cell, planner.first_guess(cell, injection), solver).image

    def target_solver(self) -> AnySizedSolver:
        """Return the method that finds Z*."""
        return self._learned.solver(self._config.target_tolerance)

    def _solve(self, cell: Cell, start: Tensor, solver: AnySizedSolver) -> Solution:
        held = [start]
        del start  # the solve alone holds it
        found = solve(
            cell,
            held.pop(),
            solver,
            self._comm.sum,
            tolerance=self._config.target_tolerance,
            max_steps=self._config.target_max_steps,
        )
        if found.outcome is Outcome.DIVERGED:
            raise NumbersError("the solve that it learns from diverges")
        return found

    def state(self) -> State:
        """See ``Stateful``: weights of all parts and Adam's moments, as ``kind|part.name``."""
        named = self._learned.named_parameters()
        tensors = {f"weight|{name}": parameter.detach() for name, parameter in named.items()}
        for name, parameter in named.items():
            moments = {} if self.optimizer is None else self.optimizer.state.get(parameter, {})
            for key, value in moments.items():
                tensors[f"{key}|{name}"] = value
        done = _Done(steps=self.steps_done, ready=self._learned.ready)
        return State(done.model_dump(), tensors)

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """See ``Stateful``.

        Raises:
            UserError: the tensors belong to a solver of another shape.
        """
        done = _Done.read(state)
        self.steps_done, self._learned.ready = done.steps, done.ready
        named = self._learned.named_parameters()
        if self.optimizer is not None:
            self.optimizer.state.clear()
        for key, value in state.common.items():
            kind, name = key.split("|", 1)
            if name not in named:
                raise UserError(
                    f"the checkpoint belongs to another learned solver (it has {name}); resume "
                    "with the solver settings it was written with"
                )
            parameter = named[name]
            if kind == "weight" and value.shape != parameter.shape:
                raise UserError(
                    f"the checkpoint belongs to a learned solver of another shape ({name} is "
                    f"{list(value.shape)}, not {list(parameter.shape)}); resume with the solver "
                    "settings it was written with"
                )
            if kind == "weight":
                parameter.copy_(value)
            elif self.optimizer is not None:
                device = value.device if kind == "step" else parameter.device
                self.optimizer.state[parameter][kind] = value.to(device)

    def _step(self, cell: EquilibriumCell, start: Tensor, target: Tensor) -> float:
        """Take one gradient step of the network along a solve from ``start``; return the loss."""
        if self.optimizer is None or self._learned.predictor is None:
            raise ValueError("there is no network to train")
        progress = self._schedule.solver_progress(self.steps_done)
        (square,) = self._sum(square_sum(target)).tolist()
        target_norm = math.sqrt(max(square, 1e-300))
        self.optimizer.zero_grad()
        rollout = Rollout(self._learned, self._config, self._comm, target, target_norm)
        loss, value = rollout.loss(cell, start, progress)
        if loss.requires_grad:
            # the loss is the same on every rank: each differentiates its share
            (loss / self._comm.world_size).backward()
        if not sum_gradients(self.trained_parameters(), self._comm):
            raise NumbersError("the gradient of its network is not finite")
        self.optimizer.step()
        self.steps_done += 1
        return value

    def _sum(self, *values: Tensor) -> Tensor:
        return self._comm.sum(torch.stack(list(values)).double().cpu())
