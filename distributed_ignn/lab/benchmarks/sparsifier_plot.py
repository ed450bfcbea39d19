"""Distance to the fixed point over the share of edges kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

Point = tuple[str, str, float, list[float]]
"""Name of the choice, its method, share of entries kept, distances of the draws."""

_CONTROLS = 3  # they come first


def draw_quality(points: Sequence[Point], steps: int, dataset: str) -> Figure:
    """One line per method with the smallest and largest distance; controls as horizontal lines."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for name, _, _, distances in points[:_CONTROLS]:
        (line,) = axes.plot([0, 1], [statistics.fmean(distances)] * 2, "--", label=name)
        axes.axhspan(min(distances), max(distances), alpha=0.12, color=line.get_color())
    for method in dict.fromkeys(method for _, method, _, _ in points[_CONTROLS:]):
        own = [(kept, values) for _, m, kept, values in points[_CONTROLS:] if m == method]
        means = [statistics.fmean(values) for _, values in own]
        below = [mean - min(values) for mean, (_, values) in zip(means, own, strict=True)]
        above = [max(values) - mean for mean, (_, values) in zip(means, own, strict=True)]
        axes.errorbar(
            [kept for kept, _ in own], means, [below, above], marker=".", capsize=2, label=method
        )
    axes.set_yscale("log")
    axes.set_xlabel("share of edges kept")
    axes.set_ylabel(f"relative distance to Z* after {steps} evaluations")
    axes.set_title(f"{dataset}; bars and bands: smallest and largest over draws")
    axes.legend(fontsize="small")
    return figure
