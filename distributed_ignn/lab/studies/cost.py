"""Figure 3 (section 5.2): what the learned solver costs in parameters and in training time.

What is compared takes turns by itself: every solver phase is followed by the epochs that it serves.
So the seconds are medians of one run: of its epochs without their phases, and of its phases, each
times how many there are.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.studies.outcome import Outcome, Request, spread
from distributed_ignn.lab.studies.study_runs import FinishedRun, train_run
from distributed_ignn.plots import COLOURS, Picture, legend_below, set_title, style

_PAPER = (
    "Section 5.2 prints: the solver 'requires only about 1% of the original training time'; on "
    "Amazon-all 3 hours for the model against 1.6 minutes for the solver (0.9%). The shares on "
    "Citeseer are in the picture of Figure 3 only."
)
_DIFFERS = (
    "The time is that of the epochs, without reading and dividing the graph. Solver phases and "
    "epochs take turns in each run; the seconds are the median epoch without a phase times the "
    "epochs, and the median phase (of those with as many gradient steps) times the phases."
)


def run(request: Request, comm: Communicator) -> Outcome:
    """Train with the learned solver for each seed and divide up parameters and seconds."""
    rows = []
    for seed in request.seeds:
        changes = {"seed": seed, "forward.method": "neural"}
        found = train_run(request.config, request.out, f"neural-seed{seed}", changes, comm)
        rows.append({"seed": seed, **_costs(found)})
    mean = {key: spread([row[key] for row in rows])[0] for key in rows[0] if key != "seed"}
    return Outcome(
        rows, mean, "means over seeds", _PAPER, _DIFFERS, _draw(rows, request.config.dataset)
    )


def _costs(found: FinishedRun) -> dict[str, float]:
    parameters = found.summary["parameters"]
    learned = parameters["solver"] + parameters["initialiser"]
    model, solver = _typical_seconds(found.epochs)
    return {
        "parameters_model": parameters["model"],
        "parameters_solver": parameters["solver"],
        "parameters_initialiser": parameters["initialiser"],
        "parameter_share": learned / (learned + parameters["model"]),
        "seconds_epochs": model + solver,
        "seconds_solver_training": solver,
        "time_share": solver / (model + solver),
        "test_at_best_val": found.summary["test_at_best_val"],
    }


def _typical_seconds(epochs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Of all epochs without their solver phases, and of all phases, by medians."""
    model = [record["seconds"] - record["solver_seconds"] for record in epochs]
    phases: dict[int, list[float]] = {}  # the first one may be much longer than the others
    for record in epochs:
        if record["solver_seconds"] > 0.0:
            phases.setdefault(record["solver_steps"], []).append(record["solver_seconds"])
    solver = sum(len(alike) * statistics.median(alike) for alike in phases.values())
    return len(model) * statistics.median(model), solver


@style()
def _draw(rows: Sequence[Mapping[str, Any]], dataset: str) -> Picture:
    """Two bars of 100 per cent, with the solver's share as a number beside them."""
    picture = Picture(6.5, 2.0)
    axes = picture.subplots()
    names = {"time_share": "training time", "parameter_share": "parameters"}
    found = [spread([100 * float(row[key]) for row in rows]) for key in names]
    learned = [mean for mean, _ in found]
    axes.barh(range(2), learned, label="learned solver and initialiser", color=COLOURS[1])
    rest = [100 - share for share in learned]
    axes.barh(range(2), rest, left=learned, label="model", color=COLOURS[5], hatch="//", alpha=0.6)
    for place, (mean, deviation) in enumerate(found):
        text = f"{mean:.1f} %" + (f" ± {deviation:.1f}" if deviation > 0.0 else "")
        axes.annotate(text, (100, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(2), names.values())
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share, per cent; beside the bars that of the learned solver")
    legend_below(picture)
    seeds = f", {len(rows)} seeds" if len(rows) > 1 else ""
    set_title(picture, f"cost of the learned solver, {dataset}{seeds}")
    return picture
