"""Datasets read by other libraries' classes, or in other projects' formats, from tiny raw files."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_ignn.config import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import amazon, load_dataset, pyg_ogb, reddit2
from distributed_ignn.graph.datasets.amazon import load_amazon
from tests.graph.raw_files import (
    DIRECTED,
    FEATURES,
    LABELS,
    SPLIT,
    write_amazon,
    write_arxiv,
    write_csv,
    write_papers,
    write_products,
    write_reddit,
    write_reddit2,
)

# PyTorch Geometric compiles a class on import in a way that newer torch versions deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def _expected(edges: np.ndarray, n: int) -> np.ndarray:
    dense = np.zeros((n, n))
    dense[edges[0], edges[1]] = dense[edges[1], edges[0]] = 1
    np.fill_diagonal(dense, 0)
    return dense


@pytest.fixture(autouse=True)
def _no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> str:
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr("builtins.input", asked)


def _check_ogb(data: Any, classes: int, dtype: torch.dtype = torch.float32) -> None:
    assert np.array_equal(data.graphs[0].to_dense().numpy(), _expected(DIRECTED, 6))
    assert torch.equal(data.features, torch.from_numpy(FEATURES).to(dtype))
    assert data.features.dtype == dtype
    assert data.num_classes == classes
    assert data.train_nodes.tolist() == [0, 3]
    assert data.val_nodes.tolist() == [1, 2]
    assert data.test_nodes.tolist() == [5]


def test_arxiv_raw_files_then_the_kept_arrays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arxiv(tmp_path / "ogbn_arxiv")
    first = load_dataset("ogbn-arxiv", tmp_path, DataConfig())
    _check_ogb(first, 40)
    assert first.labels.tolist() == LABELS.tolist()
    assert capsys.readouterr().out == ""

    def parsed(*_: Any, **__: Any) -> None:
        raise ValueError("parsed again")

    monkeypatch.setattr("ogb.io.read_graph_raw.read_csv_graph_raw", parsed)
    again = load_dataset("ogbn-arxiv", tmp_path, DataConfig())
    assert again.fingerprint() == first.fingerprint()
    write_csv(tmp_path / "ogbn_arxiv" / "raw" / "node-label.csv.gz", LABELS[::-1])
    with pytest.raises(UserError, match="parsed again"):  # other files, other arrays
        load_dataset("ogbn-arxiv", tmp_path, DataConfig())


def test_products_get_both_directions_and_their_own_split(tmp_path: Path) -> None:
    write_products(tmp_path / "ogbn_products")
    _check_ogb(load_dataset("ogbn-products", tmp_path, DataConfig()), 47)


def test_papers_read_npz_and_keep_unlabelled_nodes(tmp_path: Path) -> None:
    labels = LABELS.astype(np.float32)[:, None]
    labels[4] = np.nan
    write_papers(tmp_path / "ogbn_papers100M", labels)
    data = load_dataset("ogbn-papers100M", tmp_path, DataConfig())
    _check_ogb(data, 172, torch.float16)
    assert data.labels.tolist() == [0, 39, 2, 0, -1, 2]


def test_papers_arrays_are_mapped_and_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole file would not fit the memory: nothing may load an array of it."""
    folder = tmp_path / "ogbn_papers100M"
    write_papers(folder, LABELS.astype(np.float32)[:, None])
    load = np.load

    def only_labels(file: Any, *args: Any, **kwargs: Any) -> Any:
        assert kwargs.get("mmap_mode") == "c" or str(file).endswith("node-label.npz")
        return load(file, *args, **kwargs)

    monkeypatch.setattr(np, "load", only_labels)
    first = load_dataset("ogbn-papers100M", tmp_path, DataConfig())
    kept = {path: path.stat().st_mtime_ns for path in (folder / ".cache").iterdir()}
    assert len(kept) == 3
    assert isinstance(first.features, torch.Tensor)
    first.features.fill_(7)  # a private copy of the page
    again = load_dataset("ogbn-papers100M", tmp_path, DataConfig())
    _check_ogb(again, 172, torch.float16)
    assert {path: path.stat().st_mtime_ns for path in (folder / ".cache").iterdir()} == kept


def test_ogb_saved_split_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "ogbn_arxiv"
    write_arxiv(folder)
    shutil.rmtree(folder / "split")
    (folder / "split" / "time").mkdir(parents=True)
    split = {name: np.array(nodes) for name, nodes in SPLIT.items()}
    torch.save(split, folder / "split" / "time" / "split_dict.pt")
    _check_ogb(load_dataset("ogbn-arxiv", tmp_path, DataConfig()), 40)


@pytest.mark.parametrize("place", ["processed/data_processed", "split/time/split_dict.pt"])
def test_ogb_pickles_run_no_code(tmp_path: Path, place: str) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "ogbn_arxiv" / place
    write_arxiv(tmp_path / "ogbn_arxiv")
    path.parent.mkdir(exist_ok=True)
    torch.save({"graph": Attack(), "labels": 0}, path)
    if place.startswith("processed"):
        _check_ogb(load_dataset("ogbn-arxiv", tmp_path, DataConfig()), 40)
    else:
        with pytest.raises(UserError, match="cannot be read"):
            load_dataset("ogbn-arxiv", tmp_path, DataConfig())
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Attack()))
    assert (tmp_path / "ran").exists()  # the trap itself works


def test_ogb_read_only_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = tmp_path / "data" / "ogbn_arxiv"
    write_arxiv(folder)
    before = sorted(folder.rglob("*"))
    folder.chmod(0o555)
    try:
        _check_ogb(load_dataset("ogbn-arxiv", tmp_path / "data", DataConfig()), 40)
    finally:
        folder.chmod(0o755)
    assert sorted(folder.rglob("*")) == before
    assert len(list((tmp_path / "xdg").rglob("*.npz"))) == 1


def test_ogb_old_or_broken_folders_are_refused_without_a_question(tmp_path: Path) -> None:
    folder = tmp_path / "ogbn_arxiv"
    write_arxiv(folder)
    (folder / "RELEASE_v1.txt").rename(folder / "RELEASE_v0.txt")
    with pytest.raises(UserError, match=r"lacks RELEASE_v1\.txt or raw/edge\.csv\.gz"):
        load_dataset("ogbn-arxiv", tmp_path, DataConfig())
    (folder / "RELEASE_v0.txt").rename(folder / "RELEASE_v1.txt")
    (folder / "raw" / "edge.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"cannot be read.*fetched again"):
        load_dataset("ogbn-arxiv", tmp_path, DataConfig())


def test_ogb_is_fetched_unpacked_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arxiv(tmp_path / "published" / "arxiv")
    origin = tmp_path / "arxiv.zip"
    with zipfile.ZipFile(origin, "w") as archive:
        for path in (tmp_path / "published").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "published"))
    info = pyg_ogb._ogb_info("ogbn-arxiv") | {"url": origin.as_uri()}
    monkeypatch.setattr(pyg_ogb, "_ogb_info", lambda name: info)
    root = tmp_path / "root"
    _check_ogb(load_dataset("ogbn-arxiv", root, DataConfig()), 40)
    assert os.listdir(root) == ["ogbn_arxiv"]  # neither the zip nor a partial folder is left


def test_ogb_info_is_the_libraries_own() -> None:
    info = pyg_ogb._ogb_info("ogbn-papers100M")
    assert info["binary"] == "True"
    assert info["num classes"] == "172"
    assert info["url"].endswith("papers100M-bin.zip")


def test_missing_ogb_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogb", None)
    monkeypatch.delitem(sys.modules, "ogb.nodeproppred", raising=False)
    with pytest.raises(UserError, match="needs the package ogb"):
        load_dataset("ogbn-arxiv", tmp_path, DataConfig())


def test_the_loaders_import_no_optional_library() -> None:
    code = (
        "import sys, distributed_ignn.graph.datasets; "
        "print([m for m in ('ogb', 'ray', 'deepspeed', 'pymetis', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_reddit_raw_files(tmp_path: Path) -> None:
    write_reddit(tmp_path / "reddit")
    before = sorted(tmp_path.rglob("*"))
    data = load_dataset("reddit", tmp_path, DataConfig())
    assert np.array_equal(data.graphs[0].to_dense().numpy(), _expected(DIRECTED, 6))
    assert torch.equal(torch.as_tensor(data.features), torch.from_numpy(FEATURES))
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.train_nodes.tolist() == [0, 3]
    assert data.val_nodes.tolist() == [1, 4]
    assert data.test_nodes.tolist() == [2, 5]
    assert sorted(tmp_path.rglob("*")) == before  # no pickled copy is left behind


def test_reddit_damaged_file(tmp_path: Path) -> None:
    write_reddit(tmp_path / "reddit")
    (tmp_path / "reddit" / "raw" / "reddit_graph.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        load_dataset("reddit", tmp_path, DataConfig())


def test_reddit2_raw_files(tmp_path: Path) -> None:
    write_reddit2(tmp_path / "reddit2")
    data = load_dataset("reddit2", tmp_path, DataConfig())
    assert np.array_equal(data.graphs[0].to_dense().numpy(), _expected(DIRECTED, 6))
    assert torch.equal(torch.as_tensor(data.features), torch.from_numpy(FEATURES))
    assert data.labels.tolist() == [2, 1, 0, 2, 1, 0]
    splits = data.train_nodes, data.val_nodes, data.test_nodes
    assert [split.numel() for split in splits] == [4, 1, 1]
    assert torch.cat(splits).unique().numel() == 6
    others = [
        load_dataset("reddit2", tmp_path, DataConfig(split_seed=seed)) for seed in range(1, 9)
    ]
    assert any(not torch.equal(data.test_nodes, other.test_nodes) for other in others)


def test_reddit2_split_at_the_papers_size() -> None:
    sizes = [split.numel() for split in reddit2._split(232_965, 0)]
    assert sizes == [139_779, 46_593, 46_593]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shape": np.array([5, 5])}, "its graph has shape"),
        ({"indptr": np.arange(7)}, "the offsets of its graph do not fit"),
        ({"indptr": np.array([0, 9, 1, 2, 3, 4, 12])}, "its graph is no CSR matrix"),
    ],
)
def test_reddit2_damaged_graph(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    write_reddit2(tmp_path / "reddit2", **changes)
    with pytest.raises(UserError, match=f"cannot be read \\({problem}"):
        load_dataset("reddit2", tmp_path, DataConfig())


@pytest.mark.parametrize("classes", [{"0": 1}, {str(i): -1 for i in range(6)}, list(range(6))])
def test_reddit2_damaged_classes(tmp_path: Path, classes: Any) -> None:
    write_reddit2(tmp_path / "reddit2")
    (tmp_path / "reddit2" / "raw" / "class_map.json").write_text(json.dumps(classes))
    with pytest.raises(UserError, match=r"cannot be read \(class_map\.json"):
        load_dataset("reddit2", tmp_path, DataConfig())


def test_reddit2_is_fetched_where_the_library_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(url: str, target: Path, *, source: str) -> Path:
        asked.append(f"{target.name} {url[-33:]}")
        raise UserError("no network")

    monkeypatch.setattr(reddit2, "fetch", fetch)
    with pytest.raises(UserError, match="no network"):
        load_dataset("reddit2", tmp_path, DataConfig())
    assert asked == ["adj_full.npz 1sncK996BM5lpuDf75lDFqCiDZyErc1c2"]


COMMUNITIES = [list(range(0, 20)), [39, 38], list(range(10, 35)), list(range(5, 15))]


def test_amazon_keeps_large_communities_as_classes(tmp_path: Path) -> None:
    write_amazon(tmp_path, COMMUNITIES)
    data = load_amazon(tmp_path, min_community=20, train_fraction=0.09)
    expected = torch.zeros(40, 2)
    expected[0:20, 0] = expected[10:35, 1] = 1
    assert torch.equal(data.labels, expected)
    assert data.task == "multilabel"
    assert data.features is None
    assert (data.num_nodes, data.num_undirected_edges, data.num_classes) == (40, 40, 2)
    ring = np.array([range(40), [*range(1, 40), 0]])
    assert np.array_equal(data.graphs[0].to_dense().numpy(), _expected(ring, 40))


def test_amazon_split_counts_and_fixed_test_nodes(tmp_path: Path) -> None:
    write_amazon(tmp_path, [list(range(40))])
    five, nine = (
        load_amazon(tmp_path, min_community=5, train_fraction=share) for share in (0.05, 0.09)
    )
    assert [five.train_nodes.numel(), five.val_nodes.numel(), five.test_nodes.numel()] == [2, 4, 4]
    assert nine.train_nodes.numel() == 3
    assert torch.equal(five.test_nodes, nine.test_nodes)
    assert torch.isin(five.train_nodes, nine.train_nodes).all()
    other = load_amazon(tmp_path, min_community=5, seed=1)
    assert not torch.equal(other.test_nodes, five.test_nodes)


def test_amazon_split_at_the_papers_size() -> None:
    labelled = torch.arange(282_847)  # the number behind the paper's 16,970 and 28,285
    train, val, test = amazon._split(labelled, DataConfig().train_fraction, 0)
    assert (train.numel(), val.numel(), test.numel()) == (16_970, 28_285, 28_285)
    assert torch.unique(torch.cat([train, val, test])).numel() == 16_970 + 2 * 28_285


def test_amazon_only_labelled_nodes_are_split(tmp_path: Path) -> None:
    write_amazon(tmp_path, COMMUNITIES)
    data = load_amazon(tmp_path, min_community=20, train_fraction=0.7)
    sizes = [x.numel() for x in (data.train_nodes, data.val_nodes, data.test_nodes)]
    used = torch.cat([data.train_nodes, data.val_nodes, data.test_nodes])
    assert sizes == [24, 4, 4]  # of the 35 products in a kept community
    assert int(used.max()) < 35


def test_amazon_products_outside_the_graph_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = write_amazon(tmp_path, COMMUNITIES)
    with gzip.open(tmp_path / "amazon-all" / amazon.COMMUNITY_FILE, "at") as file:
        file.write("\t".join(map(str, [*ids[:22], 1, 2])) + "\n")
    data = load_amazon(tmp_path, min_community=20, train_fraction=0.09)
    assert data.labels.sum(0).tolist() == [20, 25, 22]
    assert "2 memberships of products that no edge" in caplog.text


def test_amazon_malformed_files(tmp_path: Path) -> None:
    write_amazon(tmp_path, COMMUNITIES)
    with pytest.raises(UserError, match="no community has 5,000 nodes"):
        load_dataset("amazon-all", tmp_path, DataConfig())
    folder = tmp_path / "amazon-all"
    with gzip.open(folder / amazon.COMMUNITY_FILE, "wt") as file:
        file.write("4\t5\t6\n")
    with pytest.raises(UserError, match="names no node that is in"):
        load_amazon(tmp_path, min_community=3)
    content = (folder / amazon.GRAPH_FILE).read_bytes()
    (folder / amazon.GRAPH_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is not an edge list"):
        load_amazon(tmp_path, min_community=2)


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbn-papers100M"])
def test_a_full_disk_is_no_reason_to_delete_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = tmp_path / "root"
    if name == "ogbn-arxiv":
        with zipfile.ZipFile(tmp_path / "arxiv.zip", "w") as archive:
            archive.writestr("arxiv/raw/edge.csv.gz", bytes(100))
        info = pyg_ogb._ogb_info(name) | {"url": (tmp_path / "arxiv.zip").as_uri()}
        monkeypatch.setattr(pyg_ogb, "_ogb_info", lambda name: info)
    else:
        write_papers(root / "ogbn_papers100M", LABELS.astype(np.float32)[:, None])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3})())
    message = r"the disk has 3 left, \d+ too few\); make room on the disk, or .*--data-root"
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(name, root, DataConfig())
    assert "delete" not in str(caught.value)


def test_reddit2_names_the_one_file_that_is_damaged(tmp_path: Path) -> None:
    write_reddit2(tmp_path / "reddit2")
    (tmp_path / "reddit2" / "raw" / "class_map.json").write_text("<html>")
    message = r"class_map\.json cannot be read .*; delete that file to have it fetched again"
    with pytest.raises(UserError, match=message):
        load_dataset("reddit2", tmp_path, DataConfig())
