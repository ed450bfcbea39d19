"""What the finished runs of a table come to: a figure for each cell, and who is ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed_ignn.lab.studies.outcome import spread
from distributed_ignn.lab.studies.study_runs import is_finished, read_finished
from distributed_ignn.lab.studies.tables.table_cells import TableCell
from distributed_ignn.lab.studies.tables.table_models import MODELS, OURS

NOT_FINISHED = "not finished yet; the same command without --finished trains it"
NO_TEST = "its test nodes have no metric"


def run_rows(
    cells: Sequence[TableCell], missing: Mapping[TableCell, str]
) -> Iterator[dict[str, Any]]:
    """One row per run, for the CSV; ``missing`` says why there is none.

    Raises:
        UserError: the files of a finished run cannot be read.
    """
    for cell in cells:
        found = read_finished(cell.run).summary if is_finished(cell.run) else {}
        counts = found.get("parameters", {})
        test = found.get("test_at_best_val")
        reason = "" if test is not None else NO_TEST if found else missing.get(cell, NOT_FINISHED)
        yield {
            "dataset": cell.dataset,
            "model": cell.model,
            "seed": cell.seed,
            "metric": found.get("metric"),
            "val": found.get("best_val"),
            "test": test,
            "best_epoch": found.get("best_epoch"),
            "epochs": found.get("epochs"),
            "seconds": found.get("seconds_total"),
            "parameters": sum(counts.values()) if found else None,
            "parameters_model": counts.get("model"),
            "converged": found.get("converged"),
            "rollbacks": found.get("rollbacks"),
            "ranks": found.get("world_size"),
            "missing": reason,
        }


@dataclass(frozen=True, slots=True)
class Standing:
    """A cell of the table: all seeds of a model on a dataset.

    Args:
        mean, deviation: of the test metric, in per cent.
        runs: how many are finished.
        asked: how many there would be with all seeds.
        seconds: of a training, their mean.
        parameters: of model and solver.
        place: 1 for the best of its dataset, 2 for the runner-up, else 0.
    """

    mean: float
    deviation: float
    runs: int
    asked: int
    seconds: float
    parameters: int
    place: int = 0

    @property
    def text(self) -> str:
        """``76.50 ± 0.30``; the mean alone for a single run; how many runs if some are missing."""
        spread = f" ± {self.deviation:.2f}" if self.runs > 1 else ""
        part = f" ({self.runs} of {self.asked})" if self.runs < self.asked else ""
        return f"{self.mean:.2f}{spread}{part}"

    @property
    def shown(self) -> float:
        """The mean as it is printed, by which models are compared."""
        return round(self.mean, 2)


Standings = Mapping[str, Mapping[str, Standing]]
"""By dataset and model."""


def standings(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Standing]]:
    """The cells that have a finished run, of the rows of ``run_rows``."""
    found: dict[str, dict[str, Standing]] = {}
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["model"]), []).append(row)
    for (dataset, model), asked in groups.items():
        runs = [row for row in asked if not row["missing"]]
        if not runs:
            continue
        mean, deviation = spread([100.0 * run["test"] for run in runs])
        seconds, _ = spread([run["seconds"] for run in runs])
        figures = mean, deviation, len(runs), len(asked), seconds
        found.setdefault(dataset, {})[model] = Standing(*figures, int(runs[0]["parameters"]))
    return {dataset: _placed(column) for dataset, column in found.items()}


def _placed(column: Mapping[str, Standing]) -> dict[str, Standing]:
    """The same with places; those that are shown alike share one."""
    shown = sorted({each.shown for each in column.values()}, reverse=True)
    places = {mean: place for place, mean in enumerate(shown[:2], 1)}
    return {model: replace(each, place=places.get(each.shown, 0)) for model, each in column.items()}


def rivals_ahead(found: Standings) -> list[str]:
    """For each dataset with a figure of ours, a line on every rival that is ahead of it."""
    lines = []
    for dataset, column in found.items():
        ours = column.get(OURS)
        if ours is None:
            continue
        name = Path(dataset).stem
        ahead = [m for m, each in column.items() if each.shown > ours.shown]
        for model in sorted(ahead, key=lambda m: -column[m].shown):
            lines.append(f"{name}: {MODELS[model].label} {_comparison(column[model], ours)}")
        if not ahead and len(column) > 1:
            lines.append(f"{name}: nothing is ahead of ours, {ours.text}.")
    return lines


def _comparison(rival: Standing, ours: Standing) -> str:
    gap = rival.shown - ours.shown
    told = f"{rival.text} is ahead of ours, {ours.text}, by {gap:.2f}"
    if min(rival.runs, ours.runs) < 2:
        return f"{told}; one seed has no deviation."
    deviation = max(rival.deviation, ours.deviation)
    within = "within" if gap <= deviation else "by more than"
    return f"{told}, {within} one deviation ({deviation:.2f})."
