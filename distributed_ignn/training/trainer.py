"""Trainer: builds model, learned solver and optimiser in order, and goes through the epochs.

One epoch: solver phase if the schedule says so, forward solve, loss, backward solve, one gradient
sum, step, constraint, local steps if there are any, validation. Whatever decides a branch is a
global number, so that every rank takes the same one. The trainer knows no file: what it must know
to go on it says as the states of its ``parts``, and whoever keeps them can put them back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.comm.traffic import Traffic
from distributed_ignn.config import RunConfig, decided
from distributed_ignn.config.training import Metric
from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.training.averaging import WeightAverage
from distributed_ignn.training.choosing import Chooser
from distributed_ignn.training.confirmation import Confirmation, Finding
from distributed_ignn.training.engines import start_engine
from distributed_ignn.training.epoch_record import EpochRecord
from distributed_ignn.training.evaluation import Evaluation
from distributed_ignn.training.learned.guard import guarded_phase
from distributed_ignn.training.local_plan import LocalPlan, local_plan
from distributed_ignn.training.local_steps import LocalSteps
from distributed_ignn.training.loose_tolerance import LooseTolerance
from distributed_ignn.training.losses.consistency import Consistency
from distributed_ignn.training.losses.local_loss import LocalLoss
from distributed_ignn.training.losses.objective import Objective
from distributed_ignn.training.losses.regularizer import Regularizer
from distributed_ignn.training.losses.step_loss import StepLoss
from distributed_ignn.training.model_weights import Best, Weights
from distributed_ignn.training.numbers import NumberGuard, NumbersError
from distributed_ignn.training.offload import require_effect
from distributed_ignn.training.plans import EVALUATE, TRAIN, SolvePlanner
from distributed_ignn.training.recorded import captures
from distributed_ignn.training.schedule import Schedule
from distributed_ignn.training.state import Count, Number, RandomState, State, Stateful, Values
from distributed_ignn.training.step_checks import StepChecks
from distributed_ignn.training.stopwatch import Stopwatch
from distributed_ignn.training.trainer_parts import (
    build_learned_solver,
    build_model,
    build_regularizer,
    build_solver_trainer,
)


class _Position(Values):
    epoch: Count
    val_metric: Number | None = None
    converged: bool = True
    # where it is not the one that the labels suggest
    metric: Metric | None = None


class Trainer:
    """Trains one model on one graph; every rank builds one and calls it in step.

    Args:
        config: the whole run; what it leaves to the graph is decided here.
        shard: this rank's part of the graph.
        comm: this rank's communicator.
        started: ``time.perf_counter()`` at the start of the run; now by default.

    Attributes:
        epoch: model steps done.
        val_metric: of the last validation; None before the first.
        converged: whether all solves of the last epoch reached their tolerance.
    """

    def __init__(
        self,
        config: RunConfig,
        shard: GraphShard,
        comm: Communicator,
        started: float | None = None,
    ) -> None:
        config = decided(config, shard.split_sizes[0], shard.num_classes, shard.num_features)
        self.config, self.comm = config, comm
        self.shard = shard.normalised(config.model.normalisation)
        self.epoch = 0
        self.val_metric: float | None = None
        self.converged = True
        self.stopwatch = Stopwatch(started)
        self.schedule = Schedule(config.schedule, config.train.epochs, active=config.learns_forward)
        train = config.train
        smoothing = float(train.label_smoothing)
        self.objective = Objective(shard, comm, train.loss, smoothing, train.metric)
        self.model = build_model(config, self.shard, comm, self.objective)
        self.weights = Weights(self.model)
        self.learned = build_learned_solver(config, self.model, self.shard, comm)
        self.planner = SolvePlanner(
            config, self.learned, comm.device, shard.num_nodes, captures(config, comm)
        )
        embedded = config.engine == "torch" and bool(self.model.sharded_names())
        require_effect(config, embedded)
        self.engine = start_engine(self.model, self.config, self.comm)
        self.solver_trainer = build_solver_trainer(
            config, self.learned, self.schedule, comm, self.shard
        )
        self._regularizer = build_regularizer(config, self.model, self.shard, comm)
        self.consistency = self._build_consistency()
        penalty = self._regularizer.penalty if self._regularizer else self.model.penalty
        self.loss = StepLoss(self.model, self.objective, penalty, self.consistency)
        self.local = self._build_local_steps()
        self.loose = LooseTolerance(train, shard.num_nodes if self.model.solves else 0)
        self.average = WeightAverage(self.model, config.train.ema, self.weights.sharded)
        self.confirmation = Confirmation(
            config, self.model, shard, comm, self.objective, self.planner
        )
        self.chooser = Chooser(self.weights, self.confirmation)
        self.evaluation = Evaluation(
            self.model, self.learned, self.planner, self.confirmation, self.chooser, config.forward
        )
        self.guard = NumberGuard(config, comm)

    @property
    def best(self) -> Best:
        """The epoch that validation has chosen so far."""
        return self.chooser.best

    @property
    def implicit(self) -> ShardModel:
        """The model, for those who look into its map.

        Raises:
            UserError: it is an explicit one, which has none.
        """
        if not isinstance(self.model, ShardModel):
            raise self._no_map()
        return self.model

    def _no_map(self) -> UserError:
        return UserError(
            f"model.kind = {self.config.model.kind} has no equilibrium to look into; use "
            "model.kind = implicit"
        )

    @property
    def regularizer(self) -> Regularizer:
        """The penalties on the map.

        Raises:
            UserError: the model is an explicit one, which has none.
        """
        if self._regularizer is None:
            raise self._no_map()
        return self._regularizer

    def _build_consistency(self) -> Consistency:
        multilabel = self.shard.task == "multilabel"
        return Consistency(self.config.train, self.shard.num_nodes, multilabel)

    @property
    def local_plan(self) -> LocalPlan:
        """Say what local steps an epoch begins with, ``auto`` resolved."""
        shard = self.shard
        return local_plan(self.config.train, shard.num_nodes, shard.split_sizes[0])

    def _build_local_steps(self) -> LocalSteps | None:
        plan = self.local_plan
        if plan.steps == 0:
            return None
        terms = self.objective, self.regularizer, self.consistency
        loss = LocalLoss(self.implicit, self.shard, self.config, *terms)
        return LocalSteps(plan, loss, self.engine, self.config.train, self.comm)

    def fit(
        self,
        on_epoch: Callable[[EpochRecord], None],
        on_fault: Callable[[NumbersError], None] | None = None,
        until: int | None = None,
    ) -> None:
        """Go through the remaining epochs, and confirm what then still waits for that.

        Args:
            on_epoch: told each record, on every rank.
            on_fault: told why an epoch came to nothing where the policy is to go back; it puts the
                trainer into an earlier state, on every rank. Without it such a run stops.
            until: the epoch after which to pause; None for none.

        Raises:
            UserError: the numbers are bad and there is no going on.
        """
        while not self.finished and (until is None or self.epoch < until):
            try:
                record = self.train_epoch()
            except NumbersError as fault:
                if on_fault is None:
                    raise UserError(str(fault)) from fault
                on_fault(fault)
                continue
            on_epoch(record)
        self.chooser.settle()

    @property
    def finished(self) -> bool:
        """Say whether all epochs are done, or validation has not improved for too long."""
        patience = self.config.train.patience
        out_of_patience = patience > 0 and self.chooser.stale >= patience
        return self.epoch >= self.config.train.epochs or out_of_patience

    def train_epoch(self) -> EpochRecord:
        """Take one model step, with the solver phase before it and the validation after it.

        Raises:
            UserError: the numbers are bad and the policy is to stop.
            NumbersError: they are, and the policy is to go back; the state is no good any more.
        """
        started, traffic = time.perf_counter(), self.comm.traffic.snapshot()
        self.comm.activity.epoch = self.epoch + 1
        self.planner.log.clear()
        phase = self._train_solver()
        self.planner.loose = self.loose.at(self.epoch)
        step = self._step_and_validate()
        loosened, self.planner.loose = self._loosened, 0.0
        return replace(self._record(started, traffic, phase, step), tolerance=loosened)

    @property
    def _loosened(self) -> float | None:
        """Return the tolerance of this epoch's solves where it is looser than their own."""
        own = min(self.config.forward.tolerance, self.config.adjoint.tolerance)
        return self.planner.loose if self.planner.loose > own else None

    def _train_solver(self) -> tuple[int, float | None, float]:
        """Train the solver if this epoch begins with that; return steps, loss and seconds."""
        if not self.schedule.phase_before(self.epoch):
            return 0, None, 0.0
        steps = self.schedule.solver_steps_before(self.epoch)
        with self.comm.activity.phase("training the solver"):
            loss, seconds = self.tune_solver(steps, backward=True)
        return steps, loss, seconds

    def tune_solver(self, steps: int = 0, backward: bool = False) -> tuple[float | None, float]:
        """Carry out a solver phase for the current weights; return its loss and seconds.

        Args:
            steps: gradient steps of the network, if there is one.
            backward: whether to fit the backward solve's estimator too, if there is one. That
                alone needs labels.
        """
        if self.solver_trainer is None or self.learned is None:
            return None, 0.0
        started = time.perf_counter()
        incoming = partial(self.loss.incoming, step=self.epoch) if backward else None
        phase = partial(self.solver_trainer.phase, self.implicit, self.planner, steps, incoming)
        loss = guarded_phase(self.solver_trainer, self.learned, phase, self.epoch)
        seconds = time.perf_counter() - started
        self.stopwatch.solver_training += seconds
        return loss, seconds

    def _step_and_validate(self) -> tuple[float, Finding | None, bool]:
        """Return loss, what validation found, and whether the step was left out for bad numbers."""
        step, loss, phase = self.epoch, float("nan"), self.comm.activity.phase
        checks = StepChecks(self.guard, self.model, self.planner, self.engine, step)
        try:
            with phase("training the model"):
                loss = self.train_step(checks)
            self.epoch = step + 1
            with phase("validating"):
                found = self._validate(checks)
        except NumbersError as fault:
            self.guard.skip(fault)
        else:
            self.guard.passed()
            self.converged = self.planner.log.all_converged
            return loss, found, False
        finally:
            checks.made.clear()
        taken, self.epoch = self.epoch > step, step + 1
        # what is kept for the next solves may be what is bad
        self.planner.forget()
        self.model.reset_links()
        return loss, None, not taken

    def train_step(self, checks: StepChecks) -> float:
        """Take one optimiser step; return the loss of all ranks before it.

        Raises:
            NumbersError: a solve diverges, or loss, gradients or weights are bad.
        """
        self.model.train()
        share = self._forward(checks)
        checks.solve(TRAIN)
        loss = self._sum(share)
        checks.loss(loss)
        self.loose.note(loss)
        self._backward_and_update(share, checks)
        checks.weights()
        self._take_local_steps(loss, checks)
        self.average.update()
        return loss

    def _forward(self, checks: StepChecks) -> Tensor:
        """Solve and read out; return this rank's share of the loss."""
        self.planner.products = self._frozen_by()
        with self.comm.activity.phase("forward solve"):
            return self.loss.share(self.epoch, self.planner, checks.made)

    def _frozen_by(self) -> Callable[[tuple[Tensor, ...]], None] | None:
        """Return who is told B_c Z* of this epoch: the local steps, if any are to come."""
        if self.local is None or not self.local.listen(self.epoch, self.chooser.stale):
            return None
        return self.local.freeze

    def _sum(self, share: Tensor) -> float:
        """Sum the shares of all ranks."""
        return float(self.comm.sum(share.detach().double().cpu().reshape(1)))

    def _backward_and_update(self, share: Tensor, checks: StepChecks) -> None:
        """Solve backward, sum the gradients, check them, step, and keep the constraint."""
        checks.made.clear()  # not kept in memory for the backward solve
        scale = self.guard.tally.lr_scale
        if self.local is not None:
            scale *= self.local.exact_lr_scale(self.epoch, self.chooser.stale)
        self.engine.scale_lr(scale)
        with self.comm.activity.phase("backward solve and step"):
            self.engine.step(share, checks.gradients)

    def _take_local_steps(self, loss: float, checks: StepChecks) -> None:
        """Step on with the neighbours' states of this epoch's equilibrium, if that is asked for."""
        if self.local is None:
            return
        with self.comm.activity.phase("local steps"):
            scale = self.guard.tally.lr_scale
            self.local.take(self.epoch, self.chooser.stale, loss, scale)
        checks.weights()

    def _validate(self, checks: StepChecks) -> Finding | None:
        """Validate when it is time, and keep the best weights; return what was found."""
        last = self.epoch == self.config.train.epochs
        if self.epoch % self.config.train.eval_every and not last:
            return None
        with self.average.in_use():
            metrics, residual = self._validation(checks)
            converged = residual <= self.planner.tolerance(self.config.forward)
            # patience counts validations since the best one, which is known once it is confirmed
            rough = self._loosened is not None and not self.config.train.patience
            found = self.chooser.consider(
                self.epoch, metrics, converged=converged, last=last, rough=rough
            )
        self.val_metric = found.metrics["val"]
        return found

    def _validation(self, checks: StepChecks) -> tuple[dict[str, float], float]:
        """Solve and measure; the state is let go of, as far as it is no warm start.

        Returns:
            The metrics, and the relative residual of the state.
        """
        solution = self.evaluation.equilibrium()
        state, residual = solution.image, solution.residual
        del solution
        checks.solve(EVALUATE)
        return self.confirmation.measure(state, ("train", "val")), residual

    def _record(
        self,
        started: float,
        traffic: Traffic,
        phase: tuple[int, float | None, float],
        step: tuple[float, Finding | None, bool],
    ) -> EpochRecord:
        """Say what the epoch came to; one reduction."""
        (solver_steps, solver_loss, solver_seconds), (loss, found, skipped) = phase, step
        metrics = found.metrics if found is not None else {}
        sent = self.comm.traffic.since(traffic)
        totals = self.comm.sum(
            torch.tensor([sent.exchange_bytes + sent.reduction_bytes], dtype=torch.int64)
        )
        return EpochRecord(
            epoch=self.epoch,
            loss=loss,
            train_metric=metrics.get("train"),
            val_metric=metrics.get("val"),
            seconds=time.perf_counter() - started,
            bytes_sent=int(totals[0]),
            exchanges=sent.exchanges,
            solver_steps=solver_steps,
            solver_loss=solver_loss,
            solver_seconds=solver_seconds,
            best_epoch=self.best.epoch or None,
            best_val=self.best.val_metric if self.best.epoch else None,
            skipped=skipped,
            rollbacks=self.guard.tally.rollbacks,
            solves=self.model.solves,
            **self.planner.log.figures(found.holds if found is not None else None),
            **(self.local.figures() if self.local is not None else {}),
        )

    def tighten(self, factor: float) -> None:
        """Multiply the bound on the map's weights by ``factor``, and bring them inside it."""
        if factor < 1.0:
            self.model.tighten(factor)

    def parts(self) -> dict[str, Stateful]:
        """Return every part that has state, by name, in the order in which states are put back."""
        parts: dict[str, Stateful] = {
            "model": self.weights,
            "best": self.best,
            "candidate": self.chooser.candidate,
            "average": self.average,
            "optimizer": self.engine,
            "warm": self.planner,
            "rng": RandomState(),
            "numbers": self.guard,
            "seconds": self.stopwatch,
            "epochs": self,
        }
        if self.loose.loosest > 0.0:
            parts["loose"] = self.loose
        if self.solver_trainer is not None:
            parts["solver"] = self.solver_trainer
        if self.local is not None:
            parts["local"] = self.local
        return parts

    def state(self) -> State:
        """See ``Stateful``: how far the trainer itself has come."""
        position = _Position(
            epoch=self.epoch,
            val_metric=self.val_metric,
            converged=self.converged,
            metric=self.objective.unusual_metric,
        )
        return State(position.model_dump(exclude_defaults=True))

    def load_state(self, state: State) -> None:
        """See ``Stateful``.

        Raises:
            UserError: the epochs before were chosen by another metric.
        """
        position, own = _Position.read(state), self.objective.unusual_metric
        if position.metric != own:
            raise UserError(
                f"the checkpoint was written with train.metric = {position.metric or 'auto'}, not "
                f"{own or 'auto'}, so its best epoch cannot be compared; resume with that"
            )
        self.epoch, self.val_metric = position.epoch, position.val_metric
        self.converged = position.converged
