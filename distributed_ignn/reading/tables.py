"""Tables of numbers and words: text with a separator, packed by gzip or not, and Parquet.

Arrow reads both, in blocks. Before it does, the size that a file declares is compared with the size
that it has; what Arrow objects to becomes one ValueError.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from distributed_ignn.reading.archives import Limits, open_gzip
from distributed_ignn.reading.plain_files import in_one_line, lines_of, open_plain

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
_HEAD_BYTES = 2**16
_SEPARATORS = "\t,; "
_PACKINGS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REMARKS = ("#", "%")
_LARGEST_TEXT = 2**38
_CELL = 8  # bytes of a number
_BLOCK_BYTES = 2**24
"""Read at once; the longest row must fit in."""
_PIECE_ROWS = 2**16
_MOST_COLUMNS = 2**16  # Arrow takes 8 kB for each, however few rows there are

Choice = Callable[[Sequence[str]], Collection[str]]
"""Some of the names of columns."""


@contextmanager
def open_text(path: Path, limit: int = _LARGEST_TEXT) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if it is packed by gzip.

    Args:
        path: of the file.
        limit: bytes that may come out of a packed one, if its size justifies them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged or unpacks to more (also where the caller meets it).
    """
    with open_plain(path) as stream:
        packed = stream.read(2) == GZIP
        if not packed:
            stream.seek(0)
            yield stream
            return
    limits = Limits()
    limit = min(limit, max(limits.free, limits.ratio * os.stat(path).st_size))
    with open_gzip(path, limit) as unpacked, io.BufferedReader(_Raw(unpacked)) as buffered:
        yield buffered


class _Raw(io.RawIOBase):
    """A stream that has ``read`` alone as one that Python's own classes can be laid over."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        piece = self._stream.read(len(room))
        room[: len(piece)] = piece
        return len(piece)


def head_of(path: Path) -> bytes:
    """The first bytes of a file, unpacked.

    Raises:
        OSError, ValueError: as ``open_text``.
    """
    with open_text(path) as stream:
        return stream.read(_HEAD_BYTES)


def _none(_: Sequence[str]) -> Collection[str]:
    return ()


def read_table(path: Path, ids: Choice = _none) -> tuple[pa.Table, bool]:
    """A table, and whether its columns have names of their own; else they are f0, f1 and so on.

    In text, remarks (# or %) and empty lines may stand before the first row. What separates the
    columns, and whether the first row names them, the first row tells.

    Args:
        path: of the file.
        ids: the columns that hold ids. In text they are whole numbers where every cell is one as
            Python writes it, else words as they are written; Parquet has types of its own.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no table, is damaged, or claims more than it has.
    """
    try:
        with open_text(path) as stream:
            head = stream.read(_HEAD_BYTES)
        parquet = head.startswith(PARQUET)
        table, named = (_read_parquet(path), True) if parquet else _read_text(path, head, ids)
        table.validate(full=True)  # Parquet's own words may be no UTF-8
        _ = table.column_names  # nor need the names be
        return table, named
    except (pa.ArrowException, MemoryError) as error:
        raise ValueError(in_one_line(error) or type(error).__name__) from error


def _read_parquet(path: Path) -> pa.Table:
    with open_plain(path) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        found, limits = pyarrow.parquet.read_metadata(stream), Limits()
        groups = [found.row_group(group) for group in range(found.num_row_groups)]
        chunks = [g.column(place) for g in groups for place in range(g.num_columns)]
        rows = sum(group.num_rows for group in groups)
        cells = sum(chunk.num_values for chunk in chunks)  # of lists more than there are rows
        claimed = max(rows, found.num_rows) * max(found.num_columns, 1)
        unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
        claimed, most = max(claimed, cells) * _CELL, max(limits.free, limits.ratio * size)
        if rows < 0 or max(claimed, unpacked) > most:
            raise ValueError(
                f"it claims {rows:,} rows of {found.num_columns} columns in {size:,} bytes, more "
                f"than {limits.ratio} times as many"
            )
        columns = [found.schema.column(place) for place in range(found.num_columns)]
        # a word that is stored once stays once until it is known what all of them take
        words = [
            column.path
            for column in columns
            if column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"
        ]
        stream.seek(0)
        file = pyarrow.parquet.ParquetFile(stream, metadata=found, read_dictionary=words)
        table = file.read(use_threads=False)
    written = sum(_bytes_of_words(column) for column in table.columns)
    if written > most:
        raise ValueError(
            f"its words take {written:,} bytes and the file {size:,}, more than {limits.ratio} "
            "times as many"
        )
    return pa.table([_decoded(column) for column in table.columns], names=table.column_names)


def _are_words(kind: pa.DataType) -> bool:
    """Whether a column holds each of its words once, and numbers of words."""
    words = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    return bool(pa.types.is_dictionary(kind)) and kind.value_type in words


def _bytes_of_words(column: pa.ChunkedArray) -> int:
    """What they take once each row has its own."""
    if not _are_words(column.type):
        return 0
    lengths = [pc.take(pc.binary_length(c.dictionary), c.indices) for c in column.chunks]
    return sum(pc.sum(each.cast(pa.int64())).as_py() or 0 for each in lengths)


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not _are_words(column.type):
        return column
    pieces = [
        chunk.slice(first, _PIECE_ROWS).dictionary_decode()  # one array holds 2 GiB of words
        for chunk in column.chunks
        for first in range(0, len(chunk), _PIECE_ROWS)
    ]
    return pa.chunked_array(pieces, column.type.value_type)


def _read_text(path: Path, head: bytes, ids: Choice) -> tuple[pa.Table, bool]:
    packing = next((name for begins, name in _PACKINGS.items() if head.startswith(begins)), None)
    if packing is not None:
        raise ValueError(f"it is packed by {packing}; unpack it, or pack it by gzip")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is written in UTF-16; save it as UTF-8")
    lines = lines_of(head.decode("utf-8-sig", "replace"))
    remarks = 0
    while remarks < len(lines) and (not lines[remarks] or lines[remarks].startswith(_REMARKS)):
        remarks += 1
    first = lines[remarks] if remarks < len(lines) else ""
    separator = next((s for s in _SEPARATORS if s in first), ",")
    if separator == " " and ("  " in first or first[:1] == " "):
        raise ValueError("several spaces stand between its columns; write one, or a comma")
    cells = first.strip().split(separator)
    whole = len(lines) > remarks + 1 or len(head) < _HEAD_BYTES
    named = not all(_is_number(cell) for cell in (cells if whole else cells[:-1]))
    return read_rows(path, remarks, separator, named=named, ids=ids), named


def read_rows(
    path: Path, skipped: int, separator: str, *, named: bool = False, ids: Choice = _none
) -> pa.Table:
    """The rows of a text after so many lines; without names, columns are f0, f1 and so on.

    Raises:
        OSError, ValueError: as ``read_table``.
        pyarrow.ArrowException, MemoryError: they are no rows.
    """
    names = _first_row(path, skipped, separator)
    as_written = set(ids(names if named else [f"f{place}" for place in range(len(names))]))
    with open_text(path) as stream:
        table = pyarrow.csv.read_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                skip_rows=skipped,
                autogenerate_column_names=not named,
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(as_written, pa.binary())
            ),
        )
    for place, field in enumerate(table.schema):
        if not pa.types.is_binary(field.type):
            continue
        try:
            words = table.column(place).cast(pa.string())
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"column {place + 1} is not written in UTF-8; save the file in it"
            ) from error
        table = table.set_column(place, field.name, _ids(words))
    return table


def _first_row(path: Path, skipped: int, separator: str) -> list[str]:
    """The cells of the first row that is not empty.

    Raises:
        OSError: it cannot be read.
        ValueError: there are too many.
    """
    with open_text(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", "replace") as text:
        for _ in range(skipped):
            text.readline(_BLOCK_BYTES)
        row = text.readline(_BLOCK_BYTES)
        while row == "\n":
            row = text.readline(_BLOCK_BYTES)
    if row.count(separator) >= _MOST_COLUMNS:
        raise ValueError(f"it has more than {_MOST_COLUMNS:,} columns; leave some out")
    try:
        return next(csv.reader([row], delimiter=separator), [])
    except csv.Error as error:
        raise ValueError(f"its first row cannot be read ({in_one_line(error)})") from error


def _ids(words: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as whole numbers if that loses nothing of what is written; empty cells are null."""
    words = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
    trimmed = pc.utf8_trim_whitespace(words)
    try:
        whole = trimmed.cast(pa.int64())
    except pa.ArrowInvalid:  # a word, or a number beyond 64 bits
        return words
    # 007 and 0x7 are other ids than 7
    return whole if pc.all(pc.equal(whole.cast(pa.string()), trimmed)).as_py() else words


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True
