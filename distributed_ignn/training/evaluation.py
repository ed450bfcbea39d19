"""Metrics of a model: at its equilibrium, as its best epoch was chosen, and where solves start."""

from __future__ import annotations

import torch

from distributed_ignn.config.solvers import SolveLimits
from distributed_ignn.models.node_model import NodeModel
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.solvers.base import Solution
from distributed_ignn.training.choosing import Chooser
from distributed_ignn.training.confirmation import SLACK, Confirmation, Finding
from distributed_ignn.training.learned_solver import LearnedSolver
from distributed_ignn.training.plans import SolvePlanner


class Evaluation:
    """Measures the weights that the model holds, without dropout; every rank calls it alike.

    Args:
        model: this rank's part.
        learned: the learned solver, if there is one.
        planner: plans the solves.
        confirmation: measures states, and solves tightly.
        chooser: knows the best epoch.
        limits: of an ordinary forward solve.
    """

    def __init__(
        self,
        model: NodeModel,
        learned: LearnedSolver | None,
        planner: SolvePlanner,
        confirmation: Confirmation,
        chooser: Chooser,
        limits: SolveLimits,
    ) -> None:
        self._model = model
        self._learned = learned
        self._planner = planner
        self._confirmation = confirmation
        self._chooser = chooser
        self._limits = limits

    def equilibrium(self) -> Solution:
        """Solve from what is kept, by the tolerance of an ordinary solve."""
        self._model.eval()
        return self._model.solve(self._planner.evaluate())

    @torch.no_grad()
    def at_equilibrium(self, splits: tuple[str, ...]) -> dict[str, float]:
        """Measure the metric per split at ``equilibrium``."""
        return self._confirmation.measure(self.equilibrium().image, splits)

    @torch.no_grad()
    def at_best(self, splits: tuple[str, ...]) -> tuple[Finding, Solution]:
        """Measure the metric per split, ``val`` among them, as that of the best was confirmed.

        The model holds the best weights.

        Returns:
            The metrics, whether they are those of the equilibrium, and the solve.
        """
        self._model.eval()
        best, (tolerance, most_steps) = self._chooser.best, self.best_limits
        solution = self._confirmation.solve(tolerance, most_steps)
        metrics = self._confirmation.measure(solution.image, splits)
        same = abs(metrics["val"] - best.val_metric) <= SLACK
        known = best.confirmed and best.tolerance is not None
        holds = known and same and solution.residual <= tolerance
        return Finding(metrics, holds, tolerance), solution

    @property
    def best_limits(self) -> tuple[float, int]:
        """Tolerance and evaluations of a solve that finds what the best epoch was chosen for."""
        tolerance = self._chooser.best.tolerance
        if tolerance is None:
            return self._limits.tolerance, self._limits.max_steps
        return tolerance, self._confirmation.max_steps

    @torch.no_grad()
    def at_zero(self, splits: tuple[str, ...]) -> dict[str, float] | None:
        """Measure at f(0) = phi(b): what the map knows without an equilibrium; None without one."""
        if not isinstance(self._model, ShardModel):
            return None
        self._model.eval()
        return self._confirmation.measure(self._model.at_zero(), splits)

    @torch.no_grad()
    def at_initialiser(self, splits: tuple[str, ...]) -> dict[str, float] | None:
        """Measure at h(b), where solves start; None without a trained initialiser."""
        model, learned = self._model, self._learned
        trained = learned is not None and learned.guess is not None and learned.ready
        if not trained or not isinstance(model, ShardModel):
            return None
        model.eval()
        injection = model.injection()
        cell = model.layer.cell(injection, model.channel_weights())
        return self._confirmation.measure(self._planner.first_guess(cell, injection), splits)
