"""Metric over inference time: a panel per dataset, a line per implicit model, a mark per explicit.

Colours are those of Okabe and Ito, which the colour-blind tell apart; explicit models differ in
shape besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from distributed_ignn.lab.studies.tables.table_models import MODELS, OURS

Curve = Sequence[tuple[float, float]]

_ORANGE, _SKY, _GREEN, _BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
_RED, _PURPLE, _BLACK, _GREY = "#D55E00", "#CC79A7", "#000000", "#8C8C8C"
_LINES = (_SKY, _PURPLE, _ORANGE, _GREEN, _GREY, _BLUE)
_FILLS = (_ORANGE, _SKY, _GREEN, _BLUE, _PURPLE, _GREY)
_SHAPES = "osD^vP*X<>p"


def draw_inference(
    curves: Mapping[str, Mapping[str, Curve]], metrics: Mapping[str, str], title: str
) -> Figure:
    """The figure.

    Args:
        curves: milliseconds and metric in per cent, by dataset and model.
        metrics: the metric of each dataset.
        title: of the figure.
    """
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(max(7.0, 4.2 * columns), 1.6 + 3.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, (dataset, models) in zip(grid.flat, curves.items(), strict=False):
        for model, curve in models.items():
            _draw(axes, model, curve)
        axes.set_title(Path(dataset).stem)
        axes.set_ylabel(f"test {metrics[dataset]}, per cent")
        axes.set_xlabel("milliseconds of inference")
        axes.grid(alpha=0.3)
        _set_ticks(axes)
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()
    known = {handle.get_label(): handle for axes in grid.flat for handle in axes.get_lines()}
    labels = [each.label for each in MODELS.values() if each.label in known]
    figure.legend(
        [known[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=min(6, 2 + 2 * columns),
        fontsize="small",
    )
    figure.suptitle(title)
    return figure


def _set_ticks(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))


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
    colour = _RED if model == OURS else _LINES[solving.index(model) % len(_LINES)]
    width = 2.2 if model == OURS else 1.4
    axes.plot(where, values, ".-", color=colour, linewidth=width, label=label, zorder=2)
