"""Tables 1 and 3, and Figures 2 and 6, from the request to the files; every rank calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from distributed_ignn import __version__
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import IncompleteError
from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.lab.studies.outcome import PROTOCOL, to_csv
from distributed_ignn.lab.studies.study_runs import with_settings
from distributed_ignn.lab.studies.tables.cell_training import CellTrainer
from distributed_ignn.lab.studies.tables.ray_cells import train_on_ray
from distributed_ignn.lab.studies.tables.standings import rivals_ahead, run_rows, standings
from distributed_ignn.lab.studies.tables.table_cells import (
    TableCell,
    TableRequest,
    check_folders,
    plan_cells,
)
from distributed_ignn.lab.studies.tables.table_files import TableText
from distributed_ignn.launchers.this_rank import on_this_rank

ALIKE = (
    "IGNN, IGNN w. AA, IGNN w. NN and IGNN-Solver have one map and one training, and every solver "
    "finds the map's own fixed point, so that they differ in accuracy by the noise of training "
    "alone; what a solver changes is the time."
)
_OTHERWISE = {
    "reddit2": (
        "Reddit is PyG's Reddit2, to which the paper's counts belong, with a random split of 60, "
        "20 and 20 per cent of the nodes."
    ),
    "amazon-all": (
        "Amazon-all: 6 per cent of the labelled products are drawn for training and 10 for test, "
        "as in the paper's counts; a product has several labels, and the figure is micro-F1."
    ),
    "corafull": (
        "CoraFull's nodes that are in both the training and the test list of the release are left "
        "out of training."
    ),
}


@dataclass(frozen=True, slots=True)
class PaperResult:
    """One of the paper's results.

    Args:
        size: which of its datasets it is about.
        figure: whether it is a plot over time; else a table.
        runs: the study whose folder its runs are in, by default.
    """

    size: str
    figure: bool
    runs: str


RESULTS: Mapping[str, PaperResult] = {
    "table1": PaperResult("large", False, "table1"),
    "table3": PaperResult("small", False, "table3"),
    "figure2": PaperResult("large", True, "table1"),
    "figure6": PaperResult("small", True, "table3"),
}


def reproduce_result(request: TableRequest, processes: Mapping[str, Any]) -> None:
    """Train what is missing, and write what was asked for.

    Args:
        request: what that is.
        processes: ``workers`` or ``gpus``, where Ray is to train so many runs at a time.

    Raises:
        UserError: a mistake in the request, before anything is trained.
        IncompleteError: everything is written, and runs are missing.
        Stopped: by a signal; the same call goes on.
    """
    cells = plan_cells(request)
    asked = with_settings(cells[0].run, processes)
    if processes and request.train:
        trainer = _trainer(request, cells, Communicator())
        train_on_ray(trainer, asked)
        _conclude(request, trainer, Communicator())
        return

    def act(comm: Communicator) -> None:
        trainer = _trainer(request, cells, comm)
        if request.train:
            trainer.train(comm)
        _conclude(request, trainer, comm)

    on_this_rank(act, asked.device, asked.comm)


def _trainer(request: TableRequest, cells: Sequence[TableCell], comm: Communicator) -> CellTrainer:
    """Make the folder, and look at what is in it; every rank calls it."""

    def prepare() -> None:
        if comm.is_main:
            request.out.mkdir(parents=True, exist_ok=True)
            check_folders(cells)

    comm.together(prepare, doing=f"write to --out {request.out}", way_out="choose another --out")
    return CellTrainer(cells, request.out, comm.is_main)


def _conclude(request: TableRequest, trainer: CellTrainer, comm: Communicator) -> None:
    conclude_table(request, trainer, comm)


def conclude_table(request: TableRequest, trainer: CellTrainer, comm: Communicator) -> None:
    """Write and show a table of what is finished; every rank calls it.

    Raises:
        UserError: a file cannot be read or written.
        IncompleteError: everything is written, and runs are missing.
    """

    def write() -> None:
        if comm.is_main:
            _write(request, trainer)

    comm.together(write, doing=f"write to out = {request.out}")
    refuse_gaps(trainer.cells, trainer.missing, comm)


def _write(request: TableRequest, trainer: CellTrainer) -> None:
    rows = list(run_rows(trainer.cells, trainer.missing))
    found = standings(rows)
    notes = [*differences(request.datasets), *rivals_ahead(found), *gaps(rows)]
    metrics = sorted({row["metric"] for row in rows if row["metric"]}) or ["accuracy"]
    seeds = ", ".join(map(str, request.seeds))
    caption = (
        f"Test {' or '.join(metrics)} in per cent, mean and standard deviation over the seeds "
        f"{seeds}; best in bold, runner-up underlined; the paper's figures beside it."
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


def statement(
    request: TableRequest, notes: Sequence[str], cells: Mapping[str, Any]
) -> dict[str, Any]:
    """What the JSON of a table or figure says.

    Args:
        request: what was asked for.
        notes: sentences on it.
        cells: its content.
    """
    return {
        "study": request.study,
        "version": __version__,
        "datasets": list(request.datasets),
        "models": list(request.models),
        "seeds": list(request.seeds),
        "settings": dict(request.flags),
        "notes": list(notes),
        "cells": cells,
    }


def differences(datasets: Sequence[str]) -> list[str]:
    """In what these results cannot be those of the paper."""
    own = [text for name, text in _OTHERWISE.items() if name in datasets]
    return [PROTOCOL, ALIKE, *own]


def gaps(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line on each reason why runs are missing."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["missing"]:
            found.setdefault((row["dataset"], row["missing"]), []).append(row)
    for (dataset, reason), missing in found.items():
        models = ", ".join(dict.fromkeys(row["model"] for row in missing))
        yield f"{Path(dataset).stem}: {len(missing)} runs are missing ({models}): {reason}"


def refuse_gaps(
    cells: Sequence[TableCell], missing: Mapping[TableCell, str], comm: Communicator
) -> None:
    """End with a line and an exit code of its own where runs are missing; every rank calls it.

    Raises:
        IncompleteError: some are (on every rank).
    """
    absent = sum(bool(row["missing"]) for row in run_rows(cells, missing)) if comm.is_main else 0
    count = comm.gather_json(absent)[0]
    if count:
        raise IncompleteError(
            f"{count} of {len(cells)} runs are missing, for the reasons above; the rest is written, "
            "and the same command tries them again"
        )
