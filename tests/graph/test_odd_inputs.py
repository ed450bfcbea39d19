"""Graphs as people have them, a little off: read as meant, told in a line, or refused in one."""

from __future__ import annotations

import bz2
import codecs
import logging
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.sparse as sp
import torch

from distributed_ignn.config import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import graph_in_memory, load_dataset

N = 12
RING = np.stack([np.arange(N), (np.arange(N) + 1) % N])
EDGES = "".join(f"{a},{b}\n" for a, b in RING.T)
SPLIT = ("train", "train", "val", "test")
NODES = "id,label,split,f0,f1\n" + "".join(
    f"{i},{'ab'[i % 2]},{SPLIT[i % 4]},{i * 0.5},{i + 1}\n" for i in range(N)
)


def _load(folder: Path, edges: str | bytes, nodes: str | bytes = NODES, **more: Any) -> GraphData:
    for name, text in (("e.csv", edges), ("n.csv", nodes)):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    data = DataConfig(**{"nodes": folder / "n.csv"} | more)
    return load_dataset(str(folder / "e.csv"), folder, data)


def _parquet(folder: Path, **columns: Any) -> GraphData:
    split = [SPLIT[i % 4] for i in range(N)]
    nodes = {"y": [i % 2 for i in range(N)], "split": split} | columns
    pa.parquet.write_table(pa.table(nodes), folder / "n.parquet")
    (folder / "e.csv").write_text(EDGES)
    return load_dataset(str(folder / "e.csv"), folder, DataConfig(nodes=folder / "n.parquet"))


@pytest.mark.parametrize(
    ("edges", "nodes"),
    [
        (codecs.BOM_UTF8 + EDGES.encode(), NODES),
        (codecs.BOM_UTF8 + f"source,target\n{EDGES}".encode(), codecs.BOM_UTF8 + NODES.encode()),
        ("".join(f'"{a}","{b}"\n' for a, b in RING.T), NODES),
        (f"u,v\n{EDGES}".replace("\n", "\r\n"), NODES.replace("\n", "\r\n")),
        (EDGES.replace(",", ";"), NODES.replace(",", ";")),
        (f"\n# a remark\n\n\n{EDGES}", f"\n\n{NODES}"),
        ("source,target\n" + "".join(f"{a}.0,{b}.0\n" for a, b in RING.T), NODES),
    ],
    ids=["mark", "mark and names", "quoted", "crlf", "semicolons", "empty lines", "floating ids"],
)
def test_all_edges_are_read(tmp_path: Path, edges: str | bytes, nodes: str | bytes) -> None:
    found = _load(tmp_path, edges, nodes)
    assert found.fingerprint() == _load(tmp_path, EDGES).fingerprint()
    assert found.graphs[0].num_entries == 2 * N


ROW = "3,b,test,1.5,4\n"
assert ROW in NODES


@pytest.mark.parametrize(
    ("edges", "nodes", "message"),
    [
        (EDGES, NODES.replace(ROW, "3,b,test,n/k,4\n"), "row 4 of column f0 is 'n/k' and most"),
        (EDGES, NODES.replace(ROW, "3,b,test,,4\n"), "row 4 of column f0 is empty, NaN or inf"),
        (EDGES, NODES.replace(ROW, "3,b,test,inf,4\n"), "row 4 of column f0 is empty, NaN or inf"),
        (
            EDGES.replace(",", ";"),
            NODES.replace(",", ";").replace(".", ","),
            "row 1 of column f0 is '0,0' .*with a decimal point",
        ),
        (EDGES, NODES.replace(",a,", ",ä,").encode("latin1"), "column 2 is not written in UTF-8"),
        (EDGES.encode("utf-16"), NODES, "it is written in UTF-16; save it as UTF-8"),
        (EDGES.replace(",", "   "), NODES, "several spaces stand between its columns; write one"),
        (bz2.compress(EDGES.encode()), NODES, "packed by bzip2; unpack it, or pack it by gzip"),
        (EDGES, NODES.replace("label", "kind"), "label NAME .there are: edge_index, f0, f1, id, k"),
    ],
    ids=["word", "empty", "infinite", "comma", "latin", "utf-16", "spaces", "bzip2", "no label"],
)
def test_mistakes_are_one_line_with_their_place(
    tmp_path: Path, edges: str | bytes, nodes: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _load(tmp_path, edges, nodes)
    assert str(caught.value).isprintable()


def test_the_column_of_labels_by_its_name(tmp_path: Path) -> None:
    found = _load(tmp_path, EDGES, NODES.replace("label", "Kind"), label="Kind")
    assert found.fingerprint() == _load(tmp_path, EDGES).fingerprint()
    with pytest.raises(UserError, match=r"label = king is not in .*, which holds edge_index, f0"):
        _load(tmp_path, EDGES, label="king")


def test_lists_and_other_numbers_in_parquet(tmp_path: Path) -> None:
    flat = np.arange(2.0 * N)
    rows = flat.reshape(N, 2)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat), 2)
    for column in (rows.tolist(), lists, pa.array(rows.tolist(), pa.large_list(pa.float32()))):
        found = _parquet(tmp_path, age=list(range(N)), x=column)
        assert isinstance(found.features, torch.Tensor)
        assert np.array_equal(found.features.numpy(), np.column_stack([np.arange(N), rows]))
    text = _parquet(tmp_path, x=[str(i) for i in range(N)], d=[Decimal(i) for i in range(N)])
    assert isinstance(text.features, torch.Tensor)
    assert text.features.tolist() == [[i, i] for i in range(N)]
    several = _parquet(tmp_path, y=[[1, i % 2, 1] for i in range(N)], x=lists)
    assert (several.task, several.num_classes) == ("multilabel", 3)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0] * (2 + (i == 4)) for i in range(N)], "row 5 of column x has a list of 3 numbers"),
        ([None if i == 3 else [1.0, 2.0] for i in range(N)], "row 4 of column x has no list"),
        ([None if i == 0 else [1.0, 2.0] for i in range(N)], "row 1 of column x has no list"),
        ([[1.0, None if i == 3 else 2.0] for i in range(N)], "row 4 of column x is empty, NaN"),
    ],
)
def test_ragged_lists_name_row_and_column(tmp_path: Path, column: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _parquet(tmp_path, x=column)


def test_many_columns(tmp_path: Path) -> None:
    """A row of names, and a row of numbers, longer than what is looked at first."""
    names = ",".join(f"feature_{i:05d}" for i in range(9_000))
    row = ",".join(["0.123456789"] * 9_000)
    nodes = f"y,split,{names}\n" + "".join(f"{i % 2},{SPLIT[i % 4]},{row}\n" for i in range(N))
    assert _load(tmp_path, EDGES, nodes).num_features == 9_000


def _memory(**changes: Any) -> dict[str, Any]:
    masks = {f"{s}_mask": np.arange(N) % 3 == i for i, s in enumerate(("train", "val", "test"))}
    plain = {"edge_index": RING, "x": np.ones((N, 3)), "y": np.arange(N) % 2, **masks}
    return plain | changes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"y": np.arange(N) % 2 + 1}, "no node has the label 0; classes are counted from 0"),
        ({"train_mask": np.arange(N) == 0}, "no training node has the label 1, which cannot be"),
        ({"y": np.eye(3)[np.arange(N) % 3]}, r"one of the 3 labels of y .*y.argmax\(1\)"),
        ({"edge_index": np.hstack([RING, RING])}, "12 edges are there more than once and count"),
        ({"edge_index": np.hstack([RING, RING * 0 + 1])}, "12 self-loops are left out"),
        ({"edge_time": np.arange(N), "node_id": np.arange(N)}, "not read: edge_time, node_id"),
    ],
)
def test_what_is_left_out_is_told(
    changes: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = _memory(**changes)
    if told.startswith("no training"):
        data["val_mask"] = data["val_mask"] & (np.arange(N) > 0)
    with caplog.at_level(logging.INFO):
        graph_in_memory(data, DataConfig())
    assert any(re.search(told, line) for line in caplog.messages)


def test_sparse_features_of_scipy() -> None:
    x = np.eye(N)[:, :3] + 1.0
    dense, sparse = (_memory(x=value) for value in (x, sp.csr_matrix(x)))
    found = graph_in_memory(sparse, DataConfig()).features
    assert found is not None
    assert not isinstance(found, torch.Tensor)
    expected = graph_in_memory(dense, DataConfig()).features
    assert torch.equal(found.to_dense(), expected)  # type: ignore[arg-type]


def test_a_list_of_graphs_is_refused_and_its_advice_works(tmp_path: Path) -> None:
    graphs = [{k: torch.from_numpy(v) for k, v in _memory().items()}] * 2
    torch.save(graphs, tmp_path / "mine.pt")
    with pytest.raises(UserError, match=r"holds a list of 2; save the graph in it by itself"):
        load_dataset(str(tmp_path / "mine.pt"), tmp_path, DataConfig())
    torch.save(graphs[0], tmp_path / "mine.pt")
    assert load_dataset(str(tmp_path / "mine.pt"), tmp_path, DataConfig()).num_nodes == N


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_index_that_pandas_writes_is_no_feature(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    rows = NODES.splitlines()
    indexed = "".join(f"{i - 1 if i else name},{row}\n" for i, row in enumerate(rows))
    with caplog.at_level(logging.INFO):
        found = _load(tmp_path, EDGES, indexed)
    assert found.fingerprint() == _load(tmp_path, EDGES).fingerprint()
    assert "not read: the column without a name, which counts the rows" in caplog.text
    other = indexed.replace("0,0,a,", "7,0,a,", 1)  # which counts nothing: a feature
    assert _load(tmp_path, EDGES, other).num_features == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.full(N, -1)}, "no node has a label; give some of them labels from 0 on"),
        (
            {"y": np.arange(N - 2) % 2},
            "12 feature rows for 10 nodes by y; give one row a",
        ),
        (
            {"x": np.full((N, 2), 1e200)},
            "hold NaN or infinity, .*; put numbers there that float32",
        ),
    ],
    ids=["no label", "short y", "large"],
)
def test_what_is_wrong_with_a_graph_in_memory_is_said(
    changes: dict[str, Any], message: str
) -> None:
    graph = {"edge_index": RING, "y": np.arange(N) % 2, "x": np.ones((N, 2))} | changes
    with pytest.raises(UserError, match=message):
        graph_in_memory(graph, DataConfig(split="random"))
