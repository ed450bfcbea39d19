"""The files of a table, and of a figure: what is finished is read, measured, written and shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.lab.studies.outcome import to_csv
from distributed_ignn.lab.studies.study_runs import is_finished
from distributed_ignn.lab.studies.tables.cell_training import CellTrainer
from distributed_ignn.lab.studies.tables.inference import MOST, TOLERANCE, mean_curve, measure
from distributed_ignn.lab.studies.tables.inference_plot import draw_inference
from distributed_ignn.lab.studies.tables.result_notes import (
    differences,
    gaps,
    refuse_gaps,
    statement,
)
from distributed_ignn.lab.studies.tables.standings import rivals_ahead, run_rows, standings
from distributed_ignn.lab.studies.tables.table_cells import TableRequest
from distributed_ignn.lab.studies.tables.table_files import TableText
from distributed_ignn.plots import ENDINGS, save_all_kinds

_TIMES = (
    f"Times are those of this machine: of one forward pass over the graph, or of b(X), the "
    f"evaluations so far and the readout, until the relative residual is {TOLERANCE:g} or after "
    f"{MOST} evaluations."
)

Rows = list[dict[str, Any]]


def write_table(request: TableRequest, trainer: CellTrainer, comm: Communicator) -> None:
    """Write and show a table of what is finished; every rank calls it.

    Raises:
        UserError: a file cannot be read or written.
        IncompleteError: everything is written, and runs are missing.
    """

    def write() -> Rows | None:
        return _write_table(request, trainer) if comm.is_main else None

    refuse_gaps(
        comm.together(write, doing=f"write to --out {request.out}"), comm, trains=request.train
    )


def _write_table(request: TableRequest, trainer: CellTrainer) -> Rows:
    rows = list(run_rows(trainer.cells, trainer.missing))
    found = standings(rows)
    notes = [*differences(request), *rivals_ahead(found), *gaps(rows)]
    metrics = sorted({row["metric"] for row in rows if row["metric"]}) or ["metric"]
    figures = request.averaged("mean and standard deviation")
    caption = (
        f"Test {' or '.join(metrics)} in per cent, {figures}; the best in bold, the runner-up "
        "underlined, the paper's figures beside them."
    )
    text = TableText(request.study, request.datasets, request.models, found, caption, notes)
    start = request.out / request.study
    atomic_write_text(start.with_suffix(".csv"), to_csv(rows))
    atomic_write_text(start.with_suffix(".md"), text.markdown())
    atomic_write_text(start.with_suffix(".tex"), text.latex())
    atomic_write_json(start.with_suffix(".json"), statement(request, notes, text.statement()))
    console = Console(highlight=False)
    text.show(console)
    console.print(f"files: {start}.md, .tex, .csv, .json", soft_wrap=True)
    return rows


def write_figure(request: TableRequest, trainer: CellTrainer, comm: Communicator) -> None:
    """Measure what is finished, and write and show the figure; every rank calls it.

    Raises, Writes: as ``write_table``.
    """
    rows = comm.together(lambda: _finished_rows(trainer) if comm.is_main else None)
    measured = _measure(trainer, comm)
    comm.together(
        lambda: _write_figure(request, rows, measured) if rows is not None else None,
        doing=f"write to --out {request.out}",
    )
    refuse_gaps(rows, comm, trains=request.train)


def _finished_rows(trainer: CellTrainer) -> Rows:
    return list(run_rows(trainer.cells, trainer.missing))


def _measure(trainer: CellTrainer, comm: Communicator) -> Rows:
    """Rows of ``measure`` for every dataset and seed; every rank calls it."""
    own = [number for number, cell in enumerate(trainer.cells) if is_finished(cell.run)]
    groups: dict[tuple[str, int], dict[str, Path]] = {}
    for number in comm.gather_json(own)[0]:  # as the first rank sees them
        cell = trainer.cells[number]
        groups.setdefault((cell.dataset, cell.seed), {})[cell.model] = cell.run.output
    rows: Rows = []
    for (dataset, seed), runs in groups.items():
        trainer.say(f"measuring {Path(dataset).stem}, seed {seed}: {len(runs)} models in turn")
        place = {"dataset": dataset, "seed": seed}
        rows += [place | row for row in measure(runs, comm)]
    return rows


def _write_figure(request: TableRequest, runs: Rows, measured: Rows) -> None:
    curves = _curves(measured)
    notes = [*differences(request), _TIMES, *gaps(runs)]
    console = Console(highlight=False)
    start = request.out / request.study
    if curves:
        metrics = {row["dataset"]: row["metric"] for row in runs if row["metric"]}
        title = f"{request.study}: metric over inference time, {request.averaged('mean')}"
        save_all_kinds(draw_inference(curves, metrics, title), start)
        atomic_write_text(start.with_suffix(".csv"), to_csv(measured))
    atomic_write_json(start.with_suffix(".json"), statement(request, notes, curves))
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)
    kinds = ", ".join((*ENDINGS, ".csv", ".json") if curves else (".json",))
    console.print(f"files: {start}{kinds}", soft_wrap=True)


def _curves(measured: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Milliseconds and metric, by dataset and model; without what has no metric."""
    seeds: dict[tuple[str, str], dict[int, list[Mapping[str, Any]]]] = {}
    for row in measured:
        if math.isfinite(row["metric"]):
            found = seeds.setdefault((row["dataset"], row["model"]), {})
            found.setdefault(row["seed"], []).append(row)
    curves: dict[str, dict[str, Any]] = {}
    for (dataset, model), rows in seeds.items():
        curves.setdefault(dataset, {})[model] = mean_curve(list(rows.values()))
    return curves
