"""Metric over inference time: a panel per dataset, a line per implicit model, a mark per explicit.

Ours is the thick line; explicit models differ in shape and fill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from distributed_ignn.lab.studies.tables.table_models import MODELS, OURS
from distributed_ignn.plots import (
    COLOURS,
    GREY,
    Picture,
    hide,
    legend_below,
    log_ticks,
    point_style,
    set_title,
    style,
)

Curve = Sequence[tuple[float, float]]

_BLUE, _, _GREEN, _PURPLE, _ORANGE, _SKY, _BLACK = COLOURS
_FILLS = (_ORANGE, _SKY, _GREEN, _BLUE, _PURPLE, GREY)
_LEAST_MARGIN = 3.0  # per cent
_SHAPES = "osD^vP*X<>p"


@style()
def draw_inference(
    curves: Mapping[str, Mapping[str, Curve]], metrics: Mapping[str, str], title: str
) -> Picture:
    """The picture.

    Args:
        curves: milliseconds and metric in per cent, by dataset and model.
        metrics: the metric of each dataset.
        title: of the picture.
    """
    columns = 2 if len(curves) == 4 else min(3, len(curves))
    lines = -(-len(curves) // columns)
    picture = Picture(max(6.5, 3.4 * columns), 0.4 + 2.7 * lines)
    grid = picture.subplots(lines, columns, squeeze=False)
    for axes, (dataset, models) in zip(grid.flat, curves.items(), strict=False):
        for model in MODELS:  # in one order everywhere, the legend's
            if model in models:
                _draw(axes, model, models[model])
        axes.set_title(Path(dataset).stem)
        axes.set_ylabel(f"test {metrics[dataset]}, per cent")
        axes.set_xlabel("milliseconds of inference")
        log_ticks(axes.xaxis)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        _frame(axes, list(models.values()))
    hide(grid.flat[len(curves) :])
    legend_below(picture)
    set_title(picture, title)
    return picture


def _frame(axes: Axes, curves: Sequence[Curve]) -> None:
    """Limits that show where the models end; a curve that begins far below comes in from there."""
    ends = [curve[-1][1] for curve in curves]
    points = [value for curve in curves for _, value in curve]
    margin = max(0.5 * (max(ends) - min(ends)), _LEAST_MARGIN)
    low, high = max(min(points), min(ends) - margin), max(points)
    axes.set_ylim(low - 0.05 * (high - low) - 0.1, high + 0.05 * (high - low) + 0.1)


def _draw(axes: Axes, model: str, curve: Curve) -> None:
    kinds = [name for name, each in MODELS.items() if each.explicit]
    solving = [name for name in MODELS if name not in kinds and name != OURS]
    label, (where, values) = MODELS[model].label, zip(*curve, strict=True)
    if model in kinds:
        place = kinds.index(model)
        axes.plot(
            where,
            values,
            _SHAPES[place % len(_SHAPES)],
            color=_FILLS[place % len(_FILLS)],
            markeredgecolor=_BLACK,
            markersize=7,
            label=label,
            zorder=3,
        )
        return
    place = 1 if model == OURS else (0, *range(2, 7))[solving.index(model) % 6]
    look = point_style(place) | {"markersize": 3}
    if model == OURS:
        look |= {"linewidth": 2.2, "linestyle": "-"}
    axes.plot(where, values, **look, label=label, zorder=2)
