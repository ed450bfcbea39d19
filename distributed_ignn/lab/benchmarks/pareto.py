"""The test metric over time, as in Figures 2 and 6 of the IGNN-Solver paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from distributed_ignn.lab.benchmarks.tracing import Method, Step

_STYLES = {"zero": "--", "f(0)": "-.", "initialiser": "-"}


def draw_pareto(
    methods: Mapping[str, Method],
    measured: Mapping[str, Sequence[Step]],
    converged: float,
    title: str,
) -> Figure:
    """One line per method, a marker per evaluation; a colour per solver, a dash per start.

    Args:
        methods: by label.
        measured: timed steps by label.
        converged: metric at Z*, drawn as a horizontal line.
        title: of the plot.
    """
    figure = Figure(figsize=(9, 5.5))
    axes = figure.subplots()
    names = list(dict.fromkeys(method.name for method in methods.values()))
    colours = mpl.colormaps["tab20"]
    for label, steps in measured.items():
        method = methods[label]
        axes.plot(
            [step.seconds for step in steps],
            [100 * step.metric for step in steps],
            _STYLES.get(method.start_name, ":"),
            marker=".",
            color=colours(names.index(method.name) % 20),
            label=label,
            linewidth=1.2,
        )
    axes.axhline(100 * converged, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("seconds, without b(X)")
    axes.set_ylabel("test metric, per cent")
    axes.set_title(f"{title}; black: at the fixed point")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
