"""Sparse matrices in files: MatrixMarket, and the npz of ``scipy.sparse.save_npz``.

Letters: E stored entries.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from distributed_ignn.reading.arrays import npz_names, read_npz
from distributed_ignn.reading.plain_files import in_one_line, lines_of
from distributed_ignn.reading.tables import head_of, read_rows

MATRIX_MARKET = b"%%MatrixMarket"
_FIELDS = (["real"], ["integer"], ["pattern"])
_SCIPY = {"format", "shape"}


def read_matrix_market(path: Path, most_rows: int) -> sp.coo_array:
    """A sparse square matrix of real numbers, packed by gzip or not.

    Scipy's own reader ends the process on some damaged files, so the few words of the form are
    understood here and Arrow reads the entries.

    Args:
        path: of the file.
        most_rows: that it may have.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such matrix, is damaged, or has an index outside.
    """
    lines = lines_of(head_of(path).decode("latin1"))
    words = lines[0].lower().split() if lines else []
    if words[1:3] != ["matrix", "coordinate"] or words[3:4] not in _FIELDS:
        raise ValueError("a matrix of another kind than coordinate real, integer or pattern")
    if words[4:] not in (["general"], ["symmetric"]):
        raise ValueError("a matrix that is neither general nor symmetric")
    place = next((i for i, line in enumerate(lines) if line and line[0] != "%"), len(lines) - 1)
    sizes = lines[place].split()
    if len(sizes) != 3 or not all(size.isdecimal() and len(size) < 19 for size in sizes):
        raise ValueError("a matrix without a line of its sizes")
    rows, columns, entries = map(int, sizes)
    _check_square(rows, columns, most_rows)
    try:
        table = read_rows(path, place + 1, " ")
        found = [column.to_numpy() for column in table.columns]
    except (pa.ArrowException, MemoryError) as error:
        raise ValueError(in_one_line(error) or type(error).__name__) from error
    if table.num_rows != entries or len(found) != (2 if words[3] == "pattern" else 3):
        raise ValueError(f"it declares {entries:,} entries and has {table.num_rows:,} rows")
    return _counted_from_one(found, rows, both=words[4] == "symmetric")


def _counted_from_one(found: list[np.ndarray], rows: int, *, both: bool) -> sp.coo_array:
    """The matrix of rows, columns and values, if there are values.

    Args:
        found: of each entry.
        rows: of the matrix.
        both: whether an entry beside the diagonal stands for its mirror image, too.
    """
    row, column = found[:2]
    value = found[2] if len(found) > 2 else np.ones(row.size)
    if any(ids.dtype.kind != "i" for ids in (row, column)) or value.dtype.kind not in "if":
        raise ValueError("entries that are no numbers")
    row, column = row - 1, column - 1
    if row.size and min(row.min(), column.min(), rows - 1 - max(row.max(), column.max())) < 0:
        raise ValueError(f"an entry outside of {rows:,} rows and columns")
    if both:
        beside = row != column
        row, column = np.append(row, column[beside]), np.append(column, row[beside])
        value = np.append(value, value[beside])
    return sp.coo_array((value, (row, column)), shape=(rows, rows))


def is_scipy_npz(names: list[str]) -> bool:
    """Whether the arrays of an npz file are those that scipy writes."""
    return set(names) >= _SCIPY


def read_scipy_npz(path: Path, most_rows: int) -> sp.coo_array:
    """The square matrix of ``scipy.sparse.save_npz``, in any of its layouts but dia.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, is damaged, or an index is outside of the matrix.
    """
    names = npz_names(path)
    layout = read_npz(path, ["format"], kinds="SU")["format"]
    arrays = read_npz(path, [name for name in names if name != "format"])
    kind = layout.item().decode("ascii") if layout.dtype.kind == "S" else str(layout)
    makers: dict[str, Callable[..., sp.coo_array]] = {
        "coo": _coo,
        "csr": lambda made, shape: _compressed(sp.csr_array, made, shape),
        "csc": lambda made, shape: _compressed(sp.csc_array, made, shape),
    }
    shape = arrays["shape"]
    if kind not in makers or shape.shape != (2,) or shape.dtype.kind not in "iu":
        raise ValueError(f"a matrix in layout {in_one_line(kind)}; save it as csr")
    _check_square(int(shape[0]), int(shape[1]), most_rows)
    try:
        return makers[kind](arrays, (int(shape[0]), int(shape[1])))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"a damaged matrix ({in_one_line(error)})") from error


def _coo(arrays: dict[str, np.ndarray], shape: tuple[int, int]) -> sp.coo_array:
    return sp.coo_array((arrays["data"], (arrays["row"], arrays["col"])), shape=shape)


def _compressed(
    kind: Callable[..., sp.sparray], arrays: dict[str, np.ndarray], shape: tuple[int, int]
) -> sp.coo_array:
    """From offsets and indices, all of which are looked at before anything follows them."""
    matrix = kind((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
    matrix.check_format(full_check=True)
    return matrix.tocoo()


def _check_square(rows: int, columns: int, most_rows: int) -> None:
    if rows != columns or not 0 < rows <= most_rows:
        raise ValueError(
            f"a matrix of {rows:,} rows and {columns:,} columns; a square one is needed, of at "
            f"most {most_rows:,} rows"
        )
