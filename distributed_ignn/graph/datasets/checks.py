"""What every loader shares at its end: split sets and the final validation.

Letters: n nodes, F features, C classes, E stored entries.
"""

from __future__ import annotations

import errno

import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import UNKNOWN, CSRMatrix, GraphData
from distributed_ignn.reading.plain_files import in_one_line

_ROWS = 1 << 16


def validate(data: GraphData, origin: str) -> GraphData:
    """Return ``data`` if every rule of a training graph holds.

    Args:
        data: what a loader built.
        origin: where it came from, the first words of any message.

    Raises:
        UserError: the first broken rule, in one line.
    """
    validate_graph(data, origin)
    _check_labels(data, origin)
    _check_splits(data, origin)
    return data


def validate_graph(data: GraphData, origin: str) -> GraphData:
    """As ``validate``, of edges and features alone."""
    if data.num_nodes < 2:
        raise UserError(
            f"{origin}: {data.num_nodes} node(s); a graph needs at least two, give a larger one"
        )
    for channel, graph in enumerate(data.graphs):
        _check_graph(graph, data.num_nodes, f"{origin}: graph {channel}")
    if data.features is not None:
        _check_features(data.features, data.num_nodes, origin)
    return data


def brief(error: BaseException) -> str:
    """An exception in one line, for use inside a message."""
    return in_one_line((str(error).strip().splitlines() or [type(error).__name__])[0])


def way_out(error: BaseException, damaged: str) -> str:
    """What to do about a file that could not be read or unpacked.

    Args:
        error: what happened.
        damaged: what to do where the file itself may be to blame, and not the disk or a right.
    """
    number = getattr(error, "errno", None)
    elsewhere = (
        "name another folder with --data-root, or with XDG_CACHE_HOME where the data are read-only"
    )
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"make room on the disk, or {elsewhere}"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"give yourself the right to read and write there, or {elsewhere}"
    return damaged


def check_ids(ids: Tensor, bound: int, what: str) -> None:
    """Refuse ids outside [0, bound).

    Raises:
        UserError: naming the smallest or largest offender.
    """
    if ids.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(ids))
    if low < 0 or high >= bound:
        worst = low if low < 0 else high
        raise UserError(f"{what}: id {worst} is outside 0..{bound - 1}; ids count nodes from 0")


def _check_graph(graph: CSRMatrix, num_nodes: int, what: str) -> None:
    if graph.num_rows != num_nodes or graph.num_cols != num_nodes:
        raise UserError(
            f"{what} is {graph.num_rows} x {graph.num_cols} but there are {num_nodes} nodes"
        )
    _check_csr(graph, what)
    if graph.num_entries == 0:
        raise UserError(
            f"{what} has no edges besides self-loops, so no node would see another; add "
            "edges to the file"
        )
    check_ids(graph.col, num_nodes, what)
    if graph.value is not None and not bool((graph.value > 0).all() & graph.value.isfinite().all()):
        raise UserError(f"{what} has weights that are no finite numbers above 0; correct them")


def _check_csr(matrix: CSRMatrix, what: str) -> None:
    """Offsets that do not fit the entries would make the kernels read foreign memory."""
    problem = matrix.problem()
    if problem is not None:
        raise UserError(f"{what} is damaged, {problem}; read it again from its source")


def _check_features(features: CSRMatrix | Tensor, num_nodes: int, origin: str) -> None:
    sparse = isinstance(features, CSRMatrix)
    rows = features.num_rows if isinstance(features, CSRMatrix) else features.shape[0]
    width = features.num_cols if isinstance(features, CSRMatrix) else features.shape[1]
    if rows != num_nodes:
        raise UserError(f"{origin}: {rows} feature rows for {num_nodes} nodes; give one row a node")
    if width == 0:
        raise UserError(f"{origin}: features have no columns; leave them out to learn embeddings")
    values = features.value if isinstance(features, CSRMatrix) else features
    if isinstance(features, CSRMatrix):
        _check_csr(features, f"{origin}: feature matrix")
        check_ids(features.col, width, f"{origin}: feature columns")
    if values is not None and not _is_finite(values):
        bad = (~torch.isfinite(values)).nonzero()[0]
        row = int(features.rows()[bad[0]]) if isinstance(features, CSRMatrix) else int(bad[0])
        kind = "sparse features" if sparse else "features"
        place = "" if sparse else f", column {int(bad[1])}"
        raise UserError(
            f"{origin}: {kind} hold NaN or infinity, first in node {row}{place}; put numbers there "
            "that float32 can hold"
        )


def _is_finite(values: Tensor) -> bool:
    """In pieces: a mask, or the copy in double precision that a sum makes, may be larger than X."""
    # the sum is NaN or infinite whenever an entry is
    return all(
        bool(torch.isfinite(piece.sum(dtype=torch.float64))) for piece in values.split(_ROWS)
    )


def _check_labels(data: GraphData, origin: str) -> None:
    labels = data.labels
    if labels.shape[0] != data.num_nodes:
        raise UserError(
            f"{origin}: {labels.shape[0]} labels for {data.num_nodes} nodes; give one a node"
        )
    if data.task == "multilabel":
        known = (labels == 0) | (labels == 1) | (labels == UNKNOWN)
        if labels.shape[1] != data.num_classes or not bool(known.all()):
            raise UserError(
                f"{origin}: multi-label targets must be 0 or 1 (-1 where one is not known), one "
                f"column for each of the {data.num_classes} classes"
            )
        return
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < -1 or high >= data.num_classes:
        worst = low if low < -1 else high
        raise UserError(
            f"{origin}: label {worst} is outside 0..{data.num_classes - 1} (-1 means unlabelled); "
            "number the classes from 0, or correct num_classes"
        )
    if data.num_classes < 2:
        raise UserError(
            f"{origin}: {data.num_classes} class(es) in the labels; at least two are needed, "
            "numbered from 0"
        )


def _check_splits(data: GraphData, origin: str) -> None:
    splits = {"train": data.train_nodes, "validation": data.val_nodes, "test": data.test_nodes}
    taken = torch.zeros(data.num_nodes, dtype=torch.bool)
    for name, nodes in splits.items():
        if nodes.numel() == 0:
            raise UserError(
                f"{origin}: the {name} split is empty; every split needs nodes, put some into it"
            )
        check_ids(nodes, data.num_nodes, f"{origin}: {name} split")
        if bool((nodes[1:] <= nodes[:-1]).any()):
            steps = nodes[1:] - nodes[:-1]
            node = int(nodes[1:][steps <= 0][0])
            raise UserError(
                f"{origin}: the {name} split names node {node} twice or out of order; name each "
                "node once, in ascending order"
            )
        if bool(taken[nodes].any()):
            node = int(nodes[taken[nodes]][0])
            raise UserError(
                f"{origin}: node {node} is in the {name} split and in another; keep each node in "
                "one split at most"
            )
        taken[nodes] = True
        if data.task == "multiclass" and bool((data.labels[nodes] < 0).any()):
            node = int(nodes[data.labels[nodes] < 0][0])
            raise UserError(
                f"{origin}: node {node} of the {name} split has no label; label it, or take it out "
                "of the split"
            )
