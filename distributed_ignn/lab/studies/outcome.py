"""What a study is asked and what it answers, and how the answer is shown and stored."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distributed_ignn.config import RunConfig
from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.lab.studies.text_tables import NEEDS, escaped, floating, pipes
from distributed_ignn.plots import ENDINGS, Picture, save_all_kinds

PROTOCOL = (
    "Validation nodes choose the epoch and every setting; test nodes are read once, at the end. "
    "The paper's authors choose on the test nodes in their released code, which favours theirs."
)


_WIDEST = 1000  # characters


@dataclass(frozen=True, slots=True)
class Request:
    """What a study works on.

    Args:
        config: settings of its runs; seed and output are the study's own.
        seeds: one run, or one set of runs, for each.
        out: folder for its files and runs.
    """

    config: RunConfig
    seeds: tuple[int, ...]
    out: Path


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a study found.

    Args:
        rows: of the CSV, all with the same keys.
        ours: the summary, by name.
        caption: what the numbers of ``ours`` are.
        paper: what the paper states on the same question.
        differs: what is different here from the paper's setting.
        figure: the plot.
    """

    rows: Sequence[Mapping[str, Any]]
    ours: Mapping[str, Any]
    caption: str
    paper: str
    differs: str
    figure: Picture


def write_outcome(study: str, request: Request, outcome: Outcome) -> None:
    """Write the rows as CSV, what they come to as Markdown, LaTeX and JSON, and the plot.

    Into the request's folder, under the name of the study; the plot with every ending.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    atomic_write_text(request.out / f"{study}.csv", to_csv(outcome.rows))
    save_all_kinds(outcome.figure, request.out / study)
    _write_tables(study, request, outcome)
    statement = {
        "study": study,
        "dataset": request.config.dataset,
        "seeds": list(request.seeds),
        "protocol": PROTOCOL,
        "paper": outcome.paper,
        "differs": outcome.differs,
        "caption": outcome.caption,
        "ours": _finite(outcome.ours),
        "settings": request.config.model_dump(mode="json", exclude={"seed", "output"}),
    }
    atomic_write_json(request.out / f"{study}.json", statement)


def _write_tables(study: str, request: Request, outcome: Outcome) -> None:
    """The summary as STUDY.md and STUDY.tex."""
    names, rows = _summary(outcome)
    header = ["", *names]
    notes = [f"Paper: {outcome.paper}", f"Here: {outcome.differs} {PROTOCOL}"]
    table, told = pipes(header, rows), "".join(f"- {note}\n" for note in notes)
    title = _title(study, request)
    atomic_write_text(
        request.out / f"{study}.md", f"# {title}\n\n{outcome.caption}\n\n{table}\n{told}"
    )
    lines = [" & ".join(map(escaped, row)) + " \\\\" for row in (header, *rows)]
    lines.insert(1, "\\midrule")
    caption = f"{title}. {outcome.caption}"
    comments = "".join(f"% {note}\n" for note in notes)
    made = floating(f"l{'r' * len(names)}", lines, caption, study)
    atomic_write_text(request.out / f"{study}.tex", f"{NEEDS}{comments}{made}")


def _title(study: str, request: Request) -> str:
    return f"{study}: {request.config.dataset}, seeds {', '.join(map(str, request.seeds))}"


def _summary(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Names of the figures, and a row of them for everything that was compared."""
    parts = [value for value in outcome.ours.values() if isinstance(value, Mapping)]
    names = list(dict.fromkeys(name for part in parts for name in part))
    rows = []
    for label, value in outcome.ours.items():
        cells = [value.get(n) for n in names] if isinstance(value, Mapping) else [value]
        rows.append([label, *map(_shown, cells)])
    return names or ["value"], rows


def show_outcome(study: str, request: Request, outcome: Outcome, console: Console) -> None:
    """Print the summary as a table, then the paper's statement, protocol and folder."""
    names, rows = _summary(outcome)
    table = Table(title=escape(_title(study, request)), caption=escape(outcome.caption))
    table.add_column("")
    for name in names:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    print_whole(table, console)
    console.print(f"Paper: {outcome.paper}", markup=False)
    console.print(f"Here: {outcome.differs} {PROTOCOL}", markup=False)
    endings = ", ".join((".csv", ".md", ".tex", *ENDINGS, ".json"))
    console.print(f"files: {request.out}/{study}{endings}", soft_wrap=True, markup=False)


def print_whole(table: Table, console: Console) -> None:
    """Print a table as wide as it is: cells that are cut tell nothing."""
    wide = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    Console(file=console.file, width=max(wide, console.width), highlight=False).print(table)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A header and a line per row; None, NaN and infinity become empty cells."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_finite(row) for row in rows)
    return buffer.getvalue()


def spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 of a single value) of what is there; NaN of nothing."""
    found = [value for value in values if value is not None]
    if not found:
        return math.nan, 0.0
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0


def _finite(value: Any) -> Any:
    """Neither JSON nor a CSV reader has NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
