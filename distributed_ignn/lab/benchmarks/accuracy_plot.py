"""Validation over what a training has spent, a line for each contender."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from distributed_ignn.lab.benchmarks.courses import Course, Point
from distributed_ignn.plots import (
    GREY,
    Picture,
    hide,
    legend_below,
    line_style,
    log_ticks,
    set_title,
    style,
)

_PANELS: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("seconds of training", lambda point: point.spent.seconds),
    ("epochs", lambda point: point.epoch),
    ("evaluations of the map", lambda point: point.spent.evaluations),
    ("MB sent, all ranks", lambda point: point.spent.bytes_sent / 1e6),
)


@style()
def draw(courses: Sequence[Course], target: float, title: str) -> Picture:
    """A panel each with one vertical axis; a star marks the epoch that validation chose.

    What nobody has spent, such as bytes where there is one rank, has no panel.
    """
    points = [point for course in courses for point in course.points]
    panels = [each for each in _PANELS if any(each[1](point) > 0.0 for point in points)]
    panels = panels or list(_PANELS[:1])
    lines = -(-len(panels) // 2)
    picture = Picture(9.0, 0.4 + 2.7 * lines)
    grid = picture.subplots(lines, 2, sharey=True, squeeze=False)
    for axes, (name, spent) in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, courses, spent)
        axes.axhline(target, color=GREY, linestyle=":", label=f"target {target:g}")
        axes.set_xlabel(name)
        if points:
            log_ticks(axes.xaxis)
    for axes in grid[:, 0]:
        axes.set_ylabel("validation metric")
    hide(grid.flat[len(panels) :])
    legend_below(picture)
    set_title(picture, f"{title}; star: the epoch chosen")
    return picture


def _draw_panel(axes: Axes, courses: Sequence[Course], spent: Callable[[Point], float]) -> None:
    """From the first point that has spent something: a log axis has no zero."""
    for number, course in enumerate(courses):
        shown = [(spent(p), p.val) for p in course.points if spent(p) > 0.0]
        look = line_style(number)
        axes.plot([x for x, _ in shown], [y for _, y in shown], **look, label=course.name)
        if course.best is not None and spent(course.best) > 0.0:
            best = spent(course.best), course.best.val
            axes.plot(
                *([value] for value in best),
                "*",
                color=look["color"],
                markersize=12,
                markeredgecolor="black",
                zorder=3,
            )
