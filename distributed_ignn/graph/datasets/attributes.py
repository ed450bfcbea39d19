"""The graph that named arrays make, to train on or to predict on.

Letters: n nodes, F features, C classes.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from distributed_ignn.config.dataset import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.building import check_id_space
from distributed_ignn.graph.data import UNKNOWN, CSRMatrix, GraphData, Task
from distributed_ignn.graph.datasets.fields import Fields, missing_name
from distributed_ignn.graph.datasets.known_labels import targets_of, tell_unlearned
from distributed_ignn.graph.datasets.links import graph_channels
from distributed_ignn.graph.datasets.splits import splits_of

logger = logging.getLogger(__name__)

_NO_NODES = torch.empty(0, dtype=torch.int64)


def labelled_graph(fields: Fields, data: DataConfig) -> GraphData:
    """A graph to train on; what its fields may be, ``load_user_file`` says.

    Args:
        fields: the arrays.
        data: edge weights, directions and the split are read.

    Raises:
        UserError: something is missing or breaks a rule.
    """
    if data.label is not None and "y" not in fields:
        raise missing_name("label", data.label, fields.present, fields.origin)
    targets = targets_of(fields)
    n = targets.labels.shape[0]
    if "x" in fields and fields["x"].dim() == 2 and fields["x"].shape[0] != n:
        raise UserError(  # before edges are held against the shorter of them
            f"{fields.origin}: {fields['x'].shape[0]} feature rows for {n} nodes by y; give one "
            "row a node in both, with -1 for labels that are not known"
        )
    graphs = graph_channels(fields, n, data.edge_weights, data.directions)
    features = _features(fields, n)
    splits = splits_of(fields, targets, data)
    tell_unlearned(targets, splits["train"], fields)
    return GraphData(
        name=fields.origin.stem,
        graphs=graphs,
        graph_channels=len(graphs),
        features=features,
        labels=targets.labels,
        num_classes=targets.num_classes,
        task=targets.task,
        train_nodes=splits["train"],
        val_nodes=splits["val"],
        test_nodes=splits["test"],
        class_names=fields.class_names,
        node_ids=fields.node_ids,
    )


def unlabelled_graph(fields: Fields, data: DataConfig, num_classes: int, task: Task) -> GraphData:
    """A graph to predict on: edges and features; labels and splits that are there are not read.

    Args:
        fields, data: as in ``labelled_graph``.
        num_classes, task: of the model.

    Raises:
        UserError: something is missing or breaks a rule.
    """
    n = _feature_rows(fields)
    graphs = graph_channels(fields, n, data.edge_weights, data.directions)
    return GraphData(
        name=fields.origin.stem,
        graphs=graphs,
        graph_channels=len(graphs),
        features=_features(fields, n),
        node_ids=fields.node_ids,
        **no_labels(n, num_classes, task),
    )


def no_labels(n: int, num_classes: int, task: Task) -> dict[str, Any]:
    """The fields of a ``GraphData`` of n nodes that predicting does without."""
    several = task == "multilabel"
    return {
        "labels": torch.full((n, num_classes), float(UNKNOWN)) if several else torch.full((n,), -1),
        "num_classes": num_classes,
        "task": task,
        "class_names": (),
        **dict.fromkeys(("train_nodes", "val_nodes", "test_nodes"), _NO_NODES),
    }


def _feature_rows(fields: Fields) -> int:
    if "x" not in fields and "x_indptr" not in fields:
        raise UserError(f"{fields.origin}: features are missing; give x [nodes, features]")
    if "x" not in fields:
        return fields["x_indptr"].numel() - 1
    if fields["x"].dim() == 0:
        raise UserError(f"{fields.origin}: x is one number; give x [nodes, features]")
    return fields["x"].shape[0]


def _features(fields: Fields, n: int) -> CSRMatrix | Tensor | None:
    if "x_indptr" in fields or "x_indices" in fields:
        return _sparse_features(fields, n)
    if "x" not in fields:
        logger.info("%s: no features; the model learns an embedding for each node", fields.origin)
        return None
    x = fields["x"]
    if x.dim() != 2 or (x.layout is not torch.strided and x.dense_dim() > 0):
        raise UserError(
            f"{fields.origin}: x has shape {tuple(x.shape)}; [nodes, features] is needed, reshape "
            "it, as in x.reshape(len(x), -1)"
        )
    if x.layout is torch.strided:
        return x.to(torch.float32).contiguous()
    if x.shape[0] != n:  # before memory is taken for as many rows
        raise UserError(
            f"{fields.origin}: {x.shape[0]} feature rows for {n} nodes; give one row a node"
        )
    check_id_space(x.shape[1], "columns of x")
    coo = x.to(torch.float32).to_sparse_coo().coalesce()
    return _csr(sp.csr_array((coo.values().numpy(), tuple(coo.indices().numpy())), x.shape))


def _sparse_features(fields: Fields, n: int) -> CSRMatrix:
    if "x_indptr" not in fields or "x_indices" not in fields:
        raise UserError(f"{fields.origin}: sparse features need both x_indptr and x_indices")
    col = fields.integers("x_indices")
    pointer = fields.row_pointer("x_indptr", n, col.numel())
    if col.numel() == 0 or int(col.min()) < 0:
        raise UserError(
            f"{fields.origin}: x_indices must hold column numbers from 0, and at least one"
        )
    value = fields["x_data"] if "x_data" in fields else torch.ones(col.numel())
    value = value.to(torch.float32)
    if value.shape != col.shape:
        raise UserError(
            f"{fields.origin}: x_data has {value.numel()} entries, x_indices has {col.numel()}"
        )
    shape = (n, int(col.max()) + 1)
    check_id_space(shape[1], "columns of x")
    arrays = value.numpy(), col.numpy(), pointer.numpy()
    return _csr(sp.csr_array(arrays, shape, copy=True))  # sorted in place, and the user's own


def _csr(matrix: sp.csr_array) -> CSRMatrix:
    matrix.sum_duplicates()  # sorts the columns too
    value = None if (matrix.data == 1).all() else torch.from_numpy(matrix.data)
    check_id_space(max(matrix.shape), "rows or columns of x")
    rowptr = torch.from_numpy(matrix.indptr.astype(np.int64))
    col = torch.from_numpy(matrix.indices.astype(np.int32, copy=False))
    return CSRMatrix(rowptr, col, value, matrix.shape[1])
