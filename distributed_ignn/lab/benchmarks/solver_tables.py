"""Tables of the solver study: methods against goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from distributed_ignn.lab.benchmarks.goals import Goal
from distributed_ignn.lab.benchmarks.tracing import Step

Measured = Mapping[str, Sequence[Step]]


def tabulate(
    measured: Measured, goals: Sequence[Goal], anderson: str, picard: str
) -> tuple[Table, ...]:
    """Evaluations, milliseconds, and how many times faster than either baseline, per goal.

    Args:
        measured: steps by method.
        goals: the columns.
        anderson, picard: names of the baselines.
    """

    def evaluations(name: str, goal: Goal) -> str:
        return _shown(goal.evaluations(measured[name]), "d")

    def milliseconds(name: str, goal: Goal) -> str:
        return _shown(1e3 * goal.seconds(measured[name]), ".1f")

    def faster(baseline: str) -> Callable[[str, Goal], str]:
        def cell(name: str, goal: Goal) -> str:
            own, base = goal.seconds(measured[name]), goal.seconds(measured[baseline])
            return _shown(base / own, ".2f") if math.isfinite(own) else "-"

        return cell

    columns: dict[str, Callable[[str, Goal], str]] = {
        "evaluations to reach and keep": evaluations,
        "milliseconds to reach and keep": milliseconds,
        f"seconds of '{anderson}' / own": faster(anderson),
        f"seconds of '{picard}' / own": faster(picard),
    }
    return tuple(_table(title, measured, goals, cell) for title, cell in columns.items())


def _table(
    title: str, measured: Measured, goals: Sequence[Goal], cell: Callable[[str, Goal], str]
) -> Table:
    table = Table(title=title)
    table.add_column("method, start")
    for goal in goals:
        table.add_column(goal.name, justify="right")
    for name in measured:
        table.add_row(name, *(cell(name, goal) for goal in goals))
    return table


def _shown(value: float, style: str) -> str:
    if not math.isfinite(value):
        return "-"
    return format(int(value) if style == "d" else value, style)
