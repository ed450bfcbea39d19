"""The test metric over time, as in Figures 2 and 6 of the IGNN-Solver paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from distributed_ignn.lab.benchmarks.tracing import Method, Step
from distributed_ignn.plots import (
    Picture,
    legend_below,
    log_ticks,
    point_style,
    set_title,
    style,
)

_NEAR = 3.0  # per cent
_DASHES = {"zero": "--", "f(0)": "-.", "initialiser": "-"}


@style()
def draw_pareto(
    methods: Mapping[str, Method],
    measured: Mapping[str, Sequence[Step]],
    converged: float,
    title: str,
) -> Picture:
    """One line per method with a marker per evaluation; the whole, and what is near the end.

    Colour and marker are those of the solver, dashes those of the start.

    Args:
        methods: by label.
        measured: timed steps by label.
        converged: metric at Z*, drawn as a horizontal line.
        title: of the plot.
    """
    picture = Picture(10.0, 4.2)
    whole, end = picture.subplots(1, 2)
    names = list(dict.fromkeys(method.name for method in methods.values()))
    for label, steps in measured.items():
        method = methods[label]
        look = point_style(names.index(method.name))
        look |= {"linestyle": _DASHES.get(method.start_name, ":"), "markersize": 3.5}
        for axes in (whole, end):
            axes.plot(*_points(steps), **look, linewidth=1.1, label=label)
    _frame_end(end, measured, converged)
    for axes in (whole, end):
        axes.axhline(100 * converged, color="black", linewidth=0.8, label="at the fixed point")
        log_ticks(axes.xaxis)
        axes.set_xlabel("milliseconds, without b(X)")
    whole.set_ylabel("test metric, per cent")
    end.set_title("the same near the fixed point")
    legend_below(picture)
    set_title(picture, title)
    return picture


def _points(steps: Sequence[Step]) -> tuple[list[float], list[float]]:
    return [1e3 * step.seconds for step in steps], [100 * step.metric for step in steps]


def _frame_end(axes: Axes, measured: Mapping[str, Sequence[Step]], converged: float) -> None:
    """Limits around what lies within a few points of the metric at Z*."""
    near = [
        (x, y)
        for steps in measured.values()
        for x, y in zip(*_points(steps), strict=True)
        if abs(y - 100 * converged) <= _NEAR and x > 0.0
    ]
    if near:
        values = [100 * converged, *(y for _, y in near)]
        margin = 0.08 * (max(values) - min(values)) or _NEAR
        axes.set_ylim(min(values) - margin, max(values) + margin)
        axes.set_xlim(0.8 * min(x for x, _ in near), 1.25 * max(x for x, _ in near))
