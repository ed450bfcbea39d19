"""The user's own files, the names of datasets, and the validation that all loaders share."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_ignn.config import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges
from distributed_ignn.graph.datasets import DATASETS, graph_in_memory, load_dataset, validate

# PyTorch Geometric compiles a class on import in a way that newer torch versions deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

N = 5
EDGES = np.array([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
X = np.array([[1, 0, 0], [0, 0.5, 0], [0, 0, 0], [2, 0, -1], [0, 0, 1]], dtype=np.float64)


def _mask(*nodes: int) -> np.ndarray:
    mask = np.zeros(N, dtype=bool)
    mask[list(nodes)] = True
    return mask


def _arrays(**changes: Any) -> dict[str, Any]:
    arrays = {
        "edge_index": EDGES,
        "x": X,
        "y": np.array([0, 1, 2, 1, -1]),
        "train_mask": _mask(0, 1),
        "val_mask": _mask(2),
        "test_mask": _mask(3),
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def _load_npz(folder: Path, **changes: Any) -> GraphData:
    path = folder / "mine.npz"
    np.savez(path, **_arrays(**changes))
    return load_dataset(str(path), folder, DataConfig())


def _pyg() -> Any:
    from torch_geometric.data import Data

    return Data(**{key: torch.from_numpy(value) for key, value in _arrays().items()})


def _hetero() -> Any:
    from torch_geometric.data import HeteroData

    return HeteroData()


def _check(data: GraphData) -> None:
    dense = np.zeros((N, N))
    dense[EDGES[0], EDGES[1]] = 1
    assert np.array_equal(data.graphs[0].to_dense().numpy(), dense)
    features = data.features
    if isinstance(features, CSRMatrix):
        features = features.to_dense(torch.float32)
    assert torch.equal(torch.as_tensor(features), torch.from_numpy(X.astype(np.float32)))
    assert data.labels.tolist() == [0, 1, 2, 1, -1]
    assert (data.num_classes, data.task) == (3, "multiclass")
    splits = [x.tolist() for x in (data.train_nodes, data.val_nodes, data.test_nodes)]
    assert splits == [[0, 1], [2], [3]]


def test_npz_with_edge_index_and_masks(tmp_path: Path) -> None:
    data = _load_npz(tmp_path)
    _check(data)
    assert data.name == "mine"


def test_npz_with_csr_sparse_features_and_ids(tmp_path: Path) -> None:
    sparse = {
        "x_indptr": np.array([0, 1, 2, 2, 4, 5]),
        "x_indices": np.array([0, 1, 2, 0, 2], dtype=np.int32),  # row 3 is not in order
        "x_data": np.array([1, 0.5, -1, 2, 1]),
    }
    ids = {"train_idx": np.array([1, 0]), "val_idx": np.array([2]), "test_idx": np.array([3])}
    masks = dict.fromkeys(("train_mask", "val_mask", "test_mask"))
    graph = {"indptr": np.array([0, 1, 3, 4, 5, 6]), "indices": np.array([1, 0, 2, 1, 4, 3])}
    data = _load_npz(tmp_path, edge_index=None, x=None, **graph, **sparse, **ids, **masks)
    _check(data)
    assert isinstance(data.features, CSRMatrix)
    assert data.features.col.tolist() == [0, 1, 0, 2, 2]


def test_name_file_takes_the_path_from_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    np.savez(path, **_arrays())
    _check(load_dataset("file", tmp_path, DataConfig(path=path)))
    with pytest.raises(UserError, match=r"data\.path: dataset 'file' needs"):
        load_dataset("file", tmp_path, DataConfig())


@pytest.mark.parametrize("form", ["data", "dictionary", "sparse"])
def test_pt_file(tmp_path: Path, form: str) -> None:
    data = _pyg()
    if form == "sparse":
        data.x = data.x.to_sparse()
    path = tmp_path / "mine.pt"
    torch.save(data.to_dict() if form == "dictionary" else data, path)
    _check(load_dataset(str(path), tmp_path, DataConfig()))


def test_pt_file_runs_no_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "mine.pt"
    torch.save({"edge_index": Attack()}, path)
    with pytest.raises(
        UserError, match=r"edge_index is a posix\.mkdir, a plain tensor is needed"
    ) as caught:
        load_dataset(str(path), tmp_path, DataConfig())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "make", [_hetero, lambda: [1, 2], lambda: torch.ones(3), lambda: {"x": [1]}]
)
def test_pt_file_with_other_content(tmp_path: Path, make: Callable[[], Any]) -> None:
    path = tmp_path / "mine.pt"
    torch.save(make(), path)
    with pytest.raises(UserError, match=r"mine\.pt") as caught:
        load_dataset(str(path), tmp_path, DataConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_files_that_are_no_archive(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    with pytest.raises(UserError, match="does not exist"):
        load_dataset(str(path), tmp_path, DataConfig())
    for content in (b"", b"hello", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"mine{suffix} ") as caught:
            load_dataset(str(path), tmp_path, DataConfig())
        assert "\n" not in str(caught.value)


def test_npz_with_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without object arrays"):
        _load_npz(tmp_path, y=np.array([0, 1, None, 1, 0], dtype=object))
    with pytest.raises(UserError, match="plain number arrays"):
        _load_npz(tmp_path, x=np.array(["a", "b", "c", "d", "e"]))


def test_directed_graph_becomes_symmetric(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        data = _load_npz(tmp_path, edge_index=np.array([[0, 1, 3, 2], [1, 2, 4, 2]]))
    _check(data)
    assert "the graph is directed" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        _load_npz(tmp_path)
    assert "the graph is directed" not in caplog.text


def test_without_features_embeddings_are_learned(tmp_path: Path) -> None:
    data = _load_npz(tmp_path, x=None)
    assert data.features is None
    assert data.num_features == 0


def test_multilabel_targets(tmp_path: Path) -> None:
    y = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 0]])
    data = _load_npz(tmp_path, y=y)
    assert (data.task, data.num_classes) == ("multilabel", 2)
    assert torch.equal(data.labels, torch.from_numpy(y).float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.where(X == 2, np.inf, X)}, "NaN or infinity, first in node 3"),
        ({"x": np.where(X == 2, 1e300, X)}, "NaN or infinity, first in node 3"),
        ({"x": X[:, 0]}, r"x has shape \(5,\)"),
        ({"y": None}, "labels are missing"),
        ({"y": np.array([0, 1, 2, 1, 5000])}, "5001 classes .* for 5 nodes"),
        ({"y": np.array([0, 1, 2, 1, 0.5])}, "numbers that are no class"),
        ({"y": np.array([np.nan, np.nan, 2, 1, 1])}, "the train split is empty"),
        ({"y": np.full((5, 2), 2)}, "must be 0 or 1"),
        ({"edge_index": None}, "edges are missing"),
        ({"edge_index": np.array([[1, 2], [1, 2]])}, "has no edges besides self-loops"),
        ({"train_mask": _mask()}, "the train split is empty"),
        ({"test_mask": _mask()}, "the test split is empty"),
        ({"val_mask": np.array([0, 0, 7, 0, 0])}, "true or false"),
        ({"val_mask": np.array([0, 0, 7, 0, 0])}, "val_mask of node 2 is 7; true or false"),
        ({"val_mask": np.array([0, 0, np.nan, 0, 0])}, "val_mask of node 2 is empty or nan; true"),
        ({"val_mask": _mask(1)[:4]}, r"val_mask has shape \(4,\); 5 values, true or false"),
        ({"y": np.array([0, 1, 2, np.inf, 1])}, "are no class, first inf of node 3; use whole"),
        ({"y": np.array([0, 1, 2, 1, 1e30])}, r"are no class, first 1e\+30 of node 4; use whole"),
        ({"y": np.array([b"a", b"b"])}, r"type \|S1\); .*bytes or complex.*y\.astype\(str\)"),
        ({"val_idx": np.array([9])}, "val_idx: id 9 is outside"),
        ({"x_indptr": np.array([0, 1])}, "both x_indptr and x_indices"),
        (
            {"x_indptr": np.array([0, 2, 1, 1, 1, 2]), "x_indices": np.array([0, 1])},
            "x_indptr decreases",
        ),
        (
            {"x_indptr": np.array([0, 1, 1, 1, 1, 1]), "x_indices": np.array([0, 1])},
            "x_indptr must lead from 0 to 2, the number of entries, and leads from 0 to 1",
        ),
        (
            {"x_indptr": np.array([0, 2]), "x_indices": np.array([0, 1])},
            "x_indptr must have 6 entries",
        ),
        (
            {"x_indptr": np.array([0, 2, 2, 2, 2, 2]), "x_indices": np.array([-1, 1])},
            "column numbers from 0",
        ),
        (
            {
                "x_indptr": np.array([0, 2, 2, 2, 2, 2]),
                "x_indices": np.array([0, 1]),
                "x_data": np.array([1.0]),
            },
            "x_data has 1 entries",
        ),
        (
            {
                "x_indptr": np.array([0, 0, 2, 2, 2, 2]),
                "x_indices": np.array([0, 1]),
                "x_data": np.array([1.0, np.nan]),
            },
            "sparse features hold NaN or infinity, first in node 1",
        ),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _load_npz(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert "mine.npz" in str(caught.value)


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset("cora", tmp_path, DataConfig())
    message = str(caught.value)
    assert "'cora' is not known" in message
    assert all(name in message for name in DATASETS)
    assert ".pt" in message
    assert ".npz" in message


def test_dense_rows_are_divided_by_their_l1_norm(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **_arrays())
    data = load_dataset(str(path), tmp_path, DataConfig(feature_norm="row"))
    norm = np.maximum(np.abs(X).sum(1, keepdims=True), 1e-12)
    assert np.allclose(torch.as_tensor(data.features).numpy(), X / norm)


def test_validate_checks_every_channel(tmp_path: Path) -> None:
    data = _load_npz(tmp_path)
    assert validate(data, "here") is data
    other = csr_from_edges(torch.tensor([0]), torch.tensor([1]), 3)
    with pytest.raises(UserError, match="here: graph 1 is 3 x 3 but there are 5 nodes"):
        validate(dataclasses.replace(data, graphs=(*data.graphs, other)), "here")
    with pytest.raises(UserError, match="here: 4 labels for 5 nodes"):
        validate(dataclasses.replace(data, labels=data.labels[:4]), "here")


@pytest.mark.parametrize(
    ("more", "unread"),
    [
        ({}, None),
        ({"train_idx": np.array([0])}, "train_mask"),
        ({"names": np.array([1]), "edge_weights": np.ones(6)}, "edge_weights, names"),
        ({"edge_weight": np.ones(6), "edge_attr": np.ones((6, 1))}, "edge_attr"),
        ({"indptr": np.zeros(6, int), "data": np.ones(6)}, "data, indptr"),
        ({f"z{i:02}": np.ones(1) for i in range(14)}, "z00, .*, z11 and 2 more"),
        ({"new\nline": np.ones(1)}, "new line"),
    ],
)
@pytest.mark.parametrize("in_memory", [False, True])
def test_names_that_are_not_read_are_told_in_one_line(
    more: dict[str, Any],
    unread: str | None,
    in_memory: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        if in_memory:
            graph_in_memory(_arrays(**more), DataConfig())
        else:
            _load_npz(tmp_path, **more)
    told = [text for text in caplog.messages if "not read" in text]
    assert len(told) == (unread is not None)
    assert unread is None or re.fullmatch(f"(data|.*/mine.npz): not read: {unread}", told[0])
