"""A table as Markdown, LaTeX and JSON, and on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distributed_ignn.lab.studies.outcome import print_whole
from distributed_ignn.lab.studies.tables.paper_figures import Printed, printed
from distributed_ignn.lab.studies.tables.standings import Standing, Standings
from distributed_ignn.lab.studies.tables.table_models import MODELS
from distributed_ignn.lab.studies.text_tables import NEEDS, escaped, floating, pipes

_GONE = "-"
_MARKDOWN = {0: "%s", 1: "**%s**", 2: "<u>%s</u>"}
_LATEX = {0: "%s", 1: "\\textbf{%s}", 2: "\\underline{%s}"}
_SCREEN = {0: "%s", 1: "[bold]%s[/bold]", 2: "[underline]%s[/underline]"}
"""How the best (1) and the runner-up (2) of a dataset are set."""

_COSTS = "What a training takes, and the parameters of model and solver."

_Entry = tuple[Standing | None, Printed | None]
_Pair = Callable[[_Entry], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class TableText:
    """A table, from which its files are written.

    Args:
        study: its name.
        datasets, models: columns and rows, as they were asked for.
        found: what is finished.
        caption: what the figures are.
        notes: sentences below it.
    """

    study: str
    datasets: Sequence[str]
    models: Sequence[str]
    found: Standings
    caption: str
    notes: Sequence[str]

    def _entry(self, dataset: str, model: str) -> _Entry:
        return self.found.get(dataset, {}).get(model), printed(dataset, model)

    def _rows(self, pair: _Pair) -> Iterator[list[str]]:
        """A label and two texts for each dataset."""
        for model in self.models:
            entries = (self._entry(dataset, model) for dataset in self.datasets)
            yield [MODELS[model].label, *(text for each in entries for text in pair(each))]

    @property
    def _names(self) -> list[str]:
        return [Path(dataset).stem for dataset in self.datasets]

    def markdown(self) -> str:
        """Two tables, of metrics and of what they cost, and the notes."""
        metrics = pipes(self._heads("paper"), self._rows(_metrics(_MARKDOWN)))
        costs = pipes(self._heads("parameters", ": seconds"), self._rows(_costs))
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"# {self.study}\n\n{self.caption}\n\n{metrics}\n{_COSTS}\n\n{costs}\n{notes}"

    def _heads(self, second: str, suffix: str = "") -> list[str]:
        return ["model", *(text for name in self._names for text in (name + suffix, second))]

    def latex(self) -> str:
        """Two floats for a document that loads booktabs; the notes are comments."""
        notes = "".join(f"% {note}\n" for note in self.notes)
        metrics, costs = self._rows(_metrics(_LATEX, escaped)), self._rows(_costs)
        return (
            f"{NEEDS}{notes}"
            f"{self._float(metrics, ('here', 'paper'), self.caption, '')}\n"
            f"{self._float(costs, ('seconds', 'parameters'), _COSTS, '-costs')}"
        )

    def _float(
        self, rows: Iterable[list[str]], below: tuple[str, str], caption: str, suffix: str
    ) -> str:
        names = [f"\\multicolumn{{2}}{{c}}{{{escaped(name)}}}" for name in self._names]
        rules = [f"\\cmidrule(lr){{{2 * k + 2}-{2 * k + 3}}}" for k in range(len(names))]
        lines = [f"{' & '.join(row)} \\\\" for row in rows]
        explicit = sum(MODELS[model].explicit for model in self.models)
        if 0 < explicit < len(lines):
            lines.insert(explicit, "\\midrule")
        content = [
            f" & {' & '.join(names)} \\\\",
            " ".join(rules),
            f"model & {' & '.join(below * len(names))} \\\\",
            "\\midrule",
            *lines,
        ]
        columns = f"l{'rr' * len(names)}"
        return floating(columns, content, caption, f"{self.study}{suffix}")

    def statement(self) -> dict[str, Any]:
        """The cells for JSON, by dataset and model."""
        return {d: {m: _as_json(self._entry(d, m)) for m in self.models} for d in self.datasets}

    def show(self, console: Console) -> None:
        """Print the metrics and the notes."""
        table = Table(title=self.study, caption=escape(self.caption))
        for place, head in enumerate(self._heads("paper")):
            table.add_column(escape(head), justify="right" if place else "left", no_wrap=True)
        for row in self._rows(_metrics(_SCREEN)):
            table.add_row(*row)
        print_whole(table, console)
        for note in self.notes:
            console.print(note, soft_wrap=True, markup=False)


def _metrics(forms: Mapping[int, str], safe: Callable[[str], str] = str) -> _Pair:
    """What makes the two texts of a cell: the figure here, marked, and the paper's."""

    def pair(entry: _Entry) -> tuple[str, str]:
        cell, paper = entry
        here = safe(_GONE) if cell is None else forms[cell.place] % safe(cell.text)
        return here, safe(_GONE if paper is None else paper.digits)

    return pair


def _costs(entry: _Entry) -> tuple[str, str]:
    cell, _ = entry
    return ("", "") if cell is None else (f"{cell.seconds:.1f}", f"{cell.parameters:,}")


def _as_json(entry: _Entry) -> dict[str, Any]:
    cell, paper = entry
    return {
        "here": None if cell is None else asdict(cell),
        "paper": None if paper is None else {"mean": paper.mean, "deviation": paper.deviation},
    }
