"""Validation over what a training has spent, a line for each contender."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distributed_ignn.lab.benchmarks.courses import Course, Point

_PANELS: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("seconds of training", lambda point: point.spent.seconds),
    ("epochs", lambda point: point.epoch),
    ("evaluations of the map", lambda point: point.spent.evaluations),
    ("MB sent, all ranks", lambda point: point.spent.bytes_sent / 1e6),
)


def draw(courses: Sequence[Course], target: float, title: str) -> Figure:
    """Four panels with one vertical axis; a dot marks the epoch that validation chose."""
    figure = Figure(figsize=(12, 7.5))
    grid = figure.subplots(2, 2, sharey=True)
    for axes, (name, spent) in zip(grid.flat, _PANELS, strict=True):
        _draw_panel(axes, courses, spent)
        axes.axhline(target, color="grey", linestyle=":", linewidth=1.0)
        axes.set_xlabel(name)
        axes.set_ylabel("validation metric")
        if any(spent(point) > 0.0 for course in courses for point in course.points):
            axes.set_xscale("log")
    grid[0][0].legend(fontsize="small", loc="lower right")
    figure.suptitle(f"{title}; dotted: {target:g}")
    figure.tight_layout()
    return figure


def _draw_panel(axes: Axes, courses: Sequence[Course], spent: Callable[[Point], float]) -> None:
    for number, course in enumerate(courses):
        color = f"C{number}"
        where = [spent(point) for point in course.points]
        axes.plot(where, [p.val for p in course.points], color=color, label=course.name)
        if course.best is not None:
            axes.plot([spent(course.best)], [course.best.val], "o", color=color)
