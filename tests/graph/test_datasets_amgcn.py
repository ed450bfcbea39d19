"""The AM-GCN loader: tiny zips in the release's format, and the release itself where at hand."""

from __future__ import annotations

import errno
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_ignn.config import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.files import sha256_file
from distributed_ignn.graph.data import CSRMatrix, is_symmetric
from distributed_ignn.graph.datasets import amgcn, download, feature_text, load_dataset

FEATURES = np.array(
    [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0]]
)
LABELS = [0, 1, 2, 0, 1, 2]
EDGES = [(0, 1), (1, 0), (2, 2), (2, 3), (4, 5), (4, 5)]
KNN = [(0, 3), (5, 3)]


def _lines(rows: Any, cell: str = "{}") -> str:
    return "".join(" ".join(cell.format(value) for value in row) + "\n" for row in rows)


def _contents(**changes: str) -> dict[str, str]:
    contents = {
        "coraml.edge": "".join(f"{a}\t{b}\n" for a, b in EDGES),
        "coraml.feature": _lines(FEATURES),
        "coraml.label": _lines([[label] for label in LABELS]),
        "train60.txt": "3\n0\n",
        "test60.txt": "5\n1\n",
        "train20.txt": "0\n",
        "test20.txt": "5\n",
        "knn/c5.txt": _lines(KNN),
    }
    return contents | changes


def _write_zip(root: Path, contents: dict[str, str], name: str = "coraml.zip") -> Path:
    path = root / "am-gcn" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("coraml/", "")
        for member, text in contents.items():
            archive.writestr(f"coraml/{member}", text)
    return path


def _dense(features: Any) -> np.ndarray:
    assert isinstance(features, CSRMatrix)
    return features.to_dense().numpy()


def test_tiny_zip_is_read_exactly(tmp_path: Path) -> None:
    _write_zip(tmp_path, _contents())
    data = load_dataset("corafull", tmp_path, DataConfig())
    expected = np.zeros((6, 6))
    for a, b in [(0, 1), (2, 3), (4, 5)]:
        expected[a, b] = expected[b, a] = 1
    assert np.array_equal(data.graphs[0].to_dense().numpy(), expected)
    assert np.array_equal(_dense(data.features), FEATURES)
    assert data.labels.tolist() == LABELS
    assert data.num_classes == 3
    assert data.train_nodes.tolist() == [0, 3]
    assert data.test_nodes.tolist() == [1, 5]
    assert data.val_nodes.tolist() == [2, 4]


def test_label_rate_chooses_the_split(tmp_path: Path) -> None:
    _write_zip(tmp_path, _contents())
    data = load_dataset("corafull", tmp_path, DataConfig(label_rate=20))
    assert data.train_nodes.tolist() == [0]
    assert data.test_nodes.tolist() == [5]


def test_nodes_in_both_lists_are_left_out_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write_zip(tmp_path, _contents(**{"train60.txt": "3\n5\n0\n"}))
    data = load_dataset("corafull", tmp_path, DataConfig())
    assert (data.train_nodes.tolist(), data.test_nodes.tolist()) == ([0, 3], [1, 5])
    assert data.val_nodes.tolist() == [2, 4]
    assert "1 of the 3 training nodes are in the test list of the release" in caplog.text


def test_validation_follows_the_protocol() -> None:
    train, test = torch.arange(0, 60), torch.arange(900, 1000)
    rest = np.arange(60, 900)
    expected = np.sort(np.random.default_rng(0).permutation(rest)[:500])
    assert amgcn.validation_nodes(1000, train, test).tolist() == expected.tolist()


def test_knn_is_a_second_symmetric_channel(tmp_path: Path) -> None:
    _write_zip(tmp_path, _contents())
    data = load_dataset("corafull", tmp_path, DataConfig(knn=5))
    channel = data.graphs[1].to_dense()
    assert len(data.graphs) == 2
    assert channel.nonzero().tolist() == [[0, 3], [3, 0], [3, 5], [5, 3]]


def test_knn_outside_the_release_is_refused(tmp_path: Path) -> None:
    _write_zip(tmp_path, _contents())
    with pytest.raises(UserError, match=r"data\.knn: corafull comes with K = 2\.\.9.* not 11"):
        load_dataset("corafull", tmp_path, DataConfig(knn=11))


def test_rows_are_divided_by_their_sum(tmp_path: Path) -> None:
    _write_zip(tmp_path, _contents())
    features = _dense(load_dataset("corafull", tmp_path, DataConfig(feature_norm="row")).features)
    sums = FEATURES.sum(1, keepdims=True)
    assert np.allclose(features, FEATURES / np.maximum(sums, 1), atol=1e-7)


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        (_lines(FEATURES, "{}.000000"), 1.0),  # as in citeseer
        (_lines(FEATURES).rstrip("\n"), 1.0),  # no final line break
        (_lines(FEATURES).replace("\n", "\r\n"), 1.0),
        (_lines(FEATURES * 0.25), 0.25),
        (_lines(FEATURES * 2), 2.0),
        (_lines(FEATURES).replace(" ", "  "), 1.0),
    ],
)
def test_feature_texts(tmp_path: Path, text: str, factor: float) -> None:
    _write_zip(tmp_path, _contents(**{"coraml.feature": text}))
    data = load_dataset("corafull", tmp_path, DataConfig())
    assert np.array_equal(_dense(data.features), FEATURES * factor)


def test_pieces_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = (np.random.default_rng(1).random((101, 13)) < 0.2).astype(int)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.feature", _lines(matrix))
    monkeypatch.setattr(feature_text, "_PIECE", 3 * 26)  # three rows at a time
    with zipfile.ZipFile(path) as archive:
        parsed = feature_text.parse_features(archive, archive.getinfo("x.feature"))
    assert parsed.value is None
    assert np.array_equal(parsed.to_dense().numpy(), matrix)


@pytest.mark.parametrize(
    ("member", "text", "message"),
    [
        ("coraml.feature", "1 0\n0 1 1\n", "line 2 has 3 entries, line 1 has 2"),
        ("coraml.feature", "1 0\n0 x\n", "is not a matrix"),
        ("coraml.feature", "", "first line is empty"),
        ("coraml.feature", "1 0\n0 1\n", "2 feature rows for 6 labels"),
        ("coraml.feature", _lines(FEATURES * 0.5).replace("0.5", "nan"), "NaN or infinity"),
        ("coraml.edge", "0 6\n", r"\.edge: id 6 is outside 0\.\.5"),
        ("coraml.edge", "0 -1\n", "id -1 is outside"),
        ("coraml.edge", "0 1 2\n", "has shape 1 x 3"),
        ("coraml.edge", "0 one\n", "is not a table of ids"),
        ("train60.txt", "17\n", "id 17 is outside"),
        ("train60.txt", "1\n", "the train split is empty"),
        ("coraml.label", "0\n1\n2\n0\n1\n-7\n", "label -7 is outside"),
    ],
)
def test_malformed_members_are_one_clear_line(
    tmp_path: Path, member: str, text: str, message: str
) -> None:
    _write_zip(tmp_path, _contents(**{member: text}))
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("corafull", tmp_path, DataConfig())
    assert "\n" not in str(caught.value)


def test_missing_and_ambiguous_members_are_refused(tmp_path: Path) -> None:
    contents = _contents()
    del contents["coraml.label"]
    _write_zip(tmp_path, contents)
    with pytest.raises(UserError, match=r"0 members end in \.label"):
        load_dataset("corafull", tmp_path, DataConfig())
    _write_zip(tmp_path, _contents() | {"other.label": "0\n"})
    with pytest.raises(UserError, match=r"2 members end in \.label"):
        load_dataset("corafull", tmp_path, DataConfig())


def test_oversized_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_zip(tmp_path, _contents())
    monkeypatch.setattr(feature_text, "_MATRIX_LIMIT", 10)
    with pytest.raises(UserError, match="unpacks to 48 bytes, at most 10"):
        load_dataset("corafull", tmp_path, DataConfig())


def test_damaged_zip_names_the_file(tmp_path: Path) -> None:
    path = _write_zip(tmp_path, _contents())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"coraml\.zip cannot be read"):
        load_dataset("corafull", tmp_path, DataConfig())


def test_second_load_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_zip(tmp_path, _contents())
    first = load_dataset("corafull", tmp_path, DataConfig())

    def unexpected(*_: Any) -> None:
        raise AssertionError("parsed again")

    monkeypatch.setattr(feature_text, "parse_features", unexpected)
    again = load_dataset("corafull", tmp_path, DataConfig())
    assert again.fingerprint() == first.fingerprint()
    _write_zip(tmp_path, _contents(**{"train60.txt": "0\n"}))  # another zip, another cache
    with pytest.raises(AssertionError, match="parsed again"):
        load_dataset("corafull", tmp_path, DataConfig())


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign"])
def test_damaged_cache_is_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    _write_zip(tmp_path, _contents())
    first = load_dataset("corafull", tmp_path, DataConfig())
    (cache,) = (tmp_path / "am-gcn" / ".cache").glob("*.npz")
    content = bytearray(cache.read_bytes())
    if damage == "cut":
        cache.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        middle = content.index(b"rowptr.npy") + 40
        content[middle] ^= 0xFF
        cache.write_bytes(content)
    else:
        np.savez(cache, mark=np.array("features 1 of another zip"))
    with caplog.at_level(logging.WARNING):
        again = load_dataset("corafull", tmp_path, DataConfig())
    assert "rebuilding the damaged cache" in caplog.text
    assert again.fingerprint() == first.fingerprint()
    caplog.clear()
    load_dataset("corafull", tmp_path, DataConfig())
    assert "rebuilding" not in caplog.text


def test_read_only_root_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    root = tmp_path / "root"
    folder = _write_zip(root, _contents()).parent
    folder.chmod(0o555)
    try:
        load_dataset("corafull", root, DataConfig())
        assert [child.name for child in folder.iterdir()] == ["coraml.zip"]
    finally:
        folder.chmod(0o755)
    assert len(list((tmp_path / "xdg" / "distributed_ignn" / "am-gcn").glob("*.npz"))) == 1


def test_no_cache_folder_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    blocked.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        download.cache_folder(blocked / "data", "x")


def test_without_network_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(download, "transfer", offline)
    with pytest.raises(UserError) as caught:
        load_dataset("citeseer", tmp_path, DataConfig())
    message = str(caught.value)
    for part in ("citeseer.zip", "github.com/zhumeiqiBUPT/AM-GCN", str(tmp_path / "am-gcn")):
        assert part in message
    assert "\n" not in message
    assert list((tmp_path / "am-gcn").iterdir()) == []


def test_download_is_checked_and_atomic(tmp_path: Path) -> None:
    origin = tmp_path / "origin.bin"
    origin.write_bytes(b"published content")
    target = tmp_path / "new" / "file.bin"
    download.fetch(origin.as_uri(), target, source="here", sha256=sha256_file(origin))
    assert target.read_bytes() == b"published content"
    wrong = tmp_path / "new" / "wrong.bin"
    with pytest.raises(UserError, match=r"wrong\.bin from here does not have its published"):
        download.fetch(origin.as_uri(), wrong, source="here", sha256="0" * 64)
    # as git hash-object gives it
    blob = "0b7d37d6aab18602cf7e488188f7ccfc24a308d7"
    with pytest.raises(UserError, match=r"its git blob id is [0-9a-f]{40}, not"):
        download.fetch(origin.as_uri(), wrong, source="here", blob="0" * 40)
    again = download.fetch(origin.as_uri(), wrong, source="here", blob=blob)
    again.unlink()
    assert os.listdir(tmp_path / "new") == ["file.bin"]


@pytest.mark.parametrize(
    ("name", "file", "known_by"),
    [("acm", "acm.zip", "sha256"), ("corafull", "coraml.zip", "git blob id")],
)
def test_an_unpublished_zip_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, file: str, known_by: str
) -> None:
    _write_zip(tmp_path, _contents(), file)
    with caplog.at_level(logging.WARNING):
        data = load_dataset(name, tmp_path, DataConfig())
    assert data.num_nodes == 6
    assert f"is not the published file ({known_by} " in caplog.text


@pytest.fixture(scope="module")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "density", "classes", "train"),
    [
        # .edge of citeseer: 9,464 rows, 248 self-loops, both directions, some pairs repeated.
        ("citeseer", 3_327, 4_552, 3_703, 0.0085, 6, 360),
        ("acm", 3_025, 13_128, 1_870, 0.045, 3, 180),
        ("blogcatalog", 5_196, 171_743, 8_189, 0.0087, 6, 360),
        ("flickr", 7_575, 239_738, 12_047, 0.0020, 9, 540),
    ],
)
def test_release_matches_its_table(
    shared_data: Path,
    cache_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    nodes: int,
    edges: int,
    features: int,
    density: float,
    classes: int,
    train: int,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    before = sorted((shared_data / "am-gcn").iterdir())
    data = load_dataset(name, shared_data, DataConfig(knn=5))
    assert (data.num_nodes, data.num_undirected_edges) == (nodes, edges)
    assert (data.num_features, data.num_classes) == (features, classes)
    assert isinstance(data.features, CSRMatrix)
    assert data.features.value is None
    filled = data.features.num_entries / (nodes * features)
    assert filled == pytest.approx(density, rel=0.02)
    sizes = [split.numel() for split in (data.train_nodes, data.val_nodes, data.test_nodes)]
    assert sizes == [train, 500, 1000]
    assert torch.bincount(data.labels[data.train_nodes]).tolist() == [train // classes] * classes
    assert all(is_symmetric(graph) for graph in data.graphs)
    assert sorted((shared_data / "am-gcn").iterdir()) == before


def test_release_features_agree_with_the_text(
    shared_data: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    data = load_dataset("acm", shared_data, DataConfig())
    with (
        zipfile.ZipFile(shared_data / "am-gcn" / "acm.zip") as archive,
        archive.open("acm/acm.feature") as stream,
    ):
        rows = [np.array(next(stream).split(), dtype=np.float64) for _ in range(50)]
    assert isinstance(data.features, CSRMatrix)
    head = data.features.select_rows(torch.arange(50)).to_dense().numpy()
    assert np.array_equal(head, np.array(rows))


def test_a_zip_that_may_not_be_read_is_not_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    _write_zip(tmp_path, _contents())
    monkeypatch.setattr(amgcn, "sha256_file", refuse)
    with pytest.raises(UserError, match=r"coraml\.zip cannot be read .*give yourself the right"):
        load_dataset("corafull", tmp_path, DataConfig())
