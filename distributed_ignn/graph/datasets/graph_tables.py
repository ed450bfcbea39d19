"""The user's own graph as tables: one of edges, and beside any form of edges one of nodes.

Columns go by their names, whatever their case. Letters: n nodes, E edges, F features.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.checks import brief
from distributed_ignn.graph.datasets.fields import SPLITS, Fields, some
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.tables import read_table

logger = logging.getLogger(__name__)

_SOURCE = ("source", "src", "from", "fromnodeid", "id_1", "node_1")
_TARGET = ("target", "dst", "to", "tonodeid", "id_2", "node_2")
_WEIGHT = ("weight", "edge_weight")
_ID = ("id", "node", "node_id")
_LABEL = ("y", "label", "labels", "class")
_SPLIT = ("split",)
_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

Column = Any
"""A ``pyarrow.ChunkedArray``; the library has no types."""


class NodeTable:
    """A row for each node: its id, label, split, and its features in the columns that are left.

    Args:
        path: of the file.

    Attributes:
        fields: what it says.
        ids: by which edges name the nodes, or None where they count the rows from 0.

    Raises:
        UserError: it cannot be read, or breaks a rule.
    """

    def __init__(self, path: Path) -> None:
        columns, named = _columns(path)
        taken = {kind: _take(columns, kind) for kind in (_ID, _LABEL, _SPLIT)}
        if not named or all(column is None for column in taken.values()):
            raise UserError(
                f"{path}: the first row must name the columns, as in id,label,split,x0,x1"
            )
        self.path = path
        self.ids = None if taken[_ID] is None else _ids(taken[_ID], path)
        arrays: dict[str, Tensor] = {}
        names: tuple[str, ...] = ()
        if taken[_LABEL] is not None:
            arrays["y"], names = _labels(taken[_LABEL], path)
        if taken[_SPLIT] is not None:
            arrays |= _split(taken[_SPLIT], path)
        for split in SPLITS:
            mask = _take(columns, (f"{split}_mask",))
            if mask is not None:
                arrays[f"{split}_mask"] = _numbers(mask, f"{split}_mask", path)
        features = {name: column for name, column in columns.items() if _is_numeric(column)}
        unread = sorted(set(columns) - set(features))
        if unread:
            logger.info("%s: not read, words: %s", path, in_one_line(some(unread)))
        if features:
            rows = [_numbers(column, name, path).float() for name, column in features.items()]
            arrays["x"] = torch.stack(rows, dim=1)
        self.fields = Fields(arrays, path, names)

    def numbers_of(self, named: Column, path: Path) -> Tensor:
        """The rows of nodes by their ids, int64 [E].

        Raises:
            UserError: an id is that of no row.
        """
        if self.ids is None:
            return _row_numbers(named, path)
        if pa.types.is_string(named.type) != pa.types.is_string(self.ids.type):
            named, ids = named.cast(pa.string()), self.ids.cast(pa.string())
        else:
            ids = self.ids
        rows = pc.index_in(named, value_set=ids.combine_chunks())
        if rows.null_count:
            missing = named.filter(pc.is_null(rows))[0].as_py()
            raise UserError(
                f"{path}: an edge names node {in_one_line(missing)}, which {self.path} does not "
                "have; add a row for it"
            )
        return torch.from_numpy(rows.to_numpy().astype(np.int64))


def edge_table(path: Path, nodes: NodeTable | None) -> dict[str, Tensor]:
    """``edge_index`` and, if a column is called so, ``edge_weight`` of a table of edges.

    The columns ``source`` and ``target`` name the nodes of an edge, else the first two do.

    Args:
        path: of the file.
        nodes: to which the names in the table belong; None where they count nodes from 0.

    Raises:
        UserError: it cannot be read, or breaks a rule.
    """
    columns, named = _columns(path)
    if len(columns) < 2:
        raise UserError(f"{path} has {len(columns)} column; two that name the ends are needed")
    source, target = _take(columns, _SOURCE), _take(columns, _TARGET)
    weight = _take(columns, _WEIGHT)
    if source is None and target is None:
        ends = list(columns)[:2]
        if named:
            _check_names(ends, nodes, path)
        source, target = (columns.pop(name) for name in ends)
    if source is None or target is None:
        raise UserError(
            f"{path} names one end of the edges alone; call the columns source and target"
        )
    if columns:
        logger.info("%s: not read: %s", path, in_one_line(some(sorted(columns))))
    both = [
        _row_numbers(end, path) if nodes is None else nodes.numbers_of(end, path)
        for end in (source, target)
    ]
    found = {"edge_index": torch.stack(both)}
    return found if weight is None else found | {"edge_weight": _numbers(weight, "weight", path)}


def _check_names(ends: Sequence[str], nodes: NodeTable | None, path: Path) -> None:
    """Whether a first row of other words than expected names columns, or is an edge itself."""
    if nodes is not None and nodes.ids is not None:
        ids = pc.utf8_lower(nodes.ids.cast(pa.string()))
        if all(pc.is_in(pa.array(ends), value_set=ids.combine_chunks()).to_pylist()):
            raise UserError(
                f"{path}: the first row is an edge; put a row of names before it: source,target"
            )
    logger.info("%s: edges lead from column %s to column %s", path, *map(in_one_line, ends))


def _columns(path: Path) -> tuple[dict[str, Column], bool]:
    """The columns of a table by name in lower case, and whether they have names of their own."""
    try:
        table, named = read_table(path)
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
    if _is_numeric(column) or pa.types.is_string(column.type):
        return column
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return pa.chunked_array([pa.nulls(len(column), pa.string())])


def _is_numeric(column: Column) -> bool:
    kind = column.type
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _take(columns: dict[str, Column], names: Iterable[str]) -> Column | None:
    """Take the first column that is called so out of the others."""
    return next((columns.pop(name) for name in names if name in columns), None)


def _numbers(column: Column, name: str, path: Path) -> Tensor:
    """A column of numbers; empty cells are NaN."""
    if not _is_numeric(column):
        raise UserError(f"{path}: column {in_one_line(name)} holds words; numbers are needed")
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    found = column.to_numpy()
    if found.dtype.kind == "u":
        found = found.astype(np.int64)
    return torch.from_numpy(np.array(found))


def _row_numbers(column: Column, path: Path) -> Tensor:
    """Nodes that are named by their rows, int64."""
    if not pa.types.is_integer(column.type) or column.null_count:
        raise UserError(
            f"{path}: edges name nodes by something else than whole numbers; give a table of "
            "nodes that has their ids in a column id: --data.nodes nodes.csv"
        )
    return _numbers(column, "id", path).long()


def _ids(column: Column, path: Path) -> Column | None:
    """The ids of the rows; None where they are 0, 1, 2 and so on."""
    if column.null_count:
        raise UserError(f"{path}: a node has no id; fill the column, or leave it out")
    if pc.count_distinct(column).as_py() != len(column):
        raise UserError(f"{path}: two nodes have the same id; give each its own")
    if pa.types.is_integer(column.type):
        rows = _numbers(column, "id", path)
        if bool((rows == torch.arange(len(rows))).all()):
            return None
    return column


def _labels(column: Column, path: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Labels [n], -1 where a cell is empty; and what they are called, if they are words."""
    if _is_numeric(column):
        return _numbers(column, "label", path), ()
    coded = column.combine_chunks().dictionary_encode()
    words = [word or "" for word in coded.dictionary.to_pylist()]
    names = sorted(set(words) - {""})
    number = {name: place for place, name in enumerate(names)}
    codes = np.array([number.get(word, -1) for word in words] or [-1])
    places = coded.indices.fill_null(0).to_numpy()
    labels = np.where(coded.indices.is_null().to_numpy(zero_copy_only=False), -1, codes[places])
    return torch.from_numpy(labels), tuple(names)


def _split(column: Column, path: Path) -> dict[str, Tensor]:
    """Masks, from a column of the words train, val and test."""
    if _is_numeric(column):
        raise UserError(f"{path}: column split holds numbers; write train, val and test")
    words = pc.utf8_lower(pc.fill_null(column, ""))
    known: Sequence[str] = (*_SPLIT_WORDS, "", "none")
    strange = words.filter(pc.invert(pc.is_in(words, value_set=pa.array(known))))
    if len(strange):
        raise UserError(
            f"{path}: split {in_one_line(strange[0].as_py())} is not known; write train, val, test "
            "or nothing"
        )
    masks = {}
    for split in SPLITS:
        called = pa.array([word for word, name in _SPLIT_WORDS.items() if name == split])
        found = pc.is_in(words, value_set=called).to_numpy()
        if found.any():
            masks[f"{split}_mask"] = torch.from_numpy(found.copy())
    return masks
