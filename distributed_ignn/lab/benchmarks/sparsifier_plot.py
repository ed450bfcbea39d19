"""Distance to the fixed point over the share of edges kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distributed_ignn.plots import (
    Picture,
    legend_beside,
    log_ticks,
    point_style,
    set_title,
    style,
)

Point = tuple[str, str, float, list[float]]
"""Name of the choice, its method, share of entries kept, distances of the draws."""

_CONTROLS = 3  # they come first


@style()
def draw_quality(points: Sequence[Point], steps: int, dataset: str) -> Picture:
    """One line per method with the smallest and largest distance; controls as horizontal lines."""
    picture = Picture(7.5, 4.0)
    axes = picture.subplots()
    for place, (name, _, _, distances) in enumerate(points[:_CONTROLS]):
        look = point_style(place) | {"marker": ""}
        axes.axhline(statistics.fmean(distances), **look, label=name)
        axes.axhspan(min(distances), max(distances), alpha=0.12, color=look["color"], linewidth=0)
    methods = dict.fromkeys(method for _, method, _, _ in points[_CONTROLS:])
    for place, method in enumerate(methods, start=_CONTROLS):
        own = sorted((kept, values) for _, m, kept, values in points[_CONTROLS:] if m == method)
        kept = [share for share, _ in own]
        look = point_style(place)
        axes.plot(kept, [statistics.fmean(found) for _, found in own], **look, label=method)
        low, high = ([pick(found) for _, found in own] for pick in (min, max))
        axes.fill_between(kept, low, high, color=look["color"], alpha=0.2, linewidth=0)
    log_ticks(axes.yaxis)
    axes.set_xlabel("share of edges kept")
    axes.set_ylabel(f"relative distance to Z* after {steps} evaluations")
    legend_beside(picture)
    set_title(picture, f"{dataset}; bands: smallest and largest over draws")
    return picture
