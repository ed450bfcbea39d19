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
from rich.table import Table

from distributed_ignn.config import RunConfig
from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.plots import ENDINGS, Picture, save_all_kinds

PROTOCOL = (
    "Validation nodes choose the epoch and every setting; test nodes are read once, at the end. "
    "The paper's authors choose on the test nodes in their released code, which favours theirs."
)


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
    """Write STUDY.csv, STUDY.json and the plot with every ending into the request's folder.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    atomic_write_text(request.out / f"{study}.csv", to_csv(outcome.rows))
    save_all_kinds(outcome.figure, request.out / study)
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


def show_outcome(study: str, request: Request, outcome: Outcome, console: Console) -> None:
    """Print the summary as a table, then the paper's statement, protocol and folder."""
    seeds = ", ".join(map(str, request.seeds))
    names = list(
        dict.fromkeys(k for v in outcome.ours.values() if isinstance(v, Mapping) for k in v)
    )
    title = f"{study}: {request.config.dataset}, seeds {seeds}"
    table = Table(title=title, caption=outcome.caption)
    table.add_column("")
    for name in names or ["value"]:
        table.add_column(name, justify="right")
    for label, value in outcome.ours.items():
        cells = [value.get(n) for n in names] if isinstance(value, Mapping) else [value]
        table.add_row(label, *map(_shown, cells))
    console.print(table)
    console.print(f"Paper: {outcome.paper}")
    console.print(f"Here: {outcome.differs} {PROTOCOL}")
    console.print(f"files: {request.out}/{study}.csv, {', '.join(ENDINGS)}, .json", soft_wrap=True)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A header and a line per row; None, NaN and infinity become empty cells."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_finite(row) for row in rows)
    return buffer.getvalue()


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _finite(value: Any) -> Any:
    """Neither JSON nor a CSV reader has NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
