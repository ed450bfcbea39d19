"""Text feature matrices: parsed in pieces into a sparse matrix and cached as ``.npz``.

Almost all of such a file is zeros in cells of one width ("0 1 0" or "0.000000 1.000000"), so a
row is compared with the all-zero row byte by byte and only the differences are looked at.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.datasets.cache import Arrays, cached_arrays
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.graph.datasets.download import check_member_size
from distributed_ignn.reading.plain_files import in_one_line

logger = logging.getLogger(__name__)

_PIECE = 8 * 2**20
#: The largest published matrix has 1.6 GB of text and 4 million entries that are not 0.
_MATRIX_LIMIT = 4 * 2**30
_ENTRY_LIMIT = 2**28
_LINE_LIMIT = 4 * 2**20

#: Entries of some rows: per row their number, then all columns and (None: all one) values.
_Piece = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class _NotBinaryError(ValueError):
    """The text is not made of equal cells of 0 and 1."""


def cached_features(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, digest: str, folder: Path
) -> CSRMatrix:
    """The matrix of one zip member, from the cache if the cache belongs to this very zip.

    Args:
        archive, info: the open zip and its feature member.
        digest: sha256 of the zip, which names and guards the cache.
        folder: where the cache is kept.

    Raises:
        UserError: the member is not a numeric matrix, or too large.
    """
    path = folder / f"{Path(info.filename).stem}-{digest[:16]}.npz"

    def build() -> Arrays:
        logger.info("parsing %s (%d MB)", info.filename, info.file_size // 10**6)
        return _to_arrays(parse_features(archive, info))

    arrays = cached_arrays(path, f"features 1 {digest}", build, compress=True)
    try:
        return _from_arrays(arrays)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({brief(error)}); delete it") from error


def _to_arrays(matrix: CSRMatrix) -> Arrays:
    return {
        "rowptr": matrix.rowptr.numpy(),
        "col": matrix.col.numpy(),
        "value": (torch.empty(0) if matrix.value is None else matrix.value).numpy(),
        "columns": np.array(matrix.num_cols),
    }


def _from_arrays(arrays: Arrays) -> CSRMatrix:
    value = arrays["value"] if arrays["value"].size else None
    matrix = _matrix(arrays["rowptr"], arrays["col"], value, int(arrays["columns"]))
    problem = matrix.problem()
    if problem is not None or arrays["columns"].shape != ():
        raise ValueError(problem or "no number of columns")
    return matrix


def parse_features(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> CSRMatrix:
    """Parse a text matrix member; values None where all of them are one.

    Raises:
        UserError: not a numeric matrix with rows of one length, or too large.
    """
    check_member_size(archive, info, _MATRIX_LIMIT)
    try:
        with archive.open(info) as stream:
            return _assemble(*_binary_pieces(stream))
    except _NotBinaryError as error:
        logger.info(
            "%s is not a plain 0/1 matrix (%s): using the general parser", info.filename, error
        )
    except ValueError as error:
        raise _no_matrix(archive, info, error) from error
    try:
        with archive.open(info) as stream:
            return _assemble(*_general_pieces(stream))
    except ValueError as error:
        raise _no_matrix(archive, info, error) from error


def _no_matrix(archive: zipfile.ZipFile, info: zipfile.ZipInfo, error: ValueError) -> UserError:
    return UserError(
        f"{archive.filename}: {in_one_line(info.filename)} is not a matrix ({brief(error)}); "
        "replace the zip by the published one"
    )


def _binary_pieces(stream: IO[bytes]) -> tuple[int, Iterator[_Piece]]:
    first = _line(stream)
    cells = first.split()
    if not cells or not first.endswith(b"\n") or len(first) % len(cells):
        raise _NotBinaryError("cells of different widths")
    fraction = cells[0][1:]
    if fraction.strip(b"0") not in (b"", b".") or (fraction and fraction[:1] != b"."):
        raise _NotBinaryError(f"first cell {cells[0][:20]!r}")
    zeros = b" ".join([b"0" + fraction] * len(cells)) + b"\n"
    if len(zeros) != len(first):
        raise _NotBinaryError("unusual separators")
    return len(cells), _compare(stream, first, np.frombuffer(zeros, np.uint8), len(cells))


def _compare(stream: IO[bytes], first: bytes, zeros: np.ndarray, columns: int) -> Iterator[_Piece]:
    row_bytes = zeros.size
    cell_bytes = row_bytes // columns
    rows_per_piece = max(1, _PIECE // row_bytes)
    text = first + stream.read((rows_per_piece - 1) * row_bytes)
    while text:
        if len(text) % row_bytes == row_bytes - 1:
            text += b"\n"  # the last line may lack its end
        if len(text) % row_bytes:
            raise _NotBinaryError("rows of different lengths")
        # "0" and "1" differ in the lowest bit: the difference to the all-zero row is the matrix.
        difference = (np.frombuffer(text, np.uint8).reshape(-1, row_bytes) ^ zeros).ravel()
        place = np.flatnonzero(difference)
        if (difference[place] != 1).any() or (place % cell_bytes).any():
            raise _NotBinaryError("an entry other than 0 and 1")
        row, column = np.divmod(place // cell_bytes, columns)
        yield np.bincount(row, minlength=len(text) // row_bytes), column, None
        text = stream.read(rows_per_piece * row_bytes)


def _general_pieces(stream: IO[bytes]) -> tuple[int, Iterator[_Piece]]:
    first = _line(stream)
    columns = len(first.split())
    if columns == 0:
        raise ValueError("its first line is empty")
    return columns, _lines(stream, first, columns)


def _lines(stream: IO[bytes], line: bytes, columns: int) -> Iterator[_Piece]:
    number = 0
    while line:
        number += 1
        if cells := line.split():
            if len(cells) != columns:
                raise ValueError(f"line {number} has {len(cells)} entries, line 1 has {columns}")
            row = np.array(cells).astype(np.float32)
            column = np.flatnonzero(row)
            yield np.array([column.size]), column, row[column]
        line = _line(stream)


def _line(stream: IO[bytes]) -> bytes:
    """The next line; a cell of it takes many times its size in the parser."""
    line = stream.readline(_LINE_LIMIT)
    if len(line) == _LINE_LIMIT:
        raise ValueError(f"a line has more than {_LINE_LIMIT:,} bytes")
    return line


def _assemble(columns: int, pieces: Iterator[_Piece]) -> CSRMatrix:
    counts, cols, values = [], [], []
    left = _ENTRY_LIMIT
    for count, col, value in pieces:
        left -= col.size
        if left < 0:
            raise ValueError(f"more than {_ENTRY_LIMIT:,} entries are not 0")
        counts.append(count)
        cols.append(col.astype(np.int32))
        if value is not None:
            values.append(value)
    rowptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    value = np.concatenate(values) if values else None
    if value is not None and (value == 1).all():
        value = None
    return _matrix(rowptr, np.concatenate(cols), value, columns)


def _matrix(
    rowptr: np.ndarray, col: np.ndarray, value: np.ndarray | None, columns: int
) -> CSRMatrix:
    return CSRMatrix(
        torch.from_numpy(rowptr),
        torch.from_numpy(col.astype(np.int32, copy=False)),
        None if value is None else torch.from_numpy(value),
        columns,
    )
