"""Predictions as a file: parquet, CSV or npz, by its ending; and embeddings in the same forms.

Each has a row for every node: its id (that of the user's own table, if it has some), the likeliest
class (by its name, if it has one), or of multi-label data those above one half, and the probability
of each class. How close the equilibrium was found goes with them as JSON: under the key
``distributed_ignn`` of a parquet file's metadata, as the array of that name in an npz file, in
``FILE.json`` beside a CSV file.

The rows come in blocks from all ranks, and the first rank writes each of them before it asks for
the next: the whole table is in no process.

Letters: n nodes, C classes, D hidden width, r rows of a block, w numbers in a cell.
"""

from __future__ import annotations

import csv
import itertools
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
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text, sync, temporary_sibling
from distributed_ignn.graph.node_ids import NodeIds
from distributed_ignn.long_steps import long_step
from distributed_ignn.runs.node_rows import NodeRows
from distributed_ignn.runs.prediction import Prediction
from distributed_ignn.runs.spool.places import Places

METADATA_KEY = "distributed_ignn"


@dataclass(frozen=True, slots=True)
class Column:
    """What a file says of every node, beside its id.

    Args:
        name: of the column, or of the array.
        dtype: of a value.
        heads: of the columns of a CSV file, one for each of w numbers; none where there is one
            value.
        chosen: whether it is said of each class if a node has it, bool [r, w].
    """

    name: str
    dtype: np.dtype[Any]
    heads: tuple[str, ...] = ()
    chosen: bool = False

    @property
    def arrow(self) -> Any:
        """Its type in a parquet file."""
        if self.chosen:
            return pa.list_(pa.int64())
        single = pa.string() if self.dtype.kind == "U" else pa.from_numpy_dtype(self.dtype)
        return pa.list_(single, len(self.heads)) if self.heads else single


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some nodes, in order.

    Args:
        first: number of the first.
        values: of each column, [r] or [r, w].
    """

    first: int
    values: tuple[np.ndarray[Any, Any], ...]

    @property
    def last(self) -> int:
        """The number after the last one's."""
        return self.first + len(self.values[0])


@dataclass(frozen=True, slots=True)
class Table:
    """What is to be written, apart from its rows.

    Args:
        nodes: n.
        columns: beside ``node``.
        quality: as JSON.
        ids: of the nodes, if they are not their numbers.
    """

    nodes: int
    columns: tuple[Column, ...]
    quality: str
    ids: NodeIds | None = None

    @property
    def id_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int64) if self.ids is None else self.ids.dtype

    def ids_of(self, first: int, last: int) -> Any:
        """What the nodes [first, last) are called."""
        return range(first, last) if self.ids is None else self.ids.some(first, last)


Writer = Generator[None, Block | None, None]
"""Writes a file: it is sent all blocks in order and then None, once or several times."""


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file.

    Args:
        write: a new file at a path.
        by_column: whether that goes through all blocks once for each column.
    """

    write: Callable[[Path, Table], Writer]
    by_column: bool = False


def write_predictions(
    path: Path, found: Prediction, rows: NodeRows, ids: NodeIds | None = None
) -> None:
    """Write a file that takes the place of an older one once it is complete; every rank calls it.

    Args:
        path: of the file; folders above it are made.
        found: what was predicted, with the rows of any nodes.
        rows: the logits of all nodes.
        ids: of the nodes, if they are not their numbers; those of the first rank count.

    Raises:
        UserError: the ending is of no known kind, or the file cannot be written (on every rank).
    """
    names = np.array(found.class_names or [""])
    classes = found.class_names or range(rows.num_columns)
    label = np.dtype(bool if found.multilabel else np.int64)
    if found.class_names and not found.multilabel:
        label = names.dtype
    heads = tuple(f"probability_{c}" for c in classes)
    columns = (
        Column("prediction", label, ("",) * rows.num_columns * found.multilabel, found.multilabel),
        Column("probabilities", np.dtype(np.float32), heads),
    )

    def values(logits: Tensor) -> tuple[np.ndarray[Any, Any], ...]:
        probability = replace(found, logits=logits).probabilities.float()
        if found.multilabel:
            return (probability > 0.5).numpy(), probability.numpy()
        likeliest = probability.argmax(dim=1).numpy()
        return names[likeliest] if label.kind == "U" else likeliest, probability.numpy()

    table = Table(rows.num_nodes, columns, json.dumps(found.quality()), ids)
    _write(path, table, rows, values)


def write_embeddings(
    path: Path, found: Prediction, rows: NodeRows, ids: NodeIds | None = None
) -> None:
    """As ``write_predictions``: ids and what stands for each node inside the model, [n, D].

    Args:
        path, found, ids: see there.
        rows: those of all nodes, in the number format of the run: the equilibrium Z*, or the last
            hidden layer of an explicit kind, see ``NodeModel.embeddings``.

    Raises:
        UserError: see there.
    """
    dtype = np.dtype(np.float64 if rows.dtype == torch.float64 else np.float32)
    heads = tuple(f"embedding_{d}" for d in range(rows.num_columns))
    table = Table(
        rows.num_nodes, (Column("embedding", dtype, heads),), json.dumps(found.quality()), ids
    )
    _write(path, table, rows, lambda state: (state.numpy().astype(dtype, copy=False),))


def _write(
    path: Path,
    table: Table,
    rows: NodeRows,
    values: Callable[[Tensor], tuple[np.ndarray[Any, Any], ...]],
) -> None:
    kind, comm = FORMATS[checked_ending(path).suffix], rows.comm
    passes = len(table.columns) if kind.by_column else 1
    file = _GrowingFile(path, kind, table) if comm.is_main else None

    def together(action: Callable[[_GrowingFile], None]) -> None:
        comm.together(lambda: action(file) if file is not None else None, doing=f"write {path}")

    try:
        together(_GrowingFile.begin)
        with _told(file, passes * rows.num_nodes) as advance:
            for _ in range(passes):
                for first, numbers in rows:
                    block = Block(first, values(numbers))
                    together(lambda own, block=block: own.put(block))  # type: ignore[misc]
                    advance(numbers.shape[0])
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
    ids = Column("node", table.id_dtype)
    kinds = {column.name: column.arrow for column in (ids, *table.columns)}
    schema = pa.schema(kinds.items(), metadata={METADATA_KEY: table.quality})
    with pq.ParquetWriter(path, schema) as file:
        while (block := (yield)) is not None:
            arrays = [pa.array(table.ids_of(block.first, block.last), ids.arrow)]
            for column, values in zip(table.columns, block.values, strict=True):
                if column.chosen:
                    arrays.append(pa.array(_chosen(values), column.arrow))
                elif column.heads:
                    flat = pa.array(values.reshape(-1))
                    arrays.append(pa.FixedSizeListArray.from_arrays(flat, len(column.heads)))
                else:
                    arrays.append(pa.array(values, column.arrow))
            file.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _chosen(values: np.ndarray[Any, Any]) -> list[list[int]]:
    """The classes of each node."""
    return [np.flatnonzero(row).tolist() for row in values]


def _write_csv(path: Path, table: Table) -> Writer:
    """Classes of multi-label data stand in one cell, with a space between them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        single = [not column.heads or column.chosen for column in table.columns]
        heads = [
            (column.name,) if one else column.heads
            for column, one in zip(table.columns, single, strict=True)
        ]
        rows.writerow(["node", *itertools.chain.from_iterable(heads)])
        while (block := (yield)) is not None:
            cells = [
                _cells(column, values)
                for column, values in zip(table.columns, block.values, strict=True)
            ]
            for node, *row in zip(table.ids_of(block.first, block.last), *cells, strict=True):
                rows.writerow([node, *itertools.chain.from_iterable(row)])


def _cells(column: Column, values: np.ndarray[Any, Any]) -> Iterator[list[Any]]:
    """The cells of a column, or of its w columns, row by row; numbers with all of their digits."""
    if column.chosen:
        return ([" ".join(map(str, classes))] for classes in _chosen(values))
    if not column.heads:
        return ([value] for value in values.tolist())
    digits = 17 if column.dtype == np.float64 else 9
    return ([f"{value:.{digits}g}" for value in row.tolist()] for row in values)


def _write_npz(path: Path, table: Table) -> Writer:
    """``prediction`` is int64 [n] or names [n], or bool [n, C] of multi-label data."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with _member(archive, "node", table.id_dtype, (table.nodes,)) as put:
            for first in range(0, table.nodes, _IDS):
                last = min(first + _IDS, table.nodes)
                put(np.array(table.ids_of(first, last), table.id_dtype))
        for place, column in enumerate(table.columns):
            shape = (table.nodes, len(column.heads)) if column.heads else (table.nodes,)
            with _member(archive, column.name, column.dtype, shape) as put:
                while (block := (yield)) is not None:
                    put(block.values[place].astype(column.dtype, copy=False))
        quality = np.array(table.quality)
        with _member(archive, METADATA_KEY, quality.dtype, ()) as put:
            put(quality)


_IDS = 2**20  # written at once


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
    ".npz": Format(_write_npz, by_column=True),
}
"""How a file is written, by its ending."""
