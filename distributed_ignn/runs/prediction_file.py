"""Predictions as a file: parquet, CSV or npz, by its ending.

Each has a row for every node: its id, the likeliest class (by its name, if it has one), or of
multi-label data those above one half, and the probability of each class. How close the equilibrium
was found goes with them as JSON: under the key ``distributed_ignn`` of a parquet file's metadata,
as the array of that name in an npz file, in ``FILE.json`` beside a CSV file.

The rows come in blocks from all ranks, and the first rank writes each of them before it asks for
the next: the whole table is in no process.

Letters: n nodes, C classes, r rows of a block.
"""

from __future__ import annotations

import csv
import json
import os
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text, sync, temporary_sibling
from distributed_ignn.long_steps import long_step
from distributed_ignn.runs.node_rows import NodeRows
from distributed_ignn.runs.prediction import Prediction
from distributed_ignn.runs.spool.places import Places

METADATA_KEY = "distributed_ignn"


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some nodes, in order, and what is predicted for them.

    Args:
        first: id of the first.
        probability: float32 [r, C].
        multilabel: whether a node may have several labels.
        names: of the classes, where they have some and a node has one.
    """

    first: int
    probability: Tensor
    multilabel: bool
    names: tuple[str, ...] = ()

    @property
    def nodes(self) -> range:
        """Their ids."""
        return range(self.first, self.first + self.probability.shape[0])

    @property
    def chosen(self) -> Tensor:
        """The likeliest class, int64 [r]; or which classes are above one half, bool [r, C]."""
        return self.probability > 0.5 if self.multilabel else self.probability.argmax(dim=1)

    def labels(self) -> list[Any]:
        """The likeliest class of each node, or the list of its classes above one half."""
        if not self.multilabel:
            return [self.names[c] if self.names else c for c in self.chosen.tolist()]
        return [row.nonzero()[:, 0].tolist() for row in self.chosen]


@dataclass(frozen=True, slots=True)
class Table:
    """What is to be written, apart from its rows.

    Args:
        nodes, classes: n and C.
        multilabel: whether a node may have several labels.
        quality: as JSON.
        names: of the classes, if they have some.
    """

    nodes: int
    classes: int
    multilabel: bool
    quality: str
    names: tuple[str, ...] = ()


Writer = Generator[None, Block | None, None]
"""Writes a file: it is sent all blocks in order and then None, once or several times."""


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file.

    Args:
        write: a new file at a path.
        passes: how often that goes through all blocks.
    """

    write: Callable[[Path, Table], Writer]
    passes: int = 1


def write_predictions(path: Path, found: Prediction, rows: NodeRows) -> None:
    """Write a file that takes the place of an older one once it is complete; every rank calls it.

    Args:
        path: of the file; folders above it are made.
        found: what was predicted, with the rows of any nodes.
        rows: the logits of all nodes.

    Raises:
        UserError: the ending is of no known kind, or the file cannot be written (on every rank).
    """
    kind, comm = FORMATS[checked_ending(path).suffix], rows.comm
    quality = json.dumps(found.quality())
    names = found.class_names
    table = Table(rows.num_nodes, rows.num_columns, found.multilabel, quality, names)
    file = _GrowingFile(path, kind, table) if comm.is_main else None

    def together(action: Callable[[_GrowingFile], None]) -> None:
        comm.together(lambda: action(file) if file is not None else None, doing=f"write {path}")

    try:
        together(_GrowingFile.begin)
        with _told(file, kind.passes * rows.num_nodes) as advance:
            for _ in range(kind.passes):
                for first, logits in rows:
                    probability = replace(found, logits=logits).probabilities.float()
                    block = Block(first, probability, found.multilabel, names)
                    together(lambda own, block=block: own.put(block))  # type: ignore[misc]
                    advance(logits.shape[0])
                together(lambda own: own.put(None))
        together(_GrowingFile.finish)
    finally:
        if file is not None:
            file.clear()


def push_predictions(path: Path, places: Places) -> None:
    """Send a file that is written to where its place is a URL, the table last.

    Raises:
        UserError: it cannot be sent.
    """
    beside = _about(path)
    if path.suffix == ".csv":
        places.push(beside)
    places.push(path)


def _about(path: Path) -> Path:
    """What says of a CSV file how close the equilibrium was found."""
    return path.with_name(f"{path.name}.json")


def checked_ending(path: Path) -> Path:
    """The path, if a file of its kind can be written.

    Raises:
        UserError: it cannot.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"out = {path} says no kind of file; end it in {', '.join(FORMATS)}")
    return path


class _GrowingFile:
    """The first rank's file, under a name of its own until it is complete."""

    def __init__(self, path: Path, kind: Format, table: Table) -> None:
        self.path = path
        self._table = table
        self._temporary = temporary_sibling(path)
        self._writer = kind.write(self._temporary, table)

    @property
    def _beside(self) -> Path:
        return _about(self.path)

    def begin(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.suffix == ".csv":
            self._beside.unlink(missing_ok=True)  # it must not outlive the table that it is about
        next(self._writer)

    def put(self, block: Block | None) -> None:
        with suppress(StopIteration):  # after the last one
            self._writer.send(block)

    def finish(self) -> None:
        sync(self._temporary)
        os.replace(self._temporary, self.path)
        if self.path.suffix == ".csv":
            atomic_write_text(self._beside, self._table.quality + "\n")

    def clear(self) -> None:
        """Leave nothing of a file that is not complete."""
        with suppress(OSError):  # as where the disk is full, which has been said
            self._writer.close()
        self._temporary.unlink(missing_ok=True)


@contextmanager
def _told(file: _GrowingFile | None, total: int) -> Iterator[Callable[[int], None]]:
    """Progress where the file is written."""
    if file is None:
        yield lambda amount: None
        return
    with long_step(f"writing {file.path.name}", total, "rows") as told:
        yield told.advance


def _write_parquet(path: Path, table: Table) -> Writer:
    single = pa.string() if table.names else pa.int64()
    label = pa.list_(pa.int64()) if table.multilabel else single
    columns = {
        "node": pa.int64(),
        "prediction": label,
        "probabilities": pa.list_(pa.float32(), table.classes),
    }
    schema = pa.schema(columns.items(), metadata={METADATA_KEY: table.quality})
    with pq.ParquetWriter(path, schema) as file:
        while (block := (yield)) is not None:
            flat = pa.array(block.probability.reshape(-1).numpy())
            arrays = [
                pa.array(block.nodes, pa.int64()),
                pa.array(block.labels(), label),
                pa.FixedSizeListArray.from_arrays(flat, table.classes),
            ]
            file.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _write_csv(path: Path, table: Table) -> Writer:
    """Classes of multi-label data stand in one cell, with a space between them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        columns = (f"probability_{c}" for c in table.names or range(table.classes))
        rows.writerow(["node", "prediction", *columns])
        while (block := (yield)) is not None:
            labels = block.labels()
            if table.multilabel:
                labels = [" ".join(map(str, chosen)) for chosen in labels]
            for node, label, row in zip(block.nodes, labels, block.probability, strict=True):
                rows.writerow([node, label, *(f"{value:.9g}" for value in row.tolist())])


def _write_npz(path: Path, table: Table) -> Writer:
    """``prediction`` is int64 [n] or names [n], or bool [n, C] of multi-label data."""
    wide = (table.nodes, table.classes)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with _member(archive, "node", np.dtype(np.int64), (table.nodes,)) as put:
            for first in range(0, table.nodes, _IDS):
                put(np.arange(first, min(first + _IDS, table.nodes)))
        single = np.array(table.names).dtype if table.names else np.dtype(np.int64)
        label = np.dtype(bool) if table.multilabel else single
        shape = wide if table.multilabel else (table.nodes,)
        with _member(archive, "prediction", label, shape) as put:
            while (block := (yield)) is not None:
                put(block.chosen.numpy() if table.multilabel else np.array(block.labels(), label))
        with _member(archive, "probabilities", np.dtype(np.float32), wide) as put:
            while (block := (yield)) is not None:
                put(block.probability.numpy())
        quality = np.array(table.quality)
        with _member(archive, METADATA_KEY, quality.dtype, ()) as put:
            put(quality)


_IDS = 2**22  # written at once


@contextmanager
def _member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[Callable[[np.ndarray[Any, Any]], None]]:
    """An array of an npz file, written piece by piece."""
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, about)
        yield lambda piece: _write_all(file, piece)


def _write_all(file: Any, piece: np.ndarray[Any, Any]) -> None:
    file.write(np.ascontiguousarray(piece).tobytes())


FORMATS: Mapping[str, Format] = {
    ".parquet": Format(_write_parquet),
    ".csv": Format(_write_csv),
    ".npz": Format(_write_npz, passes=2),
}
"""How a file is written, by its ending."""
