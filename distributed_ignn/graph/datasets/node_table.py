"""The user's own nodes as a table: ids, labels, split and features, whatever form the edges have.

Columns go by their names, whatever their case. Letters: n nodes, E edges, F features, C classes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.fields import SPLITS, Fields, some
from distributed_ignn.graph.datasets.table_columns import (
    Column,
    feature_columns,
    ids_of,
    is_list,
    is_numeric,
    label_lists,
    mostly_numbers,
    numbers,
    row_numbers,
    table_columns,
    take,
    words_as_numbers,
)
from distributed_ignn.graph.node_ids import NodeIds
from distributed_ignn.reading.plain_files import in_one_line

logger = logging.getLogger(__name__)

_ID = ("id", "node", "node_id")
_UNNAMED = re.compile(r"\s*|unnamed: \d+|__index_level_\d+__", re.IGNORECASE)
_LABEL = ("y", "label", "labels", "class")
_SPLIT = ("split",)
_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class NodeTable:
    """A row for each node: its id, label, split, and its features in the columns that are left.

    Args:
        path: of the file.
        label: the column of labels, if it is not called as they usually are.
        labelled: whether labels and splits are read; else their columns are left alone.

    Attributes:
        fields: what it says.
        ids: by which edges name the nodes, or None where they count the rows from 0.

    Raises:
        UserError: it cannot be read, or breaks a rule.
    """

    def __init__(self, path: Path, label: str | None = None, *, labelled: bool = True) -> None:
        columns, named = table_columns(path, lambda names: [n for n in _ID if n in names][:1])
        present = tuple(columns)
        words = _LABEL if label is None else (label.lower(),)
        taken = {kind: take(columns, kind) for kind in (words, _ID, _SPLIT)}
        unnamed = any(name.replace(".", "").isdecimal() for name in present)
        if not named or (unnamed and all(column is None for column in taken.values())):
            raise UserError(
                f"{path}: the first row must name the columns, as in id,label,split,x0,x1"
            )
        self.path = path
        self.ids = None if taken[_ID] is None else _ids(taken[_ID], path)
        arrays: dict[str, Tensor] = {}
        names: tuple[str, ...] = ()
        masks = {f"{split}_mask": take(columns, (f"{split}_mask",)) for split in SPLITS}
        if labelled:
            if taken[words] is not None:
                arrays["y"], names = _labels(taken[words], path)
            if taken[_SPLIT] is not None:
                arrays |= _split(taken[_SPLIT], path)
            for name, mask in masks.items():
                if mask is not None:
                    arrays[name] = numbers(mask, name, path)
        features = _features(columns, path)
        _tell_odd_features(features, path)
        if features:
            arrays["x"] = feature_columns(features, path)
        ids = None if self.ids is None else NodeIds.of(self.ids.to_pylist())
        self.fields = Fields(arrays, path, names, present, ids)

    def numbers_of(self, named: Column, path: Path) -> Tensor:
        """The rows of nodes by their ids, int64 [E].

        Raises:
            UserError: an id is that of no row.
        """
        if self.ids is None:
            return row_numbers(named, path)
        ids = self.ids
        if not pa.types.is_string(ids.type) or not pa.types.is_string(named.type):
            named = ids_of(named)  # words among words are as they are written
        if named.type != ids.type:
            named, ids = named.cast(pa.string()), ids.cast(pa.string())
        rows = pc.index_in(named, value_set=ids.combine_chunks())
        if rows.null_count:
            missing = named.filter(pc.is_null(rows))[0].as_py()
            raise UserError(
                f"{path}: an edge names node {in_one_line(missing)}, which {self.path} does not "
                "have; add a row for it"
            )
        return torch.from_numpy(rows.to_numpy().astype(np.int64))


def _features(columns: Mapping[str, Column], path: Path) -> dict[str, Column]:
    """The columns of numbers among those that are left; what is no feature is told."""
    index = {name for name, column in columns.items() if _is_index(name, column)}
    if index:
        logger.info("%s: not read: the column without a name, which counts the rows", path)
    rest = {name: column for name, column in columns.items() if name not in index}
    found = {n: column for n, column in rest.items() if is_numeric(column) or is_list(column)}
    for name, column in rest.items():
        if name not in found and mostly_numbers(column):
            found[name] = words_as_numbers(column, name, path)
    unread = sorted(set(rest) - set(found))
    if unread:
        logger.info("%s: not read, words: %s", path, in_one_line(some(unread)))
    return found


def _tell_odd_features(features: Mapping[str, Column], path: Path) -> None:
    """Say so where a feature is called as labels or ids usually are; it may be the same again."""
    odd = [name for name in features if name.lower() in (*_LABEL, *_ID)]
    if odd:
        logger.warning(
            "%s: called as labels or ids are, and read as a feature: %s; leave it out if it tells "
            "the label",
            path,
            in_one_line(some(odd)),
        )


def _is_index(name: str, column: Column) -> bool:
    """Whether it is nameless 0, 1, 2 and so on, as the index that pandas writes first."""
    if not _UNNAMED.fullmatch(name) or not pa.types.is_integer(column.type) or column.null_count:
        return False
    return bool((column.to_numpy() == np.arange(len(column))).all())


def _ids(column: Column, path: Path) -> Column | None:
    """The ids of the rows; None where they are 0, 1, 2 and so on."""
    column = ids_of(column)
    if column.null_count:
        raise UserError(f"{path}: a node has no id; fill the column, or leave it out")
    if pc.count_distinct(column).as_py() != len(column):
        raise UserError(f"{path}: two nodes have the same id; give each its own")
    if pa.types.is_integer(column.type):
        rows = numbers(column, "id", path)
        if bool((rows == torch.arange(len(rows))).all()):
            return None
    return column


def _labels(column: Column, path: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Labels [n], -1 where a cell is empty; and what they are called, if they are words."""
    if is_list(column):
        return label_lists(column, path), ()
    if is_numeric(column):
        return numbers(column, "label", path), ()
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
    if is_numeric(column):
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
