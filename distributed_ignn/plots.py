"""Pictures in one style, for print: what is drawn here looks the same wherever it is drawn.

A drawing function is decorated with ``style()`` and draws on a ``Picture``; matplotlib's own
settings, a user's included, are as before when it returns. The same data give the same bytes.

Letters: x, y values of a curve.
"""

from __future__ import annotations

import io
import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ContextDecorator
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullFormatter

from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_bytes

ENDINGS = (".png", ".svg", ".pdf")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Those of Okabe and Ito, which the colour-blind tell apart, without the yellow: it is too pale."""
GREY = "#7F7F7F"

# Numbers of them without a common divisor, so that no two of 315 lines look the same, and
# neighbours differ in all three.
_DASHES = ("-", (0, (5, 1.5)), (0, (6, 1.5, 1.2, 1.5)), (0, (1.2, 1.2)), (0, (9, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

_MANY = 1e3  # what a log axis spans where powers of ten are ticks enough

_UNDATED: Mapping[str, Mapping[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "errorbar.capsize": 3,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "legend.columnspacing": 1.4,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # embedded as they are: print shops refuse the outlines of type 3
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "distributed_ignn",  # else ids are drawn by lot
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


class style(ContextDecorator):  # noqa: N801 - reads as a decorator
    """The style while a function draws, or in a ``with`` block; what was before comes back.

    It begins with matplotlib's defaults, so that no settings of a user are mixed in.
    """

    def _recreate_cm(self) -> style:
        return style()  # one for each call: calls may lie within each other

    def __enter__(self) -> None:
        self._held: AbstractContextManager[None] = matplotlib.style.context(["default", _STYLE])
        self._held.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._held.__exit__(*raised)


class Picture(Figure):
    """A figure that keeps the style whenever it is drawn, and needs no display.

    Ticks are made when a figure is drawn, by the settings of that moment. A notebook shows it,
    with whatever backend matplotlib has there.

    Args:
        width, height: in inches.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")

    def draw(self, renderer: RendererBase) -> None:
        with style():
            super().draw(renderer)

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        with style():
            super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def checked_ending(path: Path) -> Path:
    """The path, if its ending is that of a picture.

    Raises:
        UserError: it is not.
    """
    if path.suffix not in ENDINGS:
        raise UserError(f"{path} says no kind of picture; end it in {', '.join(ENDINGS)}")
    return path


def save_picture(picture: Figure, path: Path) -> None:
    """Write a picture that replaces ``path`` only once it is complete.

    Args:
        picture: what to write.
        path: with one of ``ENDINGS``; its folder must exist.

    Raises:
        UserError: another ending.
        OSError: the folder is missing or not writable, or the disk is full.
    """
    kind = checked_ending(path).suffix[1:]
    buffer = io.BytesIO()
    picture.savefig(buffer, format=kind, metadata=dict(_UNDATED[kind]))
    atomic_write_bytes(path, buffer.getvalue())


def save_all_kinds(picture: Figure, start: Path) -> None:
    """Write a picture with every ending.

    Args:
        picture: what to write.
        start: the path without its ending.

    Raises:
        OSError: see ``save_picture``.
    """
    for ending in ENDINGS:
        save_picture(picture, start.with_name(start.name + ending))


def line_style(place: int, points: int = 0) -> dict[str, Any]:
    """Colour, dashes and marker of the line at a place, from 0; markers sparse on long lines.

    Args:
        place: among the lines of the picture.
        points: how many the line has where they are evenly spaced; else markers go by its length.
    """
    every = max(1, points // 10)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": _DASHES[place % len(_DASHES)],
        "marker": _MARKERS[place % len(_MARKERS)],
        # begun at different points, as lines may coincide; a share of the diagonal of the axes
        "markevery": (place % every, every) if points else (0.02 * (place % 4), 0.12),
    }


def point_style(place: int) -> dict[str, Any]:
    """As ``line_style`` where every point was measured by itself: all of them are marked."""
    return line_style(place) | {"markevery": None}


def mean_line(
    axes: Axes,
    runs: Sequence[Sequence[tuple[float, float]]],
    *,
    logarithmic: bool = False,
    ends_stay: bool = False,
    **look: Any,
) -> None:
    """A line through the means of several runs, in a band of one standard deviation.

    Args:
        axes: to draw on.
        runs: the points (x, y) of each, by rising x.
        logarithmic: whether mean and deviation are those of the logarithms, for a log axis;
            values that have none are left out.
        ends_stay: whether a run that has ended counts on with its last value.
        look: of the line, its label included.
    """
    taken = [[(x, y) for x, y in run if y > 0.0 or not logarithmic] for run in runs]
    where = sorted({x for run in taken for x, _ in run})
    found: list[tuple[float, float, float]] = []
    for values in _columns(taken, where, ends_stay):
        of = [math.log(y) for y in values] if logarithmic else values
        mean, deviation = statistics.fmean(of), statistics.stdev(of) if len(of) > 1 else 0.0
        low, middle, high = mean - deviation, mean, mean + deviation
        back = math.exp if logarithmic else float
        found.append((back(low), back(middle), back(high)))
    below, means, above = zip(*found, strict=True) if found else ((), (), ())
    (line,) = axes.plot(where, means, **look)
    if len(runs) > 1:
        axes.fill_between(where, below, above, color=line.get_color(), alpha=0.15, linewidth=0)


def _columns(
    runs: Sequence[Sequence[tuple[float, float]]], where: Sequence[float], ends_stay: bool
) -> Iterable[list[float]]:
    """The values of all runs at each x."""
    known = [dict(run) for run in runs if run]
    for x in where:
        yield [
            run[x] if x in run else list(run.values())[-1]
            for run in known
            if x in run or (ends_stay and x > max(run))
        ]


def band_note(runs: int, of: str = "seeds") -> str:
    """What a title says of ``mean_line``; nothing for a single run."""
    return f"; bands: one standard deviation over {runs} {of}" if runs > 1 else ""


def ideal_line(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """What perfect scaling would give."""
    axes.plot(x, y, color=GREY, linestyle=(0, (1, 1.5)), linewidth=1.2, label="ideal", zorder=1)


def whole_ticks(axis: Axis) -> None:
    """Ticks at whole numbers alone: half an epoch is none."""
    axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def log_ticks(axis: Axis) -> None:
    """A log scale with plain numbers at 1, 2 and 5, or powers of ten where there are many."""
    if isinstance(axis, XAxis):
        axis.axes.set_xscale("log")
    else:
        axis.axes.set_yscale("log")
    axis.set_major_locator(_PlainLocator())
    axis.set_major_formatter(_PlainFormatter())
    axis.set_minor_formatter(NullFormatter())


def rank_ticks(axes: Axes, ranks: Iterable[int]) -> None:
    """Ranks along x, in steps of two as wide as each other, each with its tick."""
    shown = sorted(set(ranks))
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [f"{count:,}" for count in shown])
    axes.minorticks_off()
    axes.set_xlabel("ranks")


class _PlainLocator(LogLocator):
    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = sorted((vmin, vmax))
        if 0.0 < high < 5.0 * low:
            return [tick for tick in MaxNLocator(5).tick_values(low, high) if tick > 0.0]
        self.set_params(subs=(1.0, 2.0, 5.0) if high < _MANY * low else (1.0,))
        return super().tick_values(vmin, vmax)


class _PlainFormatter(Formatter):
    def __call__(self, x: float, pos: int | None = None) -> str:
        if self.axis is None:
            return f"{x:.6g}"
        low, high = sorted(self.axis.get_view_interval())
        if high < _MANY * low or (low >= 1e-4 and high < 1e6):
            return f"{x:.6g}"
        return f"$10^{{{round(math.log10(x))}}}$"  # where the locator has nothing else


def set_title(picture: Picture, text: str) -> None:
    """A title above all, in as many lines as it needs, by which the picture grows."""
    size = _STYLE["figure.titlesize"]
    lines = textwrap.wrap(text, int(picture.get_figwidth() * 72 / (0.64 * size)))
    picture.set_figheight(picture.get_figheight() + (len(lines) - 1) * 1.3 * size / 72)
    picture.suptitle("\n".join(lines))


def legend_below(picture: Picture) -> None:
    """One legend under all axes, in as many columns as fit; the picture grows by its rows."""
    known = _handles(picture)
    size = _STYLE["legend.fontsize"]
    widest = max(map(len, known), default=0) * 0.56 * size + 5.5 * size
    fitting = max(1, int(picture.get_figwidth() * 72 / widest))
    rows = -(-len(known) // fitting)
    picture.set_figheight(picture.get_figheight() + rows * 1.6 * size / 72)
    columns = -(-len(known) // max(rows, 1))
    picture.legend(known.values(), known, loc="outside lower center", ncols=max(columns, 1))


def legend_beside(picture: Picture) -> None:
    """One legend right of all axes, where it covers no curve; a label is in it once."""
    known = _handles(picture)
    picture.legend(known.values(), known, loc="outside right center")


def _handles(picture: Picture) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for axes in picture.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return found


def hide(axes: Iterable[Axes]) -> None:
    """Leave places of a grid empty."""
    for each in axes:
        each.set_axis_off()
