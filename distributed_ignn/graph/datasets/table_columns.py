"""Columns of tables by name: what they are called, and the numbers, ids or features in them.

Letters: n nodes, F features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.tables import Choice, read_table

Column = Any
"""A ``pyarrow.ChunkedArray``; the library has no types."""

_FLOATING = r"^(0|-?[1-9]\d*)\.0$"
_NUMBER = r"^\s*[-+]?(\d+[.,]?\d*|[.,]\d+)([eE][-+]?\d+)?\s*$"


def table_columns(path: Path, ids: Choice) -> tuple[dict[str, Column], bool]:
    """The columns of a table by name in lower case, and whether they have names of their own.

    Args:
        path: of the table.
        ids: the columns of ids among these names, see ``read_table``.
    """

    def as_written(names: Sequence[str]) -> Collection[str]:
        plain = [name.strip().lower() for name in names]
        chosen = set(ids(plain))
        return {name for name, low in zip(names, plain, strict=True) if low in chosen}

    try:
        table, named = read_table(path, as_written)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a table of nodes or edges ({brief(error)}); write it as CSV with a row "
            "of names, or as Parquet"
        ) from error
    names = [name.strip().lower() for name in table.column_names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path} has two columns called {in_one_line(twice[0])}; rename one")
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows; give one a node or edge")
    return dict(zip(names, map(_plain, table.columns), strict=True)), named


def _plain(column: Column) -> Column:
    """Numbers and words as they are, anything else as words."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if is_numeric(column) or is_list(column) or pa.types.is_string(column.type):
        return column
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return pa.chunked_array([pa.nulls(len(column), pa.string())])


def is_numeric(column: Column) -> bool:
    """Whether each cell is a number, or true or false."""
    return _numeric(column.type)


def _numeric(kind: Any) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def take(columns: dict[str, Column], names: Iterable[str]) -> Column | None:
    """Take the first column that is called so out of the others."""
    return next((columns.pop(name) for name in names if name in columns), None)


def numbers(column: Column, name: str, path: Path) -> Tensor:
    """A column of numbers; empty cells are NaN."""
    if not is_numeric(column):
        raise UserError(f"{path}: column {in_one_line(name)} holds words; numbers are needed")
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    found = column.to_numpy()
    if found.dtype.kind == "u":
        found = found.astype(np.int64)
    return torch.from_numpy(np.array(found))


def row_numbers(column: Column, path: Path) -> Tensor:
    """Nodes that are named by their rows, int64."""
    column = ids_of(column)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise UserError(
            f"{path}: edges name nodes by something else than whole numbers; give a table of "
            "nodes that has their ids in a column id: --data.nodes nodes.csv (of predict: --nodes)"
        )
    return numbers(column, "id", path).long()


def ids_of(column: Column) -> Column:
    """Names of nodes as int64 or as words, whatever kind of numbers they were written as."""
    words = column if pa.types.is_string(column.type) else column.cast(pa.string())
    # pandas makes a column that has had gaps floating
    if (
        pa.types.is_string(column.type)
        and pc.all(pc.match_substring_regex(words, _FLOATING)).as_py()
    ):
        column = pc.replace_substring(words, ".0", "")
    elif pa.types.is_floating(column.type):
        if not pc.all(pc.equal(column, pc.round(column))).as_py():
            return words
    elif not pa.types.is_integer(column.type):
        return words
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond 64 bits
        return words


def is_list(column: Column) -> bool:
    """Whether each cell is a list of numbers."""
    kind = column.type
    lists = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return bool(lists and _numeric(kind.value_type))


def mostly_numbers(column: Column) -> bool:
    """Whether most cells of a column of words are numbers: then the others are mistakes."""
    filled = column.filter(pc.not_equal(pc.fill_null(column, ""), ""))
    return 2 * int(pc.sum(pc.match_substring_regex(filled, _NUMBER)).as_py() or 0) > len(filled)


def words_as_numbers(column: Column, name: str, path: Path) -> Column:
    """A column of words as the numbers that all of them are, as in a Parquet file of text.

    Raises:
        UserError: one is no number.
    """
    good = pc.match_substring_regex(pc.fill_null(column, "0"), _NUMBER.replace("[.,]", "[.]"))
    row = int(pc.index(good, False).as_py())
    if row < 0:
        return pc.utf8_trim_whitespace(column).cast(pa.float64())
    word = in_one_line(column[row].as_py())
    raise UserError(
        f"{path}: row {row + 1} of column {in_one_line(name)} is {word!r} and most others are "
        "numbers; write a number there (with a decimal point)"
    )


def feature_columns(columns: dict[str, Column], path: Path) -> Tensor:
    """Columns of numbers, and of lists of as many numbers each, side by side: float32 [n, F].

    Raises:
        UserError: a cell is empty, no finite number, or of another length than the others.
    """
    widths = {name: _width(column, name, path) for name, column in columns.items()}
    rows = len(next(iter(columns.values())))
    found, place = torch.empty(rows, sum(widths.values())), 0
    for name, column in columns.items():
        flat = pc.list_flatten(column) if is_list(column) else column
        values = numbers(flat, name, path).float().reshape(rows, widths[name])
        bad = (~torch.isfinite(values)).nonzero()
        if bad.numel():
            raise UserError(
                f"{path}: row {int(bad[0, 0]) + 1} of column {in_one_line(name)} is empty, NaN or "
                "infinite; write a number there, or leave the column out"
            )
        found[:, place : place + widths[name]] = values
        place += widths[name]
    return found


def label_lists(column: Column, path: Path) -> Tensor:
    """Lists of as many labels each: float64 [n, C], NaN where a list or a label is missing.

    Raises:
        UserError: the lists have different lengths, or hold words.
    """
    there = column.drop_null()
    if len(there) == 0:
        raise UserError(f"{path}: no row of column label has a list; fill some, or leave it out")
    width = _width(there, "label", path)
    found = torch.full((len(column), width), torch.nan, dtype=torch.float64)
    flat = numbers(pc.list_flatten(there), "label", path)
    found[torch.from_numpy(column.is_valid().to_numpy())] = flat.double().reshape(-1, width)
    return found


def _width(column: Column, name: str, path: Path) -> int:
    """Numbers in each cell of a column."""
    if not is_list(column):
        return 1
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    other = np.flatnonzero(lengths != lengths[0]) if lengths[0] >= 0 else np.zeros(1, int)
    if other.size:
        row, length = int(other[0]), int(lengths[other[0]])
        has = "no list" if length < 0 else f"a list of {length} numbers and the first {lengths[0]}"
        raise UserError(
            f"{path}: row {row + 1} of column {in_one_line(name)} has {has}; give each row as many"
        )
    return int(lengths[0])
