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
    """A panel each with one vertical axis; a dot marks the epoch that validation chose.

    What nobody has spent, such as bytes where there is one rank, has no panel.
    """
    points = [point for course in courses for point in course.points]
    panels = [each for each in _PANELS if any(each[1](point) > 0.0 for point in points)]
    panels = panels or list(_PANELS[:1])
    lines = -(-len(panels) // 2)
    figure = Figure(figsize=(12, 0.8 + 3.5 * lines), layout="constrained")
    grid = figure.subplots(lines, 2, sharey=True, squeeze=False)
    for axes, (name, spent) in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, courses, spent)
        axes.axhline(target, color="grey", linestyle=":", linewidth=1.0)
        axes.set_xlabel(name)
        axes.set_ylabel("validation metric")
        if points:
            axes.set_xscale("log")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize="small", loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}; dotted: {target:g}")
    return figure


def _draw_panel(axes: Axes, courses: Sequence[Course], spent: Callable[[Point], float]) -> None:
    for number, course in enumerate(courses):
        color = f"C{number}"
        where = [spent(point) for point in course.points]
        axes.plot(where, [p.val for p in course.points], color=color, label=course.name)
        if course.best is not None:
            axes.plot([spent(course.best)], [course.best.val], "o", color=color)
