"""The labels of the user's own graph: what is known, and what NaN and -1 leave open.

Letters: n nodes, C classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import UNKNOWN, Task
from distributed_ignn.graph.datasets.fields import Fields, some
from distributed_ignn.reading.plain_files import in_one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What is to be predicted.

    Args:
        labels: as in ``GraphData``.
        num_classes: C.
        task: which kind of labels.
    """

    labels: Tensor
    num_classes: int
    task: Task

    @property
    def labelled(self) -> Tensor:
        """Which nodes have a label, or one of several, bool [n]."""
        known = self.labels >= 0
        return known if self.task == "multiclass" else known.any(dim=1)


def targets_of(fields: Fields) -> Targets:
    """The labels ``y`` [n], [n, 1] or [n, C]; NaN and -1 mean that one is not known.

    Raises:
        UserError: there are none, or they are no classes.
    """
    if "y" not in fields:
        held = some(sorted(fields.present))
        raise UserError(
            f"{fields.origin}: labels are missing; give y, one row a node, or of a file say which "
            f"it is, as in --data.label NAME (there are: {in_one_line(held)})"
        )
    y = fields["y"]
    if y.dim() == 2 and y.shape[1] == 1:
        y = y.flatten()
    if y.is_floating_point():
        y = y.to(torch.float64)  # the shorter formats cannot be rounded
        y = torch.where(y.isnan(), UNKNOWN, y)
    if y.dim() == 2:
        return _several(y, fields)
    if y.dim() != 1 or y.numel() == 0:
        raise UserError(
            f"{fields.origin}: y has shape {tuple(y.shape)}; [nodes] or [nodes, classes] is needed"
        )
    strange = ((y != y.round()) | (y.abs() >= 2**53)).nonzero() if y.is_floating_point() else y[:0]
    if strange.numel():
        node = int(strange[0])
        raise UserError(
            f"{fields.origin}: y holds numbers that are no class, first {y[node].item():g} of node "
            f"{node}; use whole numbers from 0, and -1 or NaN where a node has no label"
        )
    labels = y.to(torch.int64)
    found = max(int(labels.max()) + 1, len(fields.class_names))
    num_classes = int(fields["num_classes"]) if "num_classes" in fields else found
    if fields.class_names and num_classes != len(fields.class_names):
        raise UserError(
            f"{fields.origin}: num_classes is {num_classes} and y has {len(fields.class_names)} "
            "different words; leave num_classes out"
        )
    if "num_classes" in fields and num_classes < 1:
        raise UserError(
            f"{fields.origin}: num_classes is {num_classes}; leave it out, or give at least 1"
        )
    if num_classes > y.numel():
        raise UserError(
            f"{fields.origin}: {num_classes} classes (largest label + 1) for {y.numel()} nodes; "
            "number the classes from 0 without gaps"
        )
    return Targets(labels, num_classes, "multiclass")


def _several(y: Tensor, fields: Fields) -> Targets:
    """Several labels a node, [n, C]."""
    known = y[(y != UNKNOWN).all(dim=1)]
    if y.shape[1] > 1 and known.numel() and bool(((known == 1).sum(dim=1) == 1).all()):
        logger.warning(
            "%s: every node has one of the %d labels of y [n, %d], each of which is learned by "
            "itself; if they exclude each other, give their numbers, y.argmax(1)",
            fields.origin,
            y.shape[1],
            y.shape[1],
        )
    if "num_classes" in fields and int(fields["num_classes"]) != y.shape[1]:
        raise UserError(
            f"{fields.origin}: num_classes is {int(fields['num_classes'])} and y has "
            f"{y.shape[1]} columns, one for each label; leave num_classes out"
        )
    return Targets(y.to(torch.float32), y.shape[1], "multilabel")


def tell_unlearned(targets: Targets, train: Tensor, fields: Fields) -> None:
    """Tell of classes that no node has, and of those that no training node has.

    Args:
        targets: the labels.
        train: ids of the training nodes.
        fields: where they come from.
    """
    if targets.task != "multiclass":
        return
    classes = targets.num_classes

    def counted(labels: Tensor) -> Tensor:
        """Nodes of each class; what is no label is refused later, with its place."""
        return torch.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)

    sizes, learned = counted(targets.labels), counted(targets.labels[train])
    names = fields.class_names or tuple(map(str, range(classes)))
    for text, found in (
        ("no node has the label %s; classes are counted from 0", sizes == 0),
        (
            "no training node has the label %s, which cannot be learned",
            (sizes > 0) & (learned == 0),
        ),
    ):
        lacking = [names[c] for c in found.nonzero().flatten().tolist()]
        if lacking:
            logger.info(f"%s: {text}", fields.origin, in_one_line(some(lacking)))
