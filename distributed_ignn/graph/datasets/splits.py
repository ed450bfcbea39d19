"""Which nodes of the user's own graph train, validate and test: as the file says, or drawn.

Letters: n nodes, K splits of a file that holds several.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from distributed_ignn.config.dataset import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets.checks import check_ids
from distributed_ignn.graph.datasets.fields import SPLITS, Fields
from distributed_ignn.graph.datasets.known_labels import Targets
from distributed_ignn.graph.hashing import hash_ids

logger = logging.getLogger(__name__)

_STREAM = 41
_DRAW = "--data.split random draws one"


def splits_of(fields: Fields, targets: Targets, data: DataConfig) -> dict[str, Tensor]:
    """Ascending ids of the train, val and test nodes; a line tells what was drawn or left out.

    Args:
        fields: with masks or ids of nodes, or without.
        targets: nodes without a label are in no split.
        data: ``split``, ``split_train``, ``split_val`` and ``split_seed`` are read.

    Raises:
        UserError: a split is missing and none is asked for, or what is asked for cannot be.
    """
    if data.draws_split:
        return _drawn_splits(fields, targets, data)
    n = targets.labels.shape[0]
    column = None if isinstance(data.split, str) else data.split
    if column is not None and not any(_holds_several(fields, s) for s in SPLITS):
        raise UserError(
            f"data.split = {column} and {fields.origin} holds one split at most; drop the setting"
        )
    given = {split: _given(fields, split, n, column) for split in SPLITS}
    return {split: _labelled(nodes, split, targets, fields) for split, nodes in given.items()}


def _labelled(nodes: Tensor, split: str, targets: Targets, fields: Fields) -> Tensor:
    """Those that have a label; how many have none is told."""
    kept = nodes[targets.labelled[nodes]]
    without = nodes.numel() - kept.numel()
    if without:
        text = "%s: %d of %d %s nodes have no label (NaN or -1) and are left out of the split"
        logger.warning(text, fields.origin, without, nodes.numel(), split)
    return kept


def _name(fields: Fields, split: str) -> str | None:
    return next(
        (f"{split}_{kind}" for kind in ("idx", "mask") if f"{split}_{kind}" in fields), None
    )


def _holds_several(fields: Fields, split: str) -> bool:
    """Whether a mask or list of ids is that of several splits."""
    name = _name(fields, split)
    return name is not None and fields[name].dim() == 2 and fields[name].shape[1] > 1


def _given(fields: Fields, split: str, n: int, column: int | None) -> Tensor:
    """The nodes of one split of the file, as it is in the file."""
    name = _name(fields, split)
    if name is None:
        raise UserError(
            f"{fields.origin}: {split} nodes are missing; give {split}_mask or {split}_idx, or "
            f"{_DRAW}"
        )
    value = _column(fields, name, n, column)
    if name.endswith("_idx"):
        nodes = Fields({name: value}, fields.origin).integers(name)
        if column is not None:
            nodes = nodes[nodes >= 0]  # shorter lists of a table are filled up
        check_ids(nodes, n, f"{fields.origin}: {name}")
        return torch.sort(nodes).values
    if value.shape != (n,):
        raise UserError(
            f"{fields.origin}: {name} has shape {tuple(fields[name].shape)}; {n} values, true or "
            "false, are needed"
        )
    bad = ((value != 0) & (value != 1)).nonzero()
    if bad.numel():
        node = int(bad[0])
        found = value[node].item()
        raise UserError(
            f"{fields.origin}: {name} of node {node} is {'empty or ' * (found != found)}{found:g}; "
            "true or false (1 or 0) is needed"
        )
    return value.nonzero().flatten()


def _column(fields: Fields, name: str, n: int, column: int | None) -> Tensor:
    """The chosen column of a table of splits; what is that of one split is taken as it is."""
    value = fields[name]
    if value.dim() != 2:
        return value
    if name.endswith("_mask") and value.shape[0] != n and value.shape[1] == n:
        value = value.T  # a row for each split, as in the heterophilous graphs
    if value.shape[1] == 1:
        return value.flatten()
    if column is None:
        raise UserError(
            f"{fields.origin}: {name} holds {value.shape[1]} splits, one a column; choose one, as "
            "in --data.split 0"
        )
    if column >= value.shape[1]:
        raise UserError(
            f"data.split = {column} is not there: {name} of {fields.origin} holds the splits 0 to "
            f"{value.shape[1] - 1}; choose one of them"
        )
    return value[:, column]


def _drawn_splits(fields: Fields, targets: Targets, data: DataConfig) -> dict[str, Tensor]:
    """A split of all labelled nodes, or validation nodes out of the training nodes of a file."""
    has = {split for split in SPLITS if _name(fields, split) is not None}
    n = targets.labels.shape[0]
    if has == {"train", "test"}:
        given = {split: _given(fields, split, n, None) for split in sorted(has)}
        left = {s: _labelled(nodes, s, targets, fields) for s, nodes in given.items()}
        val = _taken(left["train"], "val", targets, data, fields.origin)
        train = left["train"][~torch.isin(left["train"], val)]
        parts = {"train": train, "val": val, "test": left["test"]}
        how = "validation nodes are drawn from the training nodes"
    else:
        nodes = targets.labelled.nonzero().flatten()
        train = _taken(nodes, "train", targets, data, fields.origin)
        rest = nodes[~torch.isin(nodes, train)]
        val = _taken(rest, "val", targets, data, fields.origin, of=nodes)
        parts = {"train": train, "val": val, "test": rest[~torch.isin(rest, val)]}
        how = "the split is drawn" + (", that of the file is not used" if has else "")
    sizes = ", ".join(f"{nodes.numel()} {split}" for split, nodes in parts.items())
    text = "%s: %s (data.split = %s, seed %d): %s nodes"
    logger.info(text, fields.origin, how, data.split, data.split_seed, sizes)
    return parts


def _taken(
    nodes: Tensor,
    split: Literal["train", "val"],
    targets: Targets,
    data: DataConfig,
    origin: Path,
    of: Tensor | None = None,
) -> Tensor:
    """So many of ``nodes`` as a split is to have, ascending.

    Args:
        nodes: to take from.
        split: ``train`` or ``val``.
        targets: the labels.
        data: how many.
        origin: the first word of any message.
        of: the nodes that a share is a share of; ``nodes`` by default.
    """
    of = nodes if of is None else of
    if of.numel() == 0:
        raise UserError(
            f"{origin}: no node has a label; give some of them labels from 0 on (-1 stands for one "
            "that is not known)"
        )
    size = data.split_size(split)
    order = nodes[torch.argsort(hash_ids(_STREAM + data.split_seed, nodes), stable=True)]
    taken = [
        group[: _count(size, whole.numel(), group.numel(), f"{origin}: {name}", split)]
        for name, group, whole in _groups(order, of, targets, data, origin)
    ]
    return torch.cat([nodes[:0], *taken]).sort().values


def _groups(
    order: Tensor, of: Tensor, targets: Targets, data: DataConfig, origin: Path
) -> Iterable[tuple[str, Tensor, Tensor]]:
    """Of all nodes or of each class: its name, the nodes to take from, those to count."""
    if data.split == "random":
        return [("the graph", order, of)]
    if targets.task != "multiclass":
        raise UserError(
            f"data.split = per-class and nodes of {origin} have several labels; take --data.split "
            "random"
        )
    classes = torch.unique(targets.labels[of]).tolist()
    return [
        (f"class {c}", order[targets.labels[order] == c], of[targets.labels[of] == c])
        for c in classes
    ]


def _count(size: float, whole: int, there: int, what: str, split: str) -> int:
    """How many nodes are taken, at least one; some must be left for what follows."""
    count = max(round(size * whole), 1) if size < 1 else round(size)
    if count >= there:
        raise UserError(
            f"{what} has {there} labelled nodes, data.split_{split} = {size:g} takes {count} and "
            f"leaves none; lower it, as with --data.split-{split} 0.2 (a share)"
        )
    return count
