"""Figure 8 (appendix D.3): training with the learned solver and without it, epoch by epoch.

Loss, metric and evaluations are those of whole runs, one after the other; the seconds are those of
a second training of the same runs, epoch by epoch in turn (``epochs_in_turn.py``).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.studies.epochs_in_turn import Epochs, epochs_in_turn, typical_epoch
from distributed_ignn.lab.studies.outcome import Outcome, Request, spread
from distributed_ignn.lab.studies.study_runs import FinishedRun, train_run
from distributed_ignn.plots import (
    Picture,
    band_note,
    legend_below,
    line_style,
    log_ticks,
    mean_line,
    set_title,
    style,
    whole_ticks,
)

METHODS = ("neural", "anderson", "picard")
_KEYS = (
    "epoch",
    "loss",
    "val_metric",
    "seconds",
    "evaluations_forward",
    "evaluations_validation",
    "evaluations_adjoint",
    "solver_seconds",
)
_WINDOW = 9  # epochs
_PANELS = (
    ("loss", "training loss"),
    ("val_metric", "validation metric"),
    ("evaluations", "evaluations, forward and validation"),
    ("seconds", f"seconds per epoch; thick: median of {_WINDOW}"),
)
_PAPER = (
    "Appendix D.3 on Amazon-all: the IGNN starts fast, its time per epoch rises sharply and stays "
    "high after about 100 epochs because the solve reaches its step limit; IGNN-Solver is "
    "'significantly lower' and stable in training and inference time. The seconds are in the "
    "picture of Figure 8 only."
)
_DIFFERS = (
    "Map evaluations per epoch stand beside the seconds; the backward solve uses the same method "
    "in all runs, and every solve starts from the last epoch's solution. Seconds are those of a "
    "second training of the same runs, epoch by epoch in turn; of several seeds the median. The "
    f"picture's thick line is the median of {_WINDOW} epochs, which leaves solver phases out; the "
    "summary has the median epoch without solver phases, and the mean share of these."
)


def run(request: Request, comm: Communicator) -> Outcome:
    """Train once with each forward solver for each seed; the other settings are equal."""
    rows: list[dict[str, Any]] = []
    runs: dict[str, list[FinishedRun]] = {method: [] for method in METHODS}
    taken: dict[str, list[Epochs]] = {method: [] for method in METHODS}
    for seed in request.seeds:
        for method in METHODS:
            changes = {"seed": seed, "forward.method": method}
            name = f"{method}-seed{seed}"
            runs[method].append(train_run(request.config, request.out, name, changes, comm))
        own = {method: runs[method][-1] for method in METHODS}
        for method, epochs in epochs_in_turn(
            own, request.out / "runs" / f"seconds-seed{seed}.json", comm
        ).items():
            taken[method].append(epochs)
            rows += _rows(own[method], epochs, method, seed)
    ours = {method: _summarise(runs[method], taken[method]) for method in METHODS}
    title = f"training with and without the learned solver, {request.config.dataset}"
    caption = "means over seeds and epochs, of seconds medians"
    return Outcome(rows, ours, caption, _PAPER, _DIFFERS, _draw(rows, title))


def _rows(found: FinishedRun, epochs: Epochs, method: str, seed: int) -> list[dict[str, Any]]:
    """Epochs of the run with the seconds of those in turn."""
    unknown = dict.fromkeys(("seconds", "solver_seconds"))
    return [
        {"seed": seed, "method": method, **{key: record[key] for key in _KEYS}, **(own or unknown)}
        for record, own in zip_longest(found.epochs, epochs)
    ]


def _summarise(runs: Sequence[FinishedRun], taken: Sequence[Epochs]) -> dict[str, float]:
    """Means over seeds and epochs; of seconds the median over seeds of a typical epoch."""

    def mean(key: str) -> float:
        return spread([spread([record[key] for record in run.epochs])[0] for run in runs])[0]

    test, deviation = spread([run.summary["test_at_best_val"] for run in runs])
    return {
        "test": test,
        "test_std": deviation,
        "seconds/epoch": statistics.median(map(typical_epoch, taken)),
        "forward": mean("evaluations_forward"),
        "validation": mean("evaluations_validation"),
        "adjoint": mean("evaluations_adjoint"),
    }


@style()
def _draw(rows: Sequence[Mapping[str, Any]], title: str) -> Picture:
    picture = Picture(9.0, 5.6)
    for axes, (quantity, label) in zip(picture.subplots(2, 2).flat, _PANELS, strict=True):
        curves = _curves(rows, quantity)
        for place, method in enumerate(METHODS):
            runs = [points for (name, _), points in curves.items() if name == method]
            look = line_style(place, max(map(len, runs)))
            if quantity == "seconds":
                raw = _medians(runs)
                axes.plot(*zip(*raw, strict=True), color=look["color"], alpha=0.3, linewidth=0.8)
                runs = [_running_median(raw)]
            mean_line(axes, runs, **look, label=method)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        whole_ticks(axes.xaxis)
    whole_ticks(picture.axes[2].yaxis)
    for axes in (picture.axes[0], picture.axes[-1]):
        log_ticks(axes.yaxis)
    legend_below(picture)
    set_title(picture, title + band_note(len({row["seed"] for row in rows})))
    return picture


def _medians(runs: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Of several runs, epoch by epoch."""
    found: dict[int, list[float]] = {}
    for epoch, value in chain.from_iterable(runs):
        found.setdefault(epoch, []).append(value)
    return [(epoch, statistics.median(found[epoch])) for epoch in sorted(found)]


def _running_median(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Of as many epochs on either side; fewer at the ends."""
    values, half = [value for _, value in points], _WINDOW // 2
    return [
        (epoch, statistics.median(values[max(0, place - half) : place + half + 1]))
        for place, (epoch, _) in enumerate(points)
    ]


def _curves(
    rows: Sequence[Mapping[str, Any]], quantity: str
) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """(epoch, value) by method and seed; epochs without validation have no metric."""
    curves: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for row in rows:
        value = row.get(quantity)
        if quantity == "evaluations":
            value = row["evaluations_forward"] + row["evaluations_validation"]
        if value is not None:
            curves.setdefault((row["method"], row["seed"]), []).append((row["epoch"], value))
    return curves
