"""Seconds of a training epoch, stage by stage, against epochs with Anderson and with Picard.

All methods train the same model on the same shards from the same seed. Each first runs the warm-up
that the schedule asks for and the epoch with the first solver phase; after that, all of them run
one epoch in turn, round by round. What is compared is an epoch without a solver phase; the phase is
shown by itself, and spread over the epochs that it serves. Training starts most solves warm, so a
solve that starts anew is measured too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.interleaving import Figure, Report, compare, interleave
from distributed_ignn.lab.benchmarks.stage_clock import STAGES, StageClock, watch
from distributed_ignn.lab.benchmarks.waiting import Seconds, clock_figures, clocked
from distributed_ignn.propagation.propagate import choose_codec
from distributed_ignn.runs.memory.machine import peak
from distributed_ignn.solvers.base import Solution
from distributed_ignn.training.epoch_record import EpochRecord
from distributed_ignn.training.trainer import Trainer

CLASSICAL = ("anderson", "picard")
EPOCH = "epoch"
SPREAD = "with the solver phase spread"
SOLVE = "solve from f(0) or the initialiser"
SENT = "sent"
_COUNTED = {
    "evaluations_forward": ("forward", "evaluations"),
    "evaluations_adjoint": ("adjoint", "evaluations"),
    "evaluations_validation": ("validation", "evaluations"),
    "evaluations_confirmation": ("confirmation", "evaluations"),
    "bytes_sent": ("bytes", SENT),
}


@dataclass(slots=True, eq=False)
class _Course:
    """One method's training, and what its measured epochs took.

    Args:
        trainer: of the method.
        clock: switched by the trainer's parts.
        phase_seconds: of the last solver phase.
        stages: per measured epoch, seconds by stage, mean over ranks.
        seconds: per measured epoch, of the slowest rank.
        waits: per measured epoch, by the communicator's clock.
        records: of the measured epochs.
    """

    trainer: Trainer
    clock: StageClock
    phase_seconds: float = 0.0
    stages: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    waits: list[Seconds] = field(default_factory=list)
    records: list[EpochRecord] = field(default_factory=list)

    def warm_up(self) -> None:
        """One epoch that only counts for its solver phase."""
        record = self.trainer.train_epoch()
        if record.solver_seconds:
            self.phase_seconds = record.solver_seconds

    def measure(self, comm: Communicator) -> None:
        """One epoch; every rank starts it together."""
        self.waits.append(clocked(comm, self._epoch))
        own = torch.tensor(list(self.clock.seconds.values()), dtype=torch.float64)
        self.seconds.append(float(comm.max(own.sum().reshape(1))))
        mean = (comm.sum(own) / comm.world_size).tolist()
        self.stages.append(dict(zip(STAGES, mean, strict=True)))

    def _epoch(self) -> None:
        self.clock.restart()
        record = self.trainer.train_epoch()
        self.clock.switch(STAGES[0])
        self.records.append(record)


def run(workload: Workload) -> Report:
    """Measure on all ranks of the job; every rank calls it."""
    chosen = methods_of(workload.config, workload.methods)
    courses = {name: _start(workload, config) for name, config in chosen.items()}
    _train(workload, courses)
    baseline = next(name for name in (*CLASSICAL, *courses) if name in courses)
    figures = _totals(courses, baseline) + _solves(workload, courses, baseline)
    for name, course in courses.items():
        figures += _stages(name, course)
    comm = workload.comm
    settings = {
        **workload.settings(),
        "halo": choose_codec(workload.config.comm.halo, comm),
        "stale": workload.config.comm.stale,
        "kernel": workload.config.train.kernel,
        "tolerance": workload.config.forward.tolerance,
        "solver_phase_every": workload.config.schedule.model_steps,
        # of all methods together: measure one alone for its own
        "peak_memory_bytes": int(comm.max(torch.tensor([peak(comm.device)]))),
    }
    return Report("epoch", settings, figures)


def methods_of(config: RunConfig, wanted: Sequence[str] = ()) -> dict[str, RunConfig]:
    """The settings' own method, and Anderson and Picard in both directions.

    Args:
        config: the settings.
        wanted: names of methods; of all if there are none.

    Raises:
        UserError: one is none of these.
    """
    own: str = config.forward.method
    found = {own: config}
    for name in CLASSICAL:
        if name != own:
            forward = config.forward.model_copy(update={"method": name})
            adjoint = config.adjoint.model_copy(update={"method": name})
            found[name] = config.model_copy(update={"forward": forward, "adjoint": adjoint})
    for name in wanted:
        if name not in found:
            raise UserError(
                f"method {name} is not measured, but {', '.join(found)}; choose one of these, or "
                f"add --forward.method {name}"
            )
    return {name: found[name] for name in found if not wanted or name in wanted}


def warm_up_epochs(config: RunConfig) -> int:
    """Until the learned solver has been trained once; two where there is none."""
    return config.schedule.warmup_epochs + 1 if config.forward.method == "neural" else 2


def with_epochs(config: RunConfig, rounds: int) -> RunConfig:
    """The settings for at least the warm-up, ``rounds`` epochs, and one more that is the last."""
    needed = warm_up_epochs(config) + rounds + 1
    train = config.train.model_copy(update={"epochs": max(config.train.epochs, needed)})
    return config.model_copy(update={"train": train})


def _start(workload: Workload, config: RunConfig) -> _Course:
    more = max(0, warm_up_epochs(workload.config) - warm_up_epochs(config))
    config = with_epochs(config, workload.rounds + more)
    trainer = Trainer(config, workload.shard, workload.comm)
    return _Course(trainer, watch(trainer))


def _train(workload: Workload, courses: Mapping[str, _Course]) -> None:
    """As many epochs for all: they are compared at the same point of the training."""
    epochs = warm_up_epochs(workload.config)
    for _ in range(epochs):
        for course in courses.values():
            course.warm_up()
    workload.tell(f"{epochs} warm-up epochs done; measuring {workload.rounds}")
    for _ in range(workload.rounds):
        for course in courses.values():
            course.measure(workload.comm)


def _totals(courses: Mapping[str, _Course], baseline: str) -> tuple[Figure, ...]:
    """Seconds, evaluations and bytes of an epoch by method."""
    seconds = {name: statistics.median(course.seconds) for name, course in courses.items()}
    spread = {
        name: seconds[name] + course.phase_seconds / course.trainer.config.schedule.model_steps
        for name, course in courses.items()
    }
    figures = compare(seconds, "seconds", baseline)
    figures += compare(spread, "seconds", baseline, SPREAD)
    for key, (unit, section) in _COUNTED.items():
        counted = {n: _median(course, key) for n, course in courses.items()}
        figures += compare(counted, unit, baseline, section)
    waits = {name: _typical(course.waits) for name, course in courses.items()}
    figures += clock_figures(waits, baseline)
    return figures


@torch.no_grad()
def _solves(
    workload: Workload, courses: Mapping[str, _Course], baseline: str
) -> tuple[Figure, ...]:
    """A forward solve to the run's tolerance that no earlier one has prepared."""
    comm = workload.comm
    tasks = {name: _cold_solve(course.trainer) for name, course in courses.items()}
    steps, sent = {}, {}
    for name, task in tasks.items():
        before = comm.traffic.snapshot()
        steps[name] = float(task().steps)
        bytes_sent = comm.traffic.since(before).exchange_bytes
        sent[name] = float(comm.sum(torch.tensor([bytes_sent])))
    figures = compare(interleave(tasks, workload.rounds, comm), "seconds", baseline, SOLVE)
    figures += compare(steps, "evaluations", baseline, SOLVE)
    return figures + compare(sent, "bytes", baseline, SOLVE)


def _cold_solve(trainer: Trainer) -> Callable[[], Solution]:
    model, planner = trainer.implicit.eval(), trainer.planner
    injection, weights = model.injection(), model.channel_weights()

    def solve() -> Solution:
        planner.forget()
        model.propagation.reset_links()
        return model.layer.solve(injection, weights, planner.evaluate())

    return solve


def _typical(epochs: Sequence[Seconds]) -> Seconds:
    """The median of each name."""
    return {name: statistics.median(epoch[name] for epoch in epochs) for name in epochs[0]}


def _median(course: _Course, key: str) -> float:
    return statistics.median(float(getattr(record, key)) for record in course.records)


def _stages(name: str, course: _Course) -> tuple[Figure, ...]:
    """Stages of one method's epoch; a ratio is how often a stage fits into the epoch."""
    parts = {EPOCH: statistics.median(course.seconds)}
    typical = _typical(course.stages)
    parts |= {stage: typical[stage] for stage in STAGES[1:]}
    if course.phase_seconds:
        parts["solver phase, when due"] = course.phase_seconds
    return compare(parts, "seconds", EPOCH, f"stages with {name}")
