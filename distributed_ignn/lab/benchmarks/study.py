"""The result of a study: figures against baselines, and every measured row for files and plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from distributed_ignn.files import atomic_write_text
from distributed_ignn.lab.benchmarks.interleaving import Report

if TYPE_CHECKING:
    from distributed_ignn.plots import Picture

Tell = Callable[[str], None]
"""Told what has just been finished; a study can take minutes."""


def tell_nobody(text: str) -> None:
    """The ``Tell`` of a study that runs silently."""


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What a study found.

    Args:
        report: settings and figures.
        rows: everything measured, with the same keys each.
        tables: what is shown.
        notes: lines shown below the tables.
        draw: makes the plot.
    """

    report: Report
    rows: tuple[Mapping[str, Any], ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    draw: Callable[[], Picture]

    def show(self, console: Console) -> None:
        """Print the tables, the notes and what was measured on."""
        for table in self.tables:
            console.print(table)
        for note in self.notes:
            console.print(note, soft_wrap=True)
        settings = self.report.settings.items()
        console.print("  ".join(f"{key}={value}" for key, value in settings), soft_wrap=True)

    def write_csv(self, path: Path) -> None:
        """One line per row; a value that is not there (nan) is empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, text.getvalue())

    def write_plot(self, path: Path) -> None:
        """The plot, as ``save_picture`` has it."""
        from distributed_ignn.plots import save_picture  # matplotlib, for plots alone

        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(self.draw(), path)


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value
