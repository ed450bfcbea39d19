"""Figure 8 (appendix D.3): training with the learned solver and without it, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.studies.outcome import Outcome, Request, spread
from distributed_ignn.lab.studies.study_runs import FinishedRun, train_run

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
_PANELS = (
    ("loss", "training loss"),
    ("val_metric", "validation metric"),
    ("evaluations", "map evaluations, forward and validation"),
    ("seconds", "seconds per epoch"),
)
_PAPER = (
    "Appendix D.3 on Amazon-all: the IGNN starts fast, its time per epoch rises sharply and stays "
    "high after about 100 epochs because the solve reaches its step limit; IGNN-Solver is "
    "'significantly lower' and stable in training and inference time. The seconds are in the "
    "picture of Figure 8 only."
)
_DIFFERS = (
    "Map evaluations per epoch stand beside the seconds; the backward solve uses the same method "
    "in all runs, and every solve starts from the last epoch's solution."
)


def run(request: Request, comm: Communicator) -> Outcome:
    """Train once with each forward solver for each seed; the other settings are equal."""
    rows: list[dict[str, Any]] = []
    ours: dict[str, dict[str, float]] = {}
    for method in METHODS:
        runs = []
        for seed in request.seeds:
            changes = {"seed": seed, "forward.method": method}
            name = f"{method}-seed{seed}"
            runs.append(train_run(request.config, request.out, name, changes, comm))
            rows += _rows(runs[-1], method, seed)
        ours[method] = _summarise(runs)
    title = f"training with and without the learned solver, {request.config.dataset}"
    return Outcome(rows, ours, "means over seeds and epochs", _PAPER, _DIFFERS, _draw(rows, title))


def _rows(found: FinishedRun, method: str, seed: int) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "method": method, **{key: record[key] for key in _KEYS}}
        for record in found.epochs
    ]


def _summarise(runs: Sequence[FinishedRun]) -> dict[str, float]:
    """Means over seeds; seconds and evaluations are means over epochs too."""

    def mean(key: str) -> float:
        return spread([spread([record[key] for record in run.epochs])[0] for run in runs])[0]

    test, deviation = spread([run.summary["test_at_best_val"] for run in runs])
    return {
        "test": test,
        "test_std": deviation,
        "seconds/epoch": mean("seconds"),
        "forward": mean("evaluations_forward"),
        "validation": mean("evaluations_validation"),
        "adjoint": mean("evaluations_adjoint"),
    }


def _draw(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    figure = Figure(figsize=(11, 7))
    for axes, (quantity, label) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for (method, seed), points in _curves(rows, quantity).items():
            first = seed == rows[0]["seed"]
            axes.plot(
                *zip(*points, strict=True),
                color=f"C{METHODS.index(method)}",
                label=method if first else None,
                linewidth=1.0,
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    figure.axes[-1].set_yscale("log")
    figure.axes[0].legend(title="forward solver")
    figure.suptitle(title)
    figure.tight_layout()
    return figure


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
