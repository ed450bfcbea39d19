"""Run the table and print what every case says; ``-k WORD`` takes the cases whose name has WORD."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.inputs.case import ERROR, objections
from tests.inputs.runner import Runner
from tests.inputs.table import TABLES


def main() -> int:
    """0 if every case ends as it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.inputs", description=__doc__)
    parser.add_argument("-k", default="", metavar="WORD")
    word = parser.parse_args().k
    console, failed = Console(highlight=False), 0
    with tempfile.TemporaryDirectory() as folder, Runner(Path(folder) / "cases") as runner:
        for title, cases in TABLES.items():
            table = Table("case", "code", "line", "s", title=title, show_lines=True)
            for case in cases:
                if word not in f"{title} {case.name}":
                    continue
                outcome = runner.run(case)
                wrong = objections(case, outcome)
                failed += bool(wrong)
                said = "\n".join(outcome.lines or [outcome.errors[-500:]]).removeprefix(ERROR)
                said = said.replace(outcome.folder, ".")
                note = "".join(f"\n[red]{escape(text)}[/red]" for text in wrong[:-1])
                seconds = f"{outcome.seconds:.1f}"
                table.add_row(escape(case.name), str(outcome.code), escape(said) + note, seconds)
            if table.row_count:
                console.print(table)
    console.print(f"{failed} cases do not end as they should")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
