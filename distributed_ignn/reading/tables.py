"""Tables of numbers and words: text with a separator, packed by gzip or not, and Parquet.

Arrow reads both, in blocks. Before it does, the size that a file declares is compared with the size
that it has; what Arrow objects to becomes one ValueError.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from distributed_ignn.reading.archives import Limits, open_gzip
from distributed_ignn.reading.plain_files import in_one_line, open_plain

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
_HEAD_BYTES = 2**16
_SEPARATORS = "\t,; "
_PACKINGS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REMARKS = ("#", "%")
_LARGEST_TEXT = 2**38
_CELL = 8  # bytes of a number
_BLOCK_BYTES = 2**24
"""Read at once; the longest row must fit in."""


@contextmanager
def open_text(path: Path, limit: int = _LARGEST_TEXT) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if it is packed by gzip.

    Args:
        path: of the file.
        limit: bytes that may come out of a packed one.

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


def read_table(path: Path) -> tuple[pa.Table, bool]:
    """A table, and whether its columns have names of their own; else they are f0, f1 and so on.

    In text, remarks (# or %) may stand before the first row. What separates the columns, and
    whether the first row names them, the first row tells.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no table, is damaged, or claims more than it has.
    """
    try:
        with open_text(path) as stream:
            head = stream.read(_HEAD_BYTES)
        parquet = head.startswith(PARQUET)
        table, named = (_read_parquet(path), True) if parquet else _read_text(path, head)
        table.validate(full=True)  # Parquet's own words may be no UTF-8
        _ = table.column_names  # nor need the names be
        return table, named
    except (pa.ArrowException, MemoryError) as error:
        raise ValueError(in_one_line(error) or type(error).__name__) from error


def _read_parquet(path: Path) -> pa.Table:
    with open_plain(path) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        file = pyarrow.parquet.ParquetFile(stream)
        found, limits = file.metadata, Limits()
        rows = sum(found.row_group(group).num_rows for group in range(found.num_row_groups))
        groups = [found.row_group(group) for group in range(found.num_row_groups)]
        cells = sum(
            group.column(place).num_values for group in groups for place in range(group.num_columns)
        )  # of lists more than there are rows
        claimed = max(rows, found.num_rows) * max(found.num_columns, 1)
        claimed = max(claimed, cells) * _CELL
        if rows < 0 or claimed > max(limits.free, limits.ratio * size):
            raise ValueError(
                f"it claims {rows:,} rows of {found.num_columns} columns in {size:,} bytes, more "
                f"than {limits.ratio} times as many"
            )
        return file.read(use_threads=False)


def _read_text(path: Path, head: bytes) -> tuple[pa.Table, bool]:
    packing = next((name for begins, name in _PACKINGS.items() if head.startswith(begins)), None)
    if packing is not None:
        raise ValueError(f"it is packed by {packing}; unpack it, or pack it by gzip")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is written in UTF-16; save it as UTF-8")
    lines = head.decode("utf-8-sig", "replace").splitlines()
    remarks = 0
    while remarks < len(lines) and lines[remarks].startswith(_REMARKS):
        remarks += 1
    first = lines[remarks] if remarks < len(lines) else ""
    separator = next((s for s in _SEPARATORS if s in first), ",")
    if separator == " " and ("  " in first or first[:1] == " "):
        raise ValueError("several spaces stand between its columns; write one, or a comma")
    cells = first.strip().split(separator)
    whole = len(lines) > remarks + 1 or len(head) < _HEAD_BYTES
    named = not all(_is_number(cell) for cell in (cells if whole else cells[:-1]))
    return read_rows(path, remarks, separator, named=named), named


def read_rows(path: Path, skipped: int, separator: str, *, named: bool = False) -> pa.Table:
    """The rows of a text after so many lines; without names, columns are f0, f1 and so on.

    Raises:
        OSError, ValueError: as ``read_table``.
        pyarrow.ArrowException, MemoryError: they are no rows.
    """
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
        )
    for place, field in enumerate(table.schema):
        if pa.types.is_binary(field.type):
            raise ValueError(f"column {place + 1} is not written in UTF-8; save the file in it")
    return table


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True
