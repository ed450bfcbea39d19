"""Predictions as a file: parquet, CSV or npz, by its ending.

Each has a row for every node: its id, the likeliest class (by its name, if it has one), or of
multi-label data those above one half, and the probability of each class. How close the equilibrium
was found goes with them as JSON: under the key ``distributed_ignn`` of a parquet file's metadata,
as the array of that name in an npz file, in ``FILE.json`` beside a CSV file.

Letters: n nodes, C classes.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text, sync, temporary_sibling
from distributed_ignn.runs.prediction import Prediction

METADATA_KEY = "distributed_ignn"

Writer = Callable[[Path, Prediction], None]


def write_predictions(path: Path, found: Prediction) -> None:
    """Write a file that takes the place of an older one once it is complete.

    Args:
        path: of the file; folders above it are made.
        found: what was predicted.

    Raises:
        UserError: the ending is of no known kind.
        OSError: the file cannot be written.
    """
    write = WRITERS[checked_ending(path).suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.json")
    if path.suffix == ".csv":
        beside.unlink(missing_ok=True)  # it must not outlive the table that it is about
    temporary = temporary_sibling(path)
    try:
        write(temporary, found)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if path.suffix == ".csv":
        atomic_write_text(beside, _quality(found) + "\n")


def checked_ending(path: Path) -> Path:
    """The path, if a file of its kind can be written.

    Raises:
        UserError: it cannot.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"out = {path} says no kind of file; end it in {', '.join(WRITERS)}")
    return path


def _quality(found: Prediction) -> str:
    return json.dumps(found.quality())


def _write_parquet(path: Path, found: Prediction) -> None:
    probability = found.probabilities.float()
    nodes, classes = probability.shape
    flat = pa.array(probability.reshape(-1).numpy())
    columns = {
        "node": pa.array(range(nodes), pa.int64()),
        "prediction": _labels(probability, found),
        "probabilities": pa.FixedSizeListArray.from_arrays(flat, classes),
    }
    pq.write_table(pa.table(columns, metadata={METADATA_KEY: _quality(found)}), path)


def _labels(probability: Tensor, found: Prediction) -> pa.Array:
    """The likeliest class, or the list of classes above one half."""
    if not found.multilabel:
        return pa.array(_named(probability.argmax(dim=1).numpy(), found))
    return pa.array(_above_half(probability), pa.list_(pa.int64()))


def _named(classes: np.ndarray, found: Prediction) -> np.ndarray:
    """Names in the place of the numbers of classes, where there are names."""
    return np.array(found.class_names)[classes] if found.class_names else classes


def _above_half(probability: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in probability > 0.5]


def _write_csv(path: Path, found: Prediction) -> None:
    """Classes of multi-label data stand in one cell, with a space between them."""
    probability = found.probabilities.float()
    if found.multilabel:
        labels = [" ".join(map(str, chosen)) for chosen in _above_half(probability)]
    else:
        labels = list(map(str, _named(probability.argmax(dim=1).numpy(), found)))
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        columns = (f"probability_{c}" for c in found.class_names or range(probability.shape[1]))
        rows.writerow(["node", "prediction", *columns])
        for node, (label, row) in enumerate(zip(labels, probability, strict=True)):
            rows.writerow([node, label, *(f"{value:.9g}" for value in row.tolist())])


def _write_npz(path: Path, found: Prediction) -> None:
    """``prediction`` is int64 [n] or names [n], or bool [n, C] of multi-label data."""
    probability = found.probabilities.float()
    chosen = probability > 0.5 if found.multilabel else probability.argmax(dim=1)
    arrays = {
        "node": np.arange(probability.shape[0]),
        "prediction": chosen.numpy() if found.multilabel else _named(chosen.numpy(), found),
        "probabilities": probability.numpy(),
        METADATA_KEY: np.array(_quality(found)),
    }
    with path.open("wb") as file:  # a name would be given the ending
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


WRITERS: Mapping[str, Writer] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".npz": _write_npz,
}
"""How a file is written, by its ending."""
