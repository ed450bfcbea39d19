"""How a run went, as one figure: loss, metrics, map evaluations and residuals by epoch.

The last two are those of solves, which an explicit model has none of.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from distributed_ignn.config import RunConfig
from distributed_ignn.config.explicit import IMPLICIT
from distributed_ignn.plots import GREY, Picture, line_style, log_ticks, style, whole_ticks

_Records = list[dict[str, Any]]


@style()
def draw(records: _Records, config: RunConfig) -> Picture:
    """The figure; it needs no display and leaves pyplot alone.

    Args:
        records: of at least one epoch.
        config: of the run.
    """
    solves = config.model.kind == IMPLICIT
    picture = Picture(8.0, 5.8 if solves else 3.2)
    axes = picture.subplots(2 if solves else 1, 2, squeeze=False)
    _loss(axes[0, 0], records)
    _metrics(axes[0, 1], records)
    if solves:
        _evaluations(axes[1, 0], records)
        _residuals(axes[1, 1], records, config.forward.tolerance)
    for ax in axes.flat:
        ax.set_xlabel("epoch")
        whole_ticks(ax.xaxis)
        _legend_below(ax)
    return picture


def _line(ax: Axes, records: _Records, key: str, label: str) -> bool:
    """One curve, without the epochs that have no value; whether there is any."""
    points = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
    if points:
        ax.plot(*zip(*points, strict=True), **line_style(len(ax.lines), len(points)), label=label)
    return bool(points)


def _loss(ax: Axes, records: _Records) -> None:
    _line(ax, records, "loss", "training")
    ax.set_title("loss")


def _metrics(ax: Axes, records: _Records) -> None:
    _line(ax, records, "train_metric", "training")
    if _line(ax, records, "val_metric", "validation"):
        epoch, value = _best(records)
        text = f"best: {value:.4f} in epoch {epoch}"
        ax.plot(epoch, value, "k*", markersize=10, label=text, zorder=3)
    ax.set_title("metric")


def _best(records: _Records) -> tuple[int, float]:
    """The epoch chosen so far and its metric; where none is confirmed yet, the largest metric."""
    newest = records[-1]
    if newest.get("best_epoch") is not None:
        return newest["best_epoch"], newest["best_val"]
    known = [r for r in records if r.get("val_metric") is not None]
    best = max(known, key=lambda r: r["val_metric"])  # the first of equals, as training has it
    return best["epoch"], best["val_metric"]


def _evaluations(ax: Axes, records: _Records) -> None:
    for name in ("forward", "validation", "confirmation", "adjoint"):
        _line(ax, records, f"evaluations_{name}", name)
    ax.set_ylim(bottom=0)
    ax.set_title("map evaluations per solve")


def _residuals(ax: Axes, records: _Records, tolerance: float) -> None:
    _line(ax, records, "residual", "forward")
    _line(ax, records, "residual_adjoint", "adjoint")
    ax.axhline(tolerance, color=GREY, linestyle="--", label=f"tolerance {tolerance:g}")
    log_ticks(ax.yaxis)
    ax.set_title("relative residual")


def _legend_below(ax: Axes) -> None:
    """Where it covers no curve; a single curve is named by the title."""
    if len(ax.lines) > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, handlelength=2.4)
