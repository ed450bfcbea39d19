"""Trainings side by side: what each has spent by every epoch, and what validation says then.

A contender is trained until its time is over, or until validation has not got better for a while.
Seconds are those of training on the slowest rank; all that ends a training is a number that every
rank has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.interleaving import finish_device
from distributed_ignn.lab.benchmarks.study import Tell


@dataclass(frozen=True, slots=True)
class Effort:
    """What some training has taken.

    Args:
        seconds: without loading, dividing the graph and building the model.
        evaluations: of the map, or passes over as many entries of the graph.
        bytes_sent: by all ranks.
    """

    seconds: float = 0.0
    evaluations: float = 0.0
    bytes_sent: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.seconds + other.seconds,
            self.evaluations + other.evaluations,
            self.bytes_sent + other.bytes_sent,
        )


class Contender(Protocol):
    """Something that is trained epoch by epoch; every rank calls it alike."""

    def epoch(self) -> Effort:
        """Train for one epoch; what that took."""
        ...

    def validate(self) -> float:
        """The metric on the validation nodes; better weights than all before are kept."""
        ...

    def test(self) -> float:
        """The metric on the test nodes, with the weights that validation chose."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """When a training ends.

    Args:
        minutes: of it.
        epochs: of it.
        patience: validations in a row that find nothing better.
    """

    minutes: float
    epochs: int
    patience: int


@dataclass(frozen=True, slots=True)
class Point:
    """An epoch of a training.

    Args:
        epoch: counted from 1.
        spent: up to its end.
        val: metric on the validation nodes.
    """

    epoch: int
    spent: Effort
    val: float


@dataclass(slots=True, eq=False)
class Course:
    """The course of one training.

    Args:
        name: of the contender.
        points: one per epoch.
        test: metric on the test nodes at the best epoch; nan where there is none.
        ended: why it ended.
    """

    name: str
    points: list[Point] = field(default_factory=list)
    test: float = math.nan
    ended: str = ""

    @property
    def best(self) -> Point | None:
        """The epoch that validation chooses, the first of equals; None where there is none."""
        return max(self.points, key=lambda point: point.val, default=None)

    @property
    def total(self) -> float:
        """Seconds of the whole training."""
        return self.points[-1].spent.seconds if self.points else 0.0

    def reaching(self, target: float) -> Point | None:
        """The first epoch with at least ``target`` on the validation nodes."""
        return next((point for point in self.points if point.val >= target), None)


def follow(
    name: str, contender: Contender, limits: Limits, comm: Communicator, tell: Tell
) -> Course:
    """Train a contender to its end; every rank calls it.

    A training that comes to nothing, because its numbers go bad, ends there, and says so.
    """
    course, spent = Course(name), Effort()
    while not course.ended:
        try:
            spent += contender.epoch()
        except UserError as error:
            course.ended = str(error)
            break
        course.points.append(Point(len(course.points) + 1, spent, contender.validate()))
        course.ended = _why_ended(course, limits)
        newest, taken = course.points[-1], spent.seconds
        tell(f"{name}: epoch {newest.epoch}, {taken:.1f} s, validation {newest.val:.4f}")
    if course.points:
        course.test = contender.test()
    comm.barrier()
    return course


def _why_ended(course: Course, limits: Limits) -> str:
    """Empty while the training goes on."""
    best = course.best
    if len(course.points) >= limits.epochs:
        return f"after {limits.epochs} epochs"
    if course.total >= 60.0 * limits.minutes:
        return f"after {limits.minutes:g} minutes"
    if best is not None and len(course.points) - best.epoch >= limits.patience:
        return f"{limits.patience} epochs without a better one"
    return ""


def timed(comm: Communicator, work: Callable[[], float]) -> Effort:
    """Seconds of the slowest rank, and bytes of all ranks, of a piece of training.

    Args:
        comm: of the ranks, which begin together.
        work: returns its evaluations of the map, those of this rank.
    """
    comm.barrier()
    before = comm.traffic.snapshot()
    started = time.perf_counter()
    evaluations = work()
    finish_device(comm)
    seconds = time.perf_counter() - started
    sent = comm.traffic.since(before)
    bytes_sent = sent.exchange_bytes + sent.reduction_bytes
    slowest = comm.max(torch.tensor([seconds], dtype=torch.float64))
    totals = comm.sum(torch.tensor([evaluations, float(bytes_sent)], dtype=torch.float64))
    return Effort(float(slowest), float(totals[0]), int(totals[1]))
