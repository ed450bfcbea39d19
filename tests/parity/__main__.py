"""Print how far ranks are from one process, for every kind of model, as docs/kinds.md shows it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.cells import CELLS
from distributed_ignn.models.kinds import KINDS
from tests.parity.cases import sum_reports, worst_differences
from tests.parity.kind_cases import report_models
from tests.ranks import run_ranks

LABELS = {kind: f"`{kind}`" for kind in KINDS} | {
    cell: f"`implicit`, cell `{cell}`" for cell in CELLS
}
"""Rows of the table."""

_RANKS = (2, 4)
# an implicit model's report has the fixed point in the place of the logits that are read from it
_COLUMNS = {
    "logits or fixed point": ("logits", "fixed point"),
    "gradients": ("grad",),
    "losses": ("losses",),
    "weights": ("trained",),
}
Worst = Mapping[tuple[str, str], float]


def table(worst: Mapping[int, Worst]) -> str:
    """In Markdown, of the differences by number of ranks."""
    rows = [["kind", *_COLUMNS]]
    for kind, label in LABELS.items():
        cells = (
            " / ".join(_largest(each, kind, names) for each in worst.values())
            for names in _COLUMNS.values()
        )
        rows.append([label, *cells])
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], f"|{'---|' * len(rows[0])}\n", *lines[1:]])


def _largest(worst: Worst, kind: str, names: tuple[str, ...]) -> str:
    """One digit; 0 where all bits are the same."""
    found = max(
        value
        for (case, name), value in worst.items()
        if case.partition("/")[2] == kind and name.startswith(names)
    )
    return f"{found:.0e}" if found else "0"


def _of_solvers(worst: Worst) -> str:
    found = max(value for (_, name), value in worst.items() if name.startswith("solver"))
    return f"{found:.0e}"


def main() -> None:
    """On 2 and 4 ranks, in float64; takes a minute or two."""
    argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__).parse_args()
    torch.set_num_threads(1)
    whole = report_models(Communicator())
    worst = {
        ranks: worst_differences(sum_reports(run_ranks(report_models, ranks, timeout=400)), whole)
        for ranks in _RANKS
    }
    print(table(worst))
    print(f"weights of learned solvers: {' / '.join(map(_of_solvers, worst.values()))}")


if __name__ == "__main__":
    main()
