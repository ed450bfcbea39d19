"""Trainer: builds model, learned solver and optimisers in order, and runs the epochs.

One epoch: solver phase if the schedule says so, forward solve, loss, backward solve, one gradient
sum, step, constraint, validation. Whatever decides a branch is a global number, so that every rank
takes the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.propagation.propagate import PropagationOptions, choose_codec
from distributed_ignn.propagation.sparsify import sparsify
from distributed_ignn.training.averaging import WeightAverage
from distributed_ignn.training.engines.torch import Engine, TorchEngine
from distributed_ignn.training.epoch_record import EpochRecord
from distributed_ignn.training.learned.guard import guarded_phase
from distributed_ignn.training.learned.phases import SolverTrainer
from distributed_ignn.training.learned_solver import build_learned_solver
from distributed_ignn.training.losses.consistency import Consistency
from distributed_ignn.training.losses.objective import Objective
from distributed_ignn.training.losses.regularizer import Regularizer
from distributed_ignn.training.numbers import NumberGuard, NumbersError
from distributed_ignn.training.plans import ADJOINT, EVALUATE, TRAIN, SolvePlanner
from distributed_ignn.training.schedule import Schedule
from distributed_ignn.training.suspects import step_tensors

TensorDict = dict[str, Tensor]


@dataclass(slots=True)
class Best:
    """The epoch that validation has chosen so far, and its weights."""

    epoch: int = 0
    val_metric: float = -1.0
    weights: TensorDict | None = None


class Trainer:
    """Trains one model on one graph; every rank builds one and calls it in step.

    Args:
        config: the whole run.
        shard: this rank's part of the graph.
        comm: this rank's communicator.
        started: ``time.perf_counter()`` at the start of the run; now by default.
    """

    def __init__(
        self,
        config: RunConfig,
        shard: GraphShard,
        comm: Communicator,
        started: float | None = None,
    ) -> None:
        self._started = time.perf_counter() if started is None else started
        self.seconds_before = 0.0
        self.config = config
        self.shard = shard
        self.comm = comm
        dtype = torch.float64 if config.train.dtype == "float64" else torch.float32
        neural = config.forward.method == "neural"
        self.schedule = Schedule(config.schedule, config.train.epochs, active=neural)
        sparsified = None
        solver = config.solver
        if neural and (solver.sparsifier != "none" or solver.network == "graph"):
            sparsified = sparsify(shard, comm, solver.sparsifier, solver.keep, dtype, config.seed)
        codec = choose_codec(config.comm.halo, comm)
        options = PropagationOptions(config.train.kernel, codec, config.comm.stale)
        self.model = ShardModel(shard, comm, config.model, dtype, config.seed, sparsified, options)
        self.learned = build_learned_solver(config, shard, comm, dtype) if neural else None
        self.planner = SolvePlanner(config, self.learned)
        self.engine = self._build_engine()
        self.solver_trainer = self._build_solver_trainer()
        train = config.train
        self.objective = Objective(shard, comm, train.loss, train.label_smoothing)
        self.regularizer = Regularizer(self.model, train, shard, comm, config.seed)
        self.consistency = Consistency(train, shard.num_nodes, shard.task == "multilabel")
        self.average = WeightAverage(self.model, train.ema)
        self.guard = NumberGuard(config, comm)
        self._step_tensors: TensorDict = {}
        self.epoch = 0
        self.best = Best()
        self.seconds_solver_training = 0.0
        self.stale_validations = 0
        self.val_metric: float | None = None  # of the last validation

    def _build_engine(self) -> Engine:
        if self.config.engine == "torch":
            return TorchEngine(self.model, self.config.train, self.comm)
        from distributed_ignn.training.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(self.model, self.config, self.comm)

    def _build_solver_trainer(self) -> SolverTrainer | None:
        if self.learned is None:
            return None
        return SolverTrainer(
            self.learned, self.config.solver, self.schedule, self.comm, self.shard.owned_nodes
        )

    def fit(
        self,
        on_epoch: Callable[[EpochRecord], None],
        on_fault: Callable[[NumbersError], None] | None = None,
    ) -> None:
        """Run the remaining epochs.

        Args:
            on_epoch: told each record, on every rank.
            on_fault: told why an epoch came to nothing where the policy is to go back; it puts the
                trainer into an earlier state, on every rank. Without it such a run stops.

        Raises:
            UserError: the numbers are bad and there is no going on.
        """
        while not self.finished:
            try:
                record = self.train_epoch()
            except NumbersError as fault:
                if on_fault is None:
                    raise UserError(str(fault)) from fault
                on_fault(fault)
                continue
            on_epoch(record)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or validation has not improved for too long."""
        patience = self.config.train.patience
        out_of_patience = patience > 0 and self.stale_validations >= patience
        return self.epoch >= self.config.train.epochs or out_of_patience

    @property
    def seconds_total(self) -> float:
        """Since the start of the run, with the attempts before it that led to this state."""
        return self.seconds_before + time.perf_counter() - self._started

    def train_epoch(self) -> EpochRecord:
        """One model step, with the solver phase before it and the validation after it.

        Raises:
            UserError: the numbers are bad and the policy is to stop.
            NumbersError: they are, and the policy is to go back; the state is no good any more.
        """
        started, traffic = time.perf_counter(), self.comm.traffic.snapshot()
        self.comm.activity.epoch = self.epoch + 1
        self.planner.log.clear()
        solver_steps, solver_loss, solver_seconds = self._train_solver()
        loss, metrics, skipped = self._step_and_validate()
        sent = self.comm.traffic.since(traffic)
        totals = self.comm.sum(
            torch.tensor([sent.exchange_bytes + sent.reduction_bytes], dtype=torch.int64)
        )
        log = self.planner.log
        return EpochRecord(
            epoch=self.epoch,
            loss=loss,
            train_metric=metrics.get("train"),
            val_metric=metrics.get("val"),
            seconds=time.perf_counter() - started,
            evaluations_forward=log.steps(TRAIN),
            evaluations_adjoint=log.steps(ADJOINT),
            evaluations_validation=log.steps(EVALUATE),
            residual=log.residual(EVALUATE if metrics else TRAIN),
            residual_adjoint=log.residual(ADJOINT),
            bytes_sent=int(totals[0]),
            exchanges=sent.exchanges,
            solver_steps=solver_steps,
            solver_loss=solver_loss,
            solver_seconds=solver_seconds,
            converged=log.converged(EVALUATE),
            converged_forward=log.converged(TRAIN),
            converged_adjoint=log.converged(ADJOINT),
            skipped=skipped,
            rollbacks=self.guard.state.rollbacks,
        )

    def _step_and_validate(self) -> tuple[float, dict[str, float], bool]:
        """Loss, metrics, and whether the step was left out because its numbers were bad."""
        step, loss, phase = self.epoch, float("nan"), self.comm.activity.phase
        try:
            with phase("training the model"):
                loss = self._train_model()
            self.epoch = step + 1
            with phase("validating"):
                metrics = self._validate()
        except NumbersError as fault:
            self.guard.skip(fault)
        else:
            self.guard.passed()
            return loss, metrics, False
        finally:
            self._step_tensors.clear()
        taken, self.epoch = self.epoch > step, step + 1
        # what is kept for the next solves may be what is bad
        self.planner.states.clear()
        self.model.propagation.reset_links()
        return loss, {}, not taken

    def _train_solver(self) -> tuple[int, float | None, float]:
        if not self.schedule.phase_before(self.epoch):
            return 0, None, 0.0
        steps = self.schedule.solver_steps_before(self.epoch)
        with self.comm.activity.phase("training the solver"):
            loss, seconds = self.tune_solver(steps, backward=True)
        return steps, loss, seconds

    def tune_solver(self, steps: int = 0, backward: bool = False) -> tuple[float | None, float]:
        """A solver phase for the current weights; its loss and seconds.

        Args:
            steps: gradient steps of the network, if there is one.
            backward: whether to fit the backward solve's estimator too, if there is one. That
                alone needs labels.
        """
        if self.solver_trainer is None or self.learned is None:
            return None, 0.0
        started = time.perf_counter()
        incoming = self._incoming if backward else None
        phase = partial(self.solver_trainer.phase, self.model, self.planner, steps, incoming)
        loss = guarded_phase(self.solver_trainer, self.learned, phase, self.epoch)
        seconds = time.perf_counter() - started
        self.seconds_solver_training += seconds
        return loss, seconds

    def _incoming(self, state: Tensor) -> Tensor:
        """g = dL/dZ* [O, D] of this epoch's loss at a state; the backward solve's right side."""
        point = state.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.model.read_out(point, self.epoch, self.objective.train_rows)
            self.objective.row_loss(logits).backward(inputs=[point])
        if point.grad is None:
            raise RuntimeError("the loss does not depend on the state")
        return point.grad

    def _train_model(self) -> float:
        """Forward, backward, step; the global loss before the step."""
        self.model.train()
        with self.comm.activity.phase("forward solve"):
            share = self._loss_share()
        self._check_solve(TRAIN, "forward")
        loss = float(self.comm.sum(share.detach().double().cpu().reshape(1)))
        self.guard.check_loss(loss, self.epoch + 1, self._suspects)
        self._step_tensors.clear()  # not kept in memory for the backward solve
        with self.comm.activity.phase("backward solve and step"):
            self.engine.step(share, self._check_gradients)
        sharded = self.model.sharded_names()
        replicated = [(k, p) for k, p in self.model.named_parameters() if k not in sharded]
        self.guard.check_weights(self.epoch + 1, replicated)
        self.average.update()
        return loss

    def _check_solve(self, purpose: str, name: str, epoch: int | None = None) -> None:
        """Raise NumbersError where a solve of this epoch has diverged."""
        diverged = self.planner.log.diverged.get(purpose)
        self.guard.check_solve(name, epoch or self.epoch + 1, diverged, self._suspects)

    def _check_gradients(self, usable: bool) -> None:
        """Between the backward pass and the update."""
        self._check_solve(ADJOINT, "backward")
        self.guard.check_gradients(usable, self.epoch + 1, self._suspects)

    def _suspects(self) -> Sequence[tuple[str, Tensor]]:
        """Where bad numbers may come from, causes first; every rank calls it."""
        return step_tensors(
            self.model,
            self.planner,
            self.epoch if self.model.training else None,
            self._step_tensors,
            self.engine.gradients(),
        )

    def _loss_share(self) -> Tensor:
        """This rank's share of the loss of a step, mean over its dropout masks."""
        if not self.consistency.active:
            return self._row_loss(self.epoch)
        losses, probabilities = [], []
        for draw in self.consistency.draws(self.epoch):
            state = self.model.equilibrium(draw, self.planner.train(), self.planner.adjoint())
            logits = self.model.read_out(state, draw)
            self._step_tensors |= {"Z*": state.detach(), "logits": logits.detach()}
            losses.append(self.objective.loss(logits) + self.regularizer.penalty(state, draw))
            probabilities.append(self.objective.probabilities(logits))
        return torch.stack(losses).mean() + self.consistency.loss(probabilities, self.epoch)

    def _row_loss(self, draw: int) -> Tensor:
        """The loss where only training nodes enter: no other row is read out."""
        state = self.model.equilibrium(draw, self.planner.train(), self.planner.adjoint())
        logits = self.model.read_out(state, draw, self.objective.train_rows)
        self._step_tensors = {"Z*": state.detach(), "logits": logits.detach()}
        return self.objective.row_loss(logits) + self.regularizer.penalty(state, draw)

    def _validate(self) -> dict[str, float]:
        """Training and validation metric, when this epoch is one for it; keeps the best weights."""
        last = self.epoch == self.config.train.epochs
        if self.epoch % self.config.train.eval_every and not last:
            return {}
        with self.average.in_use():
            metrics = self.evaluate(("train", "val"))
            self._check_solve(EVALUATE, "validation", self.epoch)
            self.val_metric = metrics["val"]
            if metrics["val"] > self.best.val_metric:
                self.best = Best(self.epoch, metrics["val"], self.weights())
                self.stale_validations = 0
            else:
                self.stale_validations += 1
        return metrics

    @torch.no_grad()
    def evaluate(self, splits: tuple[str, ...]) -> dict[str, float]:
        """Metric per split at the equilibrium of the current weights."""
        self.model.eval()
        solution = self.model.solve(self.planner.evaluate())
        return self._metrics(solution.image, splits)

    def _metrics(self, state: Tensor, splits: tuple[str, ...]) -> dict[str, float]:
        """Metric per split of a state [O, D]; only the nodes of the splits are read out."""
        return self.objective.metrics_of(lambda rows: self.model.read_out(state, rows=rows), splits)

    @torch.no_grad()
    def evaluate_at_zero(self, splits: tuple[str, ...]) -> dict[str, float]:
        """Metric per split at f(0) = phi(b): what the model knows without an equilibrium."""
        self.model.eval()
        return self._metrics(self.model.at_zero(), splits)

    @torch.no_grad()
    def evaluate_at_initialiser(self, splits: tuple[str, ...]) -> dict[str, float] | None:
        """Metric per split at h(b), where solves start; None without a trained initialiser."""
        learned = self.learned
        if learned is None or learned.initialiser is None or not learned.ready:
            return None
        self.model.eval()
        injection = self.model.injection()
        cell = self.model.layer.cell(injection, self.model.channel_weights())
        start = self.planner.first_guess(cell, injection)
        return self._metrics(start, splits)

    def weights(self) -> TensorDict:
        """A copy of the model's, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}

    def use_best_weights(self) -> None:
        """Put the weights of the epoch that validation chose into the model."""
        if self.best.weights is not None:
            self.model.load_state_dict(self.best.weights)
