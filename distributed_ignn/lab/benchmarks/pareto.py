"""The test metric over time, as in Figures 2 and 6 of the IGNN-Solver paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distributed_ignn.lab.benchmarks.tracing import Method, Step
from distributed_ignn.plots import (
    Picture,
    legend_beside,
    log_ticks,
    point_style,
    set_title,
    style,
)

_DASHES = {"zero": "--", "f(0)": "-.", "initialiser": "-"}


@style()
def draw_pareto(
    methods: Mapping[str, Method],
    measured: Mapping[str, Sequence[Step]],
    converged: float,
    title: str,
) -> Picture:
    """One line per method, a marker per evaluation; colour and marker of the solver, dashes of the
    start.

    Args:
        methods: by label.
        measured: timed steps by label.
        converged: metric at Z*, drawn as a horizontal line.
        title: of the plot.
    """
    picture = Picture(9.0, 5.0)
    axes = picture.subplots()
    names = list(dict.fromkeys(method.name for method in methods.values()))
    for label, steps in measured.items():
        method = methods[label]
        look = point_style(names.index(method.name))
        look |= {"linestyle": _DASHES.get(method.start_name, ":"), "markersize": 3.5}
        axes.plot(
            [1e3 * step.seconds for step in steps],
            [100 * step.metric for step in steps],
            **look,
            linewidth=1.1,
            label=label,
        )
    axes.axhline(100 * converged, color="black", linewidth=0.8, label="at the fixed point")
    log_ticks(axes.xaxis)
    axes.set_xlabel("milliseconds, without b(X)")
    axes.set_ylabel("test metric, per cent")
    legend_beside(picture)
    set_title(picture, title)
    return picture
