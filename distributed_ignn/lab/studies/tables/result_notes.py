"""What is said below a table or figure: how it differs from the paper, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed_ignn import __version__
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import IncompleteError
from distributed_ignn.lab.studies.tables.standings import NO_TEST
from distributed_ignn.lab.studies.tables.table_cells import TableRequest

_ALIKE = (
    "IGNN, IGNN w. AA, IGNN w. NN and IGNN-Solver have one map and one training, and every solve "
    "that converges finds the fixed point of the map, so that they differ in accuracy by the noise "
    "of training, and by epochs in which a solver does not converge; what a solver changes is the "
    "time."
)
_TUNED = (
    "All rows but ours have published settings, which were not tuned here; ours were chosen on "
    "validation nodes, with a neighbour graph of the features on citeseer, acm, blogcatalog and "
    "flickr."
)
_PROTOCOL = (
    "Validation nodes choose the epoch; test nodes are read once, at the end. The paper's authors "
    "choose on the test nodes in their released code, which favours theirs."
)
#: Each as long as the command line does not say otherwise.
_UNLESS_SET = {
    "train.loss": (
        "The paper's implicit rows are trained by its binary cross-entropy, explicit ones and ours "
        "by cross-entropy, unless nodes have several labels."
    ),
    "train.prior_bias": (
        "The paper's implicit rows start their readout at the log-odds of the labels where there "
        "are nine classes or more."
    ),
}
_NN = "IGNN w. NN is the paper's solver without its graph layer."
_OTHERWISE = {
    "reddit": "Reddit is the whole graph; the paper's counts are those of reddit2.",
    "reddit2": (
        "Reddit is PyG's Reddit2, to which the paper's counts belong, with a random split of 60, "
        "20 and 20 per cent of the nodes."
    ),
    "amazon-all": (
        "Amazon-all: of the labelled products 10 per cent are drawn for test and "
        "data.train_fraction (.06 unless the settings say so, as in the paper's counts) for "
        "training; a product has several labels, and the figure is micro-F1."
    ),
    "corafull": (
        "CoraFull's nodes that are in both the training and the test list of the release are left "
        "out of training."
    ),
}


def differences(request: TableRequest) -> list[str]:
    """In what the results that are asked for cannot be the paper's."""
    own = [text for name, text in _OTHERWISE.items() if name in request.datasets]
    told = ", ".join(f"{name} = {value}" for name, value in request.flags.items())
    given = [f"Set for all runs on which it has an effect: {told}."] if told else []
    losses = [text for name, text in _UNLESS_SET.items() if name not in request.flags]
    return [_PROTOCOL, _TUNED, *given, _ALIKE, _NN, *losses, *own]


def gaps(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line on each reason why runs are missing, of the rows of ``run_rows``."""
    found: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in rows:
        if row["missing"]:
            models = found.setdefault((row["dataset"], row["missing"]), {})
            models.setdefault(row["model"], []).append(row["seed"])
    for (dataset, reason), models in found.items():
        count = sum(map(len, models.values()))
        number = "1 run is" if count == 1 else f"{count} runs are"
        names = ", ".join(f"{model} {_seeds(seeds)}" for model, seeds in models.items())
        yield f"{Path(dataset).stem}: {number} missing ({names}): {reason}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}"


def refuse_gaps(
    rows: Sequence[Mapping[str, Any]] | None, comm: Communicator, *, trains: bool
) -> None:
    """End with a line and an exit code of its own where runs are missing; every rank calls it.

    Args:
        rows: of ``run_rows``, on the first rank; None on the others.
        comm: this rank's communicator.
        trains: whether this call has tried to train them.

    Raises:
        IncompleteError: some are (on every rank).
    """
    own = None
    if rows is not None:
        reasons = [row["missing"] for row in rows if row["missing"]]
        own = [len(reasons), len(rows), any(reason != NO_TEST for reason in reasons)]
    missing, count, again = comm.gather_json(own)[0]
    if missing:
        command = "the same command" if trains else "the same command without --finished"
        raise IncompleteError(
            f"{missing} of {count} runs are missing, for the reasons above; the rest is written"
            + (f", and {command} tries them again" if again else "")
        )


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
