"""The user's own edges as a table; ``node_table.py`` reads that of the nodes beside it.

Columns go by their names, whatever their case. Letters: n nodes, E edges, F features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.fields import some
from distributed_ignn.graph.datasets.node_table import NodeTable
from distributed_ignn.graph.datasets.table_columns import numbers, row_numbers, table_columns, take
from distributed_ignn.reading.plain_files import in_one_line

logger = logging.getLogger(__name__)

_SOURCE = ("source", "src", "from", "fromnodeid", "id_1", "node_1")
_TARGET = ("target", "dst", "to", "tonodeid", "id_2", "node_2")
_WEIGHT = ("weight", "edge_weight")


def edge_table(path: Path, nodes: NodeTable | None) -> dict[str, Tensor]:
    """``edge_index`` and, if a column is called so, ``edge_weight`` of a table of edges.

    The columns ``source`` and ``target`` name the nodes of an edge, else the first two do.

    Args:
        path: of the file.
        nodes: to which the names in the table belong; None where they count nodes from 0.

    Raises:
        UserError: it cannot be read, or breaks a rule.
    """
    columns, named = table_columns(path, _ends)
    if len(columns) < 2:
        raise UserError(f"{path} has {len(columns)} column; two that name the ends are needed")
    source, target = take(columns, _SOURCE), take(columns, _TARGET)
    weight = take(columns, _WEIGHT)
    if source is None and target is None:
        ends = _ends(list(columns))
        if named:
            _check_names(ends, nodes, path)
        source, target = (columns.pop(name) for name in ends)
    if source is None or target is None:
        raise UserError(
            f"{path} names one end of the edges alone; call the columns source and target"
        )
    if columns:
        unread = in_one_line(some(sorted(columns)))
        named_weight = "" if weight is not None else "; a column called weight would be"
        logger.info("%s: not read: %s%s", path, unread, named_weight)
    both = [
        row_numbers(end, path) if nodes is None else nodes.numbers_of(end, path)
        for end in (source, target)
    ]
    found = {"edge_index": torch.stack(both)}
    return found if weight is None else found | {"edge_weight": numbers(weight, "weight", path)}


def _ends(names: Sequence[str]) -> Sequence[str]:
    """The columns that name the nodes of an edge: by what they are called, else the first two."""
    called = (next((n for n in usual if n in names), None) for usual in (_SOURCE, _TARGET))
    return [name for name in called if name is not None] or names[:2]


def _check_names(ends: Sequence[str], nodes: NodeTable | None, path: Path) -> None:
    """Whether a first row of other words than expected names columns, or is an edge itself."""
    if nodes is not None and nodes.ids is not None:
        ids = pc.utf8_lower(nodes.ids.cast(pa.string()))
        if all(pc.is_in(pa.array(ends), value_set=ids.combine_chunks()).to_pylist()):
            raise UserError(
                f"{path}: the first row is an edge; put a row of names before it: source,target"
            )
    logger.info("%s: edges lead from column %s to column %s", path, *map(in_one_line, ends))
