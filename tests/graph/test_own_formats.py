"""Edges as tables and matrices beside a table of nodes: one graph, in every form."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import scipy.io
import scipy.sparse as sp
import torch

from distributed_ignn.config import DataConfig, RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import graph_in_memory, load_dataset
from distributed_ignn.reading import tables
from distributed_ignn.reading.archives import Limits
from distributed_ignn.reading.matrices import read_matrix_market

N = 6
EDGES = np.array([[0, 1, 2, 3, 4, 0], [1, 2, 0, 4, 5, 3]])
WEIGHT = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.5])
X = np.arange(1.0, 13.0).reshape(N, 2)
NODES = """Label,split,x0,x1,remark
0,train,1,2,a
1,train,3,4,b
2,val,5,6,c
0,Valid,7,8,d
1,test,9,10,e
2,,11,12,f
"""
SETTINGS = DataConfig(directions="both")


def _expected(*, weighted: bool) -> str:
    masks = {
        "train_mask": np.arange(N) < 2,
        "val_mask": (np.arange(N) == 2) | (np.arange(N) == 3),
        "test_mask": np.arange(N) == 4,
    }
    plain = {"edge_index": EDGES, "x": X, "y": np.arange(N) % 3, **masks}
    weight = {"edge_weight": WEIGHT} if weighted else {}
    return graph_in_memory(plain | weight, SETTINGS).fingerprint()


def _load(folder: Path, name: str, table: str | None = NODES, **changes: Any) -> GraphData:
    if table is not None:
        (folder / "nodes.csv").write_text(table)
        changes |= {"nodes": folder / "nodes.csv"}
    data = SETTINGS.model_copy(update={"path": folder / name} | changes)
    return load_dataset("file", folder, data)


def _csv(path: Path, weighted: bool) -> None:
    rows = ["Source,Target" + ",weight" * weighted]
    columns = (*EDGES, WEIGHT) if weighted else EDGES
    rows += [",".join(f"{value:g}" for value in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join(rows) + "\n")


def _reordered(path: Path, weighted: bool) -> None:
    rows = ["weight\ttime\ttarget\tsource"]
    columns = WEIGHT if weighted else np.ones(N), np.arange(N), *EDGES[::-1]
    rows += ["\t".join(f"{value:g}" for value in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join(rows) + "\n")


def _parquet(path: Path, weighted: bool) -> None:
    columns = {"source": EDGES[0].astype(np.uint32), "target": EDGES[1]}
    pa.parquet.write_table(pa.table(columns | ({"weight": WEIGHT} if weighted else {})), path)


def _matrix(weighted: bool) -> sp.coo_array:
    """Row i lists whom node i reads."""
    return sp.coo_array((WEIGHT if weighted else np.ones(N), tuple(EDGES[::-1])), (N, N))


def _market(path: Path, weighted: bool) -> None:
    scipy.io.mmwrite(path, _matrix(weighted))


def _packed_market(path: Path, weighted: bool) -> None:
    _market(path.with_suffix(""), weighted)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))


def _npz(layout: str) -> Callable[[Path, bool], None]:
    return lambda path, weighted: sp.save_npz(path, _matrix(weighted).asformat(layout))


FORMS: dict[str, tuple[str, Callable[[Path, bool], None]]] = {
    "csv": ("edges.csv", _csv),
    "tsv": ("edges.tsv", _reordered),
    "parquet": ("edges.parquet", _parquet),
    "parquet by another name": ("edges.txt", _parquet),
    "matrix market": ("edges.mtx", _market),
    "packed matrix market": ("edges.mtx.gz", _packed_market),
    **{
        f"scipy {layout}": (f"edges-{layout}.npz", _npz(layout)) for layout in ("coo", "csr", "csc")
    },
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_graph(tmp_path: Path, form: str, weighted: bool) -> None:
    """Both directions are kept apart, so an exchanged one would show."""
    name, write = FORMS[form]
    write(tmp_path / name, weighted)
    assert _load(tmp_path, name).fingerprint() == _expected(weighted=weighted)
    ignored = _load(tmp_path, name, edge_weights="ignore")
    assert ignored.fingerprint() == _expected(weighted=False)


@pytest.mark.parametrize("packed", [False, True])
def test_snap_text(tmp_path: Path, packed: bool) -> None:
    lines = ["# Directed graph", "# FromNodeId\tToNodeId", *(f"{a}\t{b}" for a, b in EDGES.T)]
    text = ("\n".join(lines) + "\n").encode()
    name = "snap.txt.gz" if packed else "snap.txt"
    (tmp_path / name).write_bytes(gzip.compress(text) if packed else text)
    assert _load(tmp_path, name).fingerprint() == _expected(weighted=False)


@pytest.mark.parametrize("ids", [["a", "b", "c", "d", "e", "f"], [7, 3, 2**40, 0, 5, 1]])
def test_nodes_by_ids_of_their_own(tmp_path: Path, ids: list[Any]) -> None:
    rows = [f"{ids[a]} {ids[b]}" for a, b in EDGES.T]
    (tmp_path / "edges.txt").write_text("\n".join(["from to", *rows]) + "\n")
    lines = NODES.splitlines()
    nodes = [f"ID,{lines[0]}", *(f"{i},{line}" for i, line in zip(ids, lines[1:], strict=True))]
    found = _load(tmp_path, "edges.txt", "\n".join(nodes))
    assert found.node_ids is not None
    assert found.node_ids.some(0, N) == ids
    assert found.node_ids.some(2, 4) == ids[2:4]
    assert replace(found, node_ids=None).fingerprint() == _expected(weighted=False)
    assert found.fingerprint() != _expected(weighted=False)  # or shards would name other nodes
    with pytest.raises(UserError, match=f"names node {ids[4]}, which .* does not have"):
        _load(tmp_path, "edges.txt", "\n".join(nodes[:5]))


def test_words_and_gaps_in_the_table_of_nodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _csv(tmp_path / "edges.csv", False)
    nodes = "y,val_mask,train_mask,test_mask,flag\ncat,0,1,0,true\n,0,1,0,false\n"
    nodes += "dog,1,0,0,true\nant,0,0,1,true\ncat,0,0,0,true\nant,0,0,0,true\n"
    with caplog.at_level(logging.INFO):
        found = _load(tmp_path, "edges.csv", nodes)
    assert found.class_names == ("ant", "cat", "dog")
    assert found.labels.tolist() == [1, -1, 2, 0, 1, 0]
    assert found.train_nodes.tolist() == [0]
    assert isinstance(found.features, torch.Tensor)
    assert found.features.flatten().tolist() == [1, 0, 1, 1, 1, 1]
    assert "1 of 2 train nodes have no label" in caplog.text
    pa.parquet.write_table(pa.csv.read_csv(tmp_path / "nodes.csv"), tmp_path / "nodes.parquet")
    same = _load(tmp_path, "edges.csv", None, nodes=tmp_path / "nodes.parquet")
    assert same.fingerprint() == found.fingerprint()


def write_ogb(folder: Path, **tables: Any) -> Path:
    """A folder as OGB's downloads are, with each number in a cell of its own."""
    plain: dict[str, Any] = {
        "raw/edge": EDGES.T,
        "raw/node-feat": X,
        "raw/node-label": (np.arange(N) % 3)[:, None],
        "split/time/train": [[0], [1]],
        "split/time/valid": [[2], [3]],
        "split/time/test": [[4]],
    }
    for name, rows in (plain | tables).items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()))
    return folder


def test_a_folder_of_ogb(tmp_path: Path) -> None:
    found = _load(write_ogb(tmp_path / "ogb"), "", None)
    assert found.fingerprint() == _expected(weighted=False)
    labels = [[0], ["nan"], [2], [0], [1], [2]]
    found = _load(write_ogb(tmp_path / "gap", **{"raw/node-label": labels}), "", None)
    assert found.labels.tolist() == [0, -1, 2, 0, 1, 2]
    several = [[0, 1], ["nan", 1], [1, 0], [0, 0], [1, 1], [0, 1]]
    found = _load(write_ogb(tmp_path / "several", **{"raw/node-label": several}), "", None)
    assert (found.task, found.labels[1].tolist()) == ("multilabel", [-1, 1])


@pytest.mark.parametrize(
    ("table", "rows", "message"),
    [
        ("raw/edge", [["a", "b"], [0, 1]], "edge.csv.gz is not a table .*words"),
        ("raw/edge", [[0, 1], ["x", 2]], "edge.csv.gz is not a table .*else than numbers"),
        ("split/time/valid", [[77]], "val_idx: id 77 is outside"),
        ("split/other/train", [[0]], "has several splits .other, time.; leave one"),
    ],
)
def test_damaged_folders_of_ogb(
    tmp_path: Path, table: str, rows: list[list[Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _load(write_ogb(tmp_path / "ogb", **{table: rows}), "", None)


MISTAKES: dict[str, tuple[str, str | None, str]] = {
    "no nodes": ("0,1\n1,2\n", None, r"holds edges alone; .*--data\.nodes nodes\.csv"),
    "one column": ("0\n1\n", NODES, "has 1 column; two that name the ends"),
    "one end": ("source,x\n0,1\n", NODES, "names one end of the edges alone"),
    "a short row": ("0,1\n1\n", NODES, "is not a table .*Expected 2 columns, got 1"),
    "nothing": ("", NODES, "is not a table"),
    "no rows": ("source,target\n", NODES, "has no rows"),
    "words for ids": ("a,b\nc,d\n", NODES, "by something else than whole numbers; .*column id"),
    "a gap": ("0,1\n,2\n", NODES, "by something else than whole numbers"),
    "an id beyond": ("0,6\n", NODES, r"id 6 is outside 0\.\.5"),
    "an edge for names": ("b,c\nc,d\n", "id,y\nB,0\nc,1\nd,1\n", "put a row of names before it"),
    "twice": ("source,Source\n0,1\n", NODES, "two columns called source"),
    "bytes": ("\x00\x01\x02", NODES, "edges.csv"),
    "no names": ("0,1\n", "0,train\n1,val\n", "the first row must name the columns"),
    "same ids": ("0,1\n", "id,y\n1,0\n1,1\n", "two nodes have the same id"),
    "no id": ("0,1\n", "id,y\n1,0\n,1\n", "a node has no id"),
    "strange split": ("0,1\n", "y,split\n0,train\n1,tset\n", "split tset is not known"),
    "split of numbers": ("0,1\n", "y,split\n0,1\n1,2\n", "column split holds numbers"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_clear_line(tmp_path: Path, name: str) -> None:
    edges, nodes, message = MISTAKES[name]
    (tmp_path / "edges.csv").write_text(edges)
    with pytest.raises(UserError, match=message) as caught:
        _load(tmp_path, "edges.csv", nodes)
    assert str(caught.value).isprintable()


def test_the_advice_for_edges_alone_works(tmp_path: Path) -> None:
    _csv(tmp_path / "edges.csv", False)
    with pytest.raises(UserError, match="holds edges alone"):
        _load(tmp_path, "edges.csv", None)
    with pytest.raises(UserError, match=r"data\.nodes = .*missing.csv is no file; name a table"):
        _load(tmp_path, "edges.csv", None, nodes=tmp_path / "missing.csv")
    assert _load(tmp_path, "edges.csv").num_nodes == N


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coordinate real general\n9 9 99999999\n1 2 1\n", "declares 99,999,999 entries and has 1"),
        ("coordinate real general\n9 8 1\n1 2 1\n", "a square one is needed"),
        ("coordinate real general\n9 9 1\n1 12 1\n", "an entry outside of 9 rows"),
        ("coordinate real general\n9 9 1\n0 1 1\n", "an entry outside of 9 rows"),
        ("coordinate real general\n9 9 1\n1 2\n", "declares 1 entries"),
        ("coordinate real general\n9 9 1\n1 x 1\n", "entries that are no numbers"),
        ("coordinate real general\n% a remark\n", "without a line of its sizes"),
        ("coordinate real general\n9 9 1\n1 2 3 4\n5 6\n", "MatrixMarket form"),
        ("array real general\n2 2\n1\n2\n3\n4\n", "of another kind than coordinate"),
        ("coordinate complex general\n9 9 1\n1 2 1 0\n", "of another kind than coordinate"),
        ("coordinate real skew-symmetric\n9 9 1\n2 1 1\n", "neither general nor symmetric"),
        ("", "of another kind than coordinate"),
    ],
)
def test_matrices_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "edges.mtx").write_text(f"%%MatrixMarket matrix {text}")
    with pytest.raises(UserError, match=message):
        _load(tmp_path, "edges.mtx")


@pytest.mark.parametrize("field", ["real", "integer", "pattern"])
def test_symmetric_matrices_are_those_that_scipy_reads(tmp_path: Path, field: str) -> None:
    matrix = _matrix(weighted=False)
    both = (matrix + matrix.T).tocoo()
    scipy.io.mmwrite(tmp_path / "edges.mtx", both, symmetry="symmetric", field=field)
    assert "symmetric" in (tmp_path / "edges.mtx").read_text().splitlines()[0]
    found = read_matrix_market(tmp_path / "edges.mtx", 100)
    expected = scipy.io.mmread(tmp_path / "edges.mtx")
    assert np.array_equal(found.toarray(), expected.toarray())
    assert found.nnz == 12


def test_forged_indices_of_scipy(tmp_path: Path) -> None:
    arrays = {"data": np.ones(2), "indices": np.array([0, 900]), "indptr": np.array([0, 1, 2])}
    arrays |= {"shape": np.array([2, 2]), "format": np.array(b"csc")}
    np.savez(tmp_path / "edges.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"is not a .npz file of plain number arrays"):
        _load(tmp_path, "edges.npz")
    np.savez(tmp_path / "edges.npz", **arrays | {"format": np.array(b"dia")})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="layout dia; save it as csr"):
        _load(tmp_path, "edges.npz")


def test_a_table_of_nodes_beside_what_needs_none(tmp_path: Path) -> None:
    arrays = {"edge_index": EDGES, "x": X, "y": np.arange(N) % 3}
    np.savez(tmp_path / "whole.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="both say x; leave it out of one"):
        _load(tmp_path, "whole.npz")
    scipy.io.mmwrite(tmp_path / "edges.mtx", _matrix(weighted=False))
    nodes = "id,y\n" + "".join(f"{9 - i},{i % 3}\n" for i in range(N))
    with pytest.raises(UserError, match=r"counts nodes from 0 and .* has ids of its own"):
        _load(tmp_path, "edges.mtx", nodes)
    with pytest.raises(ValueError, match=r"data\.nodes = .* holds edges alone; drop it"):
        RunConfig.model_validate({"dataset": "acm", "data": {"nodes": "nodes.csv"}})


def _by_ids(folder: Path, ids: list[str], edges: str) -> GraphData:
    (folder / "edges.csv").write_text(edges)
    rows = [f"{word},{i % 2},{['train', 'val', 'test'][i % 3]}" for i, word in enumerate(ids)]
    return _load(folder, "edges.csv", "\n".join(["id,y,split", *rows]) + "\n")


@pytest.mark.parametrize(
    "ids",
    [
        ["1e4", "10000", "3e2", "300"],
        ["007", "7", "07", "word"],
        ["7", "7.0", "7.00", "word"],
        ["7", "07", "0x7", "-0"],
        ["9223372036854775807", "9223372036854775808", "9223372036854775809", "1"],
        [str(2**63 + i) for i in range(4)],
        ["NA", "true", "2024-01-01", "1"],
    ],
    ids=["hash", "zeros", "points", "hexadecimal", "one large", "all large", "words"],
)
def test_ids_are_those_that_are_written(tmp_path: Path, ids: list[str]) -> None:
    """However the edges at hand alone look."""
    for a, b in ((0, 1), (1, 2), (2, 3)):
        found = _by_ids(tmp_path, ids, f"weight,Source,target\n1,{ids[a]},{ids[b]}\n")
        assert found.node_ids is not None
        assert found.node_ids.some(0, 4) == ids
        assert found.graphs[0].col.tolist() in ([a], [b])
        assert found.graphs[0].rows().tolist() in ([a], [b])


def test_ids_are_numbers_where_that_loses_nothing(tmp_path: Path) -> None:
    ids = ["10", " 7", '"-3"', "9223372036854775807"]
    found = _by_ids(tmp_path, ids, "10, 7\n-3,9223372036854775807\n")
    assert found.node_ids is not None
    assert found.node_ids.some(0, 4) == [10, 7, -3, 2**63 - 1]
    floating = _by_ids(tmp_path, ids, "10.0,7.0\n-3.0,9223372036854775807.0\n")
    assert floating.fingerprint() == found.fingerprint()
    with pytest.raises(UserError, match="an edge names node 010, which"):
        _by_ids(tmp_path, ids, "010,7\n")
    with pytest.raises(UserError, match="a node has no id"):
        _by_ids(tmp_path, ["a", "", "b"], "a,b\n")


def _refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        _load(folder, next(folder.glob("edges.*")).name, None)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_words_that_a_small_file_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet stores a word once, however many rows have it."""
    words = ["a" * 100_000] * 100
    pa.parquet.write_table(pa.table({"source": words, "target": words}), tmp_path / "edges.parquet")
    monkeypatch.setattr(tables, "Limits", lambda: Limits(free=2**20))
    assert "its words take 20,000,000 bytes and the file" in _refusal(tmp_path)


def test_more_columns_than_anybody_has(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text("1," * 2**16 + "1\n")
    assert "it has more than 65,536 columns; leave some out" in _refusal(tmp_path)


def test_a_packed_table_of_more_than_its_size_justifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "edges.csv.gz").write_bytes(gzip.compress(b"0,1\n" * 2**20))
    monkeypatch.setattr(tables, "Limits", lambda: Limits(free=2**20))
    assert "it unpacks to more than the 1,048,576 bytes allowed" in _refusal(tmp_path)
