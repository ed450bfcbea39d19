"""What a graph of one's own says is what is read, or a line says what is not."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import scipy.sparse as sp
import torch

from distributed_ignn.config import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import graph_in_memory, graph_to_predict
from distributed_ignn.graph.datasets.user_file import load_user_file

N = 6
RING = np.stack([np.arange(N), np.roll(np.arange(N), 1)])
X = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
Y = np.array([0, 1, 0, 1, 0, 1])
SPLIT = {"train_idx": np.array([0, 1]), "val_idx": np.array([2, 3]), "test_idx": np.array([4, 5])}
BASE: dict[str, Any] = {"edge_index": RING, "x": X, "y": Y, **SPLIT}
SEVERAL = np.array([[0, 1], [1, 0], [1, 1], [0, 1], [1, 0], [1, 1]])


def _graph(**changes: Any) -> GraphData:
    found = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    return graph_in_memory(found, DataConfig())


def _predicted(source: object, **data: Any) -> GraphData:
    return graph_to_predict(source, DataConfig(**data), 2, "multiclass")


def _booleans() -> sp.coo_array:
    """Two edges each way, and two entries that are False."""
    value = np.array([True, True, False, False])
    return sp.coo_array((value, ([0, 1, 2, 3], [1, 0, 3, 2])), shape=(N, N))


def test_false_in_a_matrix_is_no_edge(tmp_path: Path) -> None:
    assert _graph(edge_index=None, adj_t=_booleans()).graphs[0].num_entries == 2
    sp.save_npz(tmp_path / "edges.npz", _booleans())
    rows = [f"{i},{Y[i]},{('train', 'val', 'test')[i // 2]},{i}" for i in range(N)]
    (tmp_path / "nodes.csv").write_text("\n".join(["id,label,split,x0", *rows]))
    data = DataConfig(nodes=tmp_path / "nodes.csv")
    assert load_user_file(tmp_path / "edges.npz", data).graphs[0].num_entries == 2
    arrays = {"A": _booleans().tocsc(), "X": X, "y": Y + 0.0}
    arrays |= {name: ids + 0.0 for name, ids in SPLIT.items()}
    scipy.io.savemat(tmp_path / "graph.mat", arrays)
    assert load_user_file(tmp_path / "graph.mat", DataConfig()).graphs[0].num_entries == 2


def test_a_feature_that_is_called_as_a_label_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.savetxt(tmp_path / "edges.csv", RING.T, fmt="%d", delimiter=",", header="a,b", comments="")
    rows = [f"{i},{Y[i]},{Y[i]},{('train', 'val', 'test')[i // 2]},{i}" for i in range(N)]
    (tmp_path / "nodes.csv").write_text("\n".join(["id,label,class,split,age", *rows]))
    data = DataConfig(nodes=tmp_path / "nodes.csv")
    with caplog.at_level(logging.WARNING):
        found = load_user_file(tmp_path / "edges.csv", data)
    assert found.num_features == 2
    assert "called as labels or ids are, and read as a feature: class; leave it out" in caplog.text


def _objects(*values: Any) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


NA = type("NAType", (), {})()


@pytest.mark.parametrize(
    "y",
    [
        _objects(0, 1, 0, 1, 0, None),
        _objects(0, np.int64(1), 0, 1.0, 0, float("nan")),
        _objects(0, 1, 0, 1, 0, NA),
    ],
)
def test_numbers_among_objects_may_have_gaps(y: np.ndarray) -> None:
    found = _graph(y=y, train_idx=np.array([0, 1]), test_idx=np.array([4]))
    assert found.labels.tolist() == [0, 1, 0, 1, 0, -1]
    assert found.class_names == ()


def test_words_may_have_the_gaps_of_pandas() -> None:
    found = _graph(y=_objects("a", "b", "a", "b", "a", NA), test_idx=np.array([4]))
    assert (found.class_names, found.labels.tolist()) == (("a", "b"), [0, 1, 0, 1, 0, -1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.array([["no", "yes"]] * N)}, r"y holds words and has shape \(6, 2\)"),
        ({"y": _objects("a", 1, "b", 2, "a", 1)}, "y is an array of object, .* words alone"),
        ({"num_classes": -1}, "num_classes is -1; leave it out"),
        ({"y": SEVERAL, "num_classes": 7}, "num_classes is 7 and y has 2 columns"),
        ({"x": sp.coo_array(np.arange(N))}, "x is "),
    ],
)
def test_a_line_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^data: {message}"):
        _graph(**changes)


def test_long_doubles_in_a_sparse_matrix_are_numbers() -> None:
    value = np.ones(N, dtype=np.longdouble)
    assert _graph(x=sp.coo_array((value, (np.arange(N), np.arange(N))))).num_features == N


def test_arrays_that_may_not_be_written_are_read_without_a_word() -> None:
    x = X.copy()
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _graph(x=x).num_features == 2


def test_weights_beside_a_matrix_are_told_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matrix = np.zeros((N, N))
    matrix[RING[0], RING[1]] = 1.0
    arrays: dict[str, Any] = {"A": matrix, "edge_weight": np.arange(3.0), "x": X, "y": Y, **SPLIT}
    np.savez(tmp_path / "graph.npz", **arrays)
    with caplog.at_level(logging.INFO):
        found = load_user_file(tmp_path / "graph.npz", DataConfig(adjacency="A"))
    assert found.graphs[0].value is None
    assert "not read: edge_weight, since the matrix has values of its own" in caplog.text
    with pytest.raises(UserError, match=r"data\.adjacency = A is a matrix, whose values are"):
        load_user_file(tmp_path / "graph.npz", DataConfig(adjacency="A", edge_weights="use"))


def test_predicting_reads_no_labels_and_no_split(tmp_path: Path) -> None:
    source = {"edge_index": RING, "x": X, "y": _objects(*[None] * N), "val_idx": [], "split_idx": 3}
    assert _predicted(source).num_nodes == N
    np.savetxt(tmp_path / "edges.csv", RING.T, fmt="%d", delimiter=",", header="a,b", comments="")
    table = pa.table({"label": [None] * N, "split": ["new"] * N, "a": X[:, 0], "b": X[:, 1]})
    pq.write_table(table, tmp_path / "nodes.parquet")
    found = _predicted(tmp_path / "edges.csv", nodes=tmp_path / "nodes.parquet")
    assert (found.num_features, found.labels.unique().tolist()) == (2, [-1])


def test_features_of_a_graph_to_predict_have_rows() -> None:
    with pytest.raises(UserError, match=r"^data: x is one number; give x \[nodes"):
        _predicted({"edge_index": RING, "x": torch.tensor(1.0)})


def test_names_of_the_trained_file_are_not_asked_of_another(tmp_path: Path) -> None:
    named = {"features": "feats", "label": "kind", "adjacency": "A"}
    assert _predicted({"edge_index": RING, "x": X}, **named).num_features == 2
    np.savez(tmp_path / "same.npz", A=np.eye(N)[RING[1]], feats=X[:, :1], x=X)
    assert _predicted(tmp_path / "same.npz", **named).num_features == 1
    scipy.io.savemat(tmp_path / "other.mat", {"network": np.eye(N)[RING[1]], "attrb": X})
    assert _predicted(tmp_path / "other.mat", **named).num_features == 2
    np.savetxt(tmp_path / "edges.csv", RING.T, fmt="%d", delimiter=",", header="a,b", comments="")
    (tmp_path / "nodes.csv").write_text("\n".join(["x,y", *(f"{i},{i}" for i in range(N))]))
    found = _predicted(tmp_path / "edges.csv", nodes=tmp_path / "nodes.csv", **named)
    assert found.num_features == 2  # as in training, where y is not the label


def test_lists_of_labels_may_have_gaps(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "edges.csv", RING.T, fmt="%d", delimiter=",", header="a,b", comments="")
    label = [[0, 1], [1, 0], None, [None, 1], [0, 1], [1, -1]]
    split = ["train", "train", "", "val", "test", "test"]
    table = pa.table({"label": label, "split": split, "x0": X[:, 0]})
    pq.write_table(table, tmp_path / "nodes.parquet")
    found = load_user_file(tmp_path / "edges.csv", DataConfig(nodes=tmp_path / "nodes.parquet"))
    assert found.task == "multilabel"
    expected = [[0, 1], [1, 0], [-1, -1], [-1, 1], [0, 1], [1, -1]]
    assert found.labels.tolist() == torch.tensor(expected, dtype=torch.float32).tolist()


def test_remarks_may_hold_what_other_programs_take_for_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "edges.mtx"
    entries = "\n".join(f"{a + 1} {b + 1}" for a, b in RING.T)
    head = "%%MatrixMarket matrix coordinate pattern general\n% by Ångström\n"
    path.write_text(f"{head}{N} {N} {N}\n{entries}\n", encoding="utf-8")
    rows = [f"{Y[i]},{('train', 'val', 'test')[i // 2]},{i}" for i in range(N)]
    (tmp_path / "nodes.csv").write_text("\n".join(["label,split,x0", *rows]))
    data = DataConfig(nodes=tmp_path / "nodes.csv")
    assert load_user_file(path, data).graphs[0].num_entries == 2 * N
    remark = "# from one\u2028to another"
    lines = [remark, "a,b", *(f"{a},{b}" for a, b in RING.T)]
    (tmp_path / "edges.csv").write_text("\n".join(lines), encoding="utf-8")
    assert load_user_file(tmp_path / "edges.csv", data).graphs[0].num_entries == 2 * N
