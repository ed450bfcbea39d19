"""Compressed rows from blocks of entries, without a second copy of all of them.

Offsets are 64-bit and column ids 32-bit. The blocks are read several times: once to count, then
once for every range of rows, whose entries alone are sorted. The peak is the result plus a quarter
to a half of it, whatever order the entries come in; they may lie on disk, memory-mapped.
Letters: E entries, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from distributed_ignn.errors import UserError

Ids = NDArray[np.integer]
Blocks = Callable[[], Iterable[tuple[Ids, Ids]]]

#: Ids are below this; 2**31 - 1 itself stays free, because some kernels count one past the end.
MAX_IDS = 2**31 - 2
_BLOCK = 1_000_000
#: Ranges of rows into which the sorting is divided: more of them save memory and read more often.
_RANGES = 8


def check_id_space(count: int, what: str) -> None:
    """Refuse more rows or columns than 32-bit ids can name.

    Raises:
        UserError: ``count`` of ``what`` is too many.
    """
    if count > MAX_IDS:
        raise UserError(
            f"{count:,} {what} are more than 32-bit ids can name (at most {MAX_IDS:,}); leave out "
            "isolated nodes or unused columns, or train on a subgraph"
        )


def slices(length: int) -> Iterator[slice]:
    """0..length in slices that are small beside it."""
    step = max(length // (8 * _RANGES), _BLOCK)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def array_blocks(row: Ids, col: Ids) -> Blocks:
    """Two arrays [E], in memory or mapped, as blocks."""
    return lambda: ((row[part], col[part]) for part in slices(row.size))


def row_ranges(rowptr: NDArray[np.int64], budget: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges [first, last) of rows with at most ``budget`` entries, or of one row.

    Args:
        rowptr: int64 [n + 1]; only differences matter.
        budget: at least 1.
    """
    rows = rowptr.size - 1
    first = 0
    while first < rows:
        last = int(np.searchsorted(rowptr, rowptr[first] + budget, side="right")) - 1
        last = min(max(last, first + 1), rows)
        yield first, last
        first = last


def positions(rowptr: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the entries of ``rows`` lie, row after row, int64."""
    count = rowptr[rows + 1] - rowptr[rows]
    ends = np.cumsum(count)
    where = np.repeat(rowptr[rows] - ends + count, count)
    where += np.arange(where.size)
    return where


def range_budget(entries: int) -> int:
    """Entries to work on at once where ``entries`` are there in all."""
    return max(entries // _RANGES, _BLOCK)


def compress(
    blocks: Blocks, num_rows: int, num_cols: int, *, mirrored: bool = False, loops: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Offsets int64 [num_rows + 1] and columns int32 [E], ascending and without repeats in a row.

    Args:
        blocks: called several times; yields the same pairs (row, column) every time.
        num_rows, num_cols: shape of the matrix; ids outside it are the caller's mistake.
        mirrored: store every pair the other way round, too.
        loops: whether entries with row = column are stored.

    Raises:
        UserError: the shape asks for more than 32-bit ids.
    """
    check_id_space(num_rows, "nodes")
    check_id_space(num_cols, "columns")

    def directed() -> Iterator[tuple[Ids, Ids]]:
        for row, col in blocks():
            if not loops:
                keep = row != col
                row, col = row[keep], col[keep]
            yield row, col
            if mirrored:
                yield col, row

    given = np.zeros(num_rows + 1, np.int64)
    for row, _ in directed():
        given[1:] += np.bincount(row, minlength=num_rows)
    np.cumsum(given, out=given)
    rowptr = np.zeros(num_rows + 1, np.int64)
    columns = np.empty(int(given[-1]), np.int32)
    used = 0
    for first, last in row_ranges(given, range_budget(columns.size)):
        whole = (first, last) == (0, num_rows)
        rows = None if whole else (first, last)
        keys = _sorted_keys(directed(), rows, int(given[last] - given[first]))
        ends = np.searchsorted(keys, np.arange(1, last - first + 1, dtype=np.int64) << 32)
        rowptr[first + 1 : last + 1] = used + ends
        columns[used : used + keys.size] = keys  # the cast keeps the lower half: the column
        used += keys.size
        del keys  # before the next range makes its own
    columns.resize(used, refcheck=False)  # in place: gives back what repeats had taken
    return rowptr, columns


def _sorted_keys(
    entries: Iterable[tuple[Ids, Ids]], rows: tuple[int, int] | None, count: int
) -> NDArray[np.int64]:
    """Distinct (row - first) * 2**32 + column of the ``count`` entries in a range, ascending.

    Args:
        rows: [first, last), or None for all rows.
    """
    keys = np.empty(count, np.int64)
    filled = 0
    first, last = rows or (0, 0)
    for row, col in entries:
        if rows is not None:
            chosen = np.flatnonzero((row >= first) & (row < last))
            row, col = row[chosen], col[chosen]
        part = keys[filled : filled + row.size]
        np.subtract(row, first, out=part, casting="unsafe")
        part <<= 32
        part |= col
        filled += row.size
    return distinct(keys)


def distinct(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The different ``keys``, ascending; ``keys`` themselves are sorted in place."""
    # numpy.unique hashes, which takes ten times as long on keys with this much structure
    keys.sort()
    keep = np.empty(keys.size, np.bool_)
    keep[:1] = True
    np.not_equal(keys[1:], keys[:-1], out=keep[1:])
    return keys if keep.all() else keys[keep]
