"""Goals of a solve, and when a method reaches them for good."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distributed_ignn.lab.benchmarks.tracing import Step

METRIC_LOSS = 1e-3  # 0.1 points


@dataclass(frozen=True, slots=True)
class Goal:
    """Something that a step has or has not reached.

    Args:
        name: as tables show it.
        met: whether a step has reached it.
    """

    name: str
    met: Callable[[Step], bool]

    def first(self, steps: Sequence[Step]) -> Step | None:
        """The first step from which on every step meets the goal; None where there is none."""
        found = None
        for step in reversed(steps):
            if not self.met(step):
                break
            found = step
        return found

    def evaluations(self, steps: Sequence[Step]) -> float:
        """Evaluations until the goal is met for good; infinite if it never is."""
        step = self.first(steps)
        return math.inf if step is None else float(step.evaluations)

    def seconds(self, steps: Sequence[Step]) -> float:
        """Seconds likewise."""
        step = self.first(steps)
        return math.inf if step is None else step.seconds


def distance_goal(distance: float) -> Goal:
    """Relative distance to Z* at most ``distance``."""
    return Goal(short(distance), lambda step: step.distance <= distance)


def short(distance: float) -> str:
    """As tables show a distance."""
    return f"{distance:.0e}".replace("e-0", "e-")


def metric_goal(converged: float) -> Goal:
    """Test metric at most 0.1 points below that at Z*."""
    # the share of the last digit: metrics are quotients of whole numbers
    least = converged - METRIC_LOSS - 1e-9
    return Goal("metric", lambda step: step.metric >= least)
