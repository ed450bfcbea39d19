"""Strong and weak scaling as panels over the ranks, beside what would be ideal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from distributed_ignn.lab.benchmarks.scaling import NO_LINK, Row
from distributed_ignn.plots import (
    Picture,
    ideal_line,
    legend_below,
    point_style,
    rank_ticks,
    set_title,
    style,
)

_SECONDS, _EFFICIENCIES = "seconds_epoch", ("efficiency_epoch", "efficiency_evaluation")

#: Panels: title, the row's value, and what it is multiplied with.
_PANELS = (
    ("seconds per epoch", _SECONDS, 1.0),
    ("parallel efficiency of an epoch", "efficiency_epoch", 1.0),
    ("parallel efficiency of an evaluation", "efficiency_evaluation", 1.0),
    ("MB sent per epoch, all ranks", "bytes_epoch", 1e-6),
    ("seconds of waiting per epoch", "seconds_exposed", 1.0),
    ("peak MB of the largest rank", "peak_memory_bytes", 1e-6),
)
_COLUMNS = 3


@style()
def draw(rows: Sequence[Row], title: str) -> Picture:
    """Panels over the ranks for each study; a line per codec, dashed behind a link."""
    studies = list(dict.fromkeys(row.study for row in rows))
    lines = -(-len(_PANELS) // _COLUMNS)
    picture = Picture(3.4 * _COLUMNS, 0.3 + 2.4 * lines * len(studies))
    grid = picture.subplots(lines * len(studies), _COLUMNS, squeeze=False)
    for number, study in enumerate(studies):
        chosen = [row for row in rows if row.study == study]
        panels = grid[number * lines : (number + 1) * lines].flat
        for axes, (name, key, unit) in zip(panels, _PANELS, strict=True):
            _draw_panel(axes, chosen, lambda row, key=key, unit=unit: unit * getattr(row, key))  # type: ignore[misc]
            _draw_ideal(axes, chosen, key)
            axes.set_title(f"{study}: {name}")
    legend_below(picture)
    set_title(picture, title)
    return picture


def _draw_panel(axes: Axes, rows: Sequence[Row], value: Callable[[Row], float]) -> None:
    """A line per link and codec, all from the point of one rank on."""
    alone = [row for row in rows if row.ranks == 1]
    codecs = list(dict.fromkeys(row.halo for row in rows if row.ranks > 1))
    for link, halo in dict.fromkeys((row.link, row.halo) for row in rows if row.ranks > 1):
        line = alone + [r for r in rows if (r.link, r.halo) == (link, halo) and r.ranks > 1]
        axes.plot(
            [row.ranks for row in line],
            [value(row) for row in line],
            **point_style(codecs.index(halo)) | {"linestyle": "-" if link == NO_LINK else "--"},
            label=halo if link == NO_LINK else f"{halo}, link {link}",
        )
    if not codecs:  # nothing but the point of one rank
        axes.plot([row.ranks for row in alone], [value(row) for row in alone], **point_style(0))
    largest = max(filter(math.isfinite, map(value, rows)), default=0.0)
    axes.set_ylim(0.0, 1.1 * largest or 1.0)
    rank_ticks(axes, {row.ranks for row in rows})


def _draw_ideal(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """T_1 / P of a strong study, T_1 of a weak one, and efficiency 1."""
    alone = next((row for row in rows if row.ranks == 1), None)
    ranks = sorted({row.ranks for row in rows})
    if alone is None or len(ranks) < 2:
        return
    if key == _SECONDS:
        strong = alone.study == "strong"
        ideal_line(axes, ranks, [alone.seconds_epoch / (p if strong else 1) for p in ranks])
    elif key in _EFFICIENCIES:
        ideal_line(axes, ranks, [1.0] * len(ranks))
        axes.set_ylim(top=max(axes.get_ylim()[1], 1.1))
