"""Graphs in files of MATLAB's: Facebook100, the usual names, names by settings, and refusals."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
import torch

from distributed_ignn.config import DataConfig, RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.datasets import graph_in_memory, load_dataset
from distributed_ignn.reading import mat_files
from distributed_ignn.reading.archives import Limits
from distributed_ignn.reading.mat_files import mat_variables

N = 12
RING = sp.csc_matrix((np.ones(N), (np.arange(N), np.roll(np.arange(N), 1))), (N, N))
BOTH = (RING + RING.T).tocsc()
X = np.arange(1.0, 2 * N + 1).reshape(N, 2)
Y = np.arange(N) % 3
INFO = np.stack(
    [
        *(np.full(N, 1), np.array([1, 2, 0] * 4), np.array([7, 9] * 6), np.zeros(N)),
        *(np.arange(N), np.full(N, 2008), np.array([50, 0] * 6)),
    ],
    axis=1,
)
VERSIONS: dict[str, dict[str, Any]] = {
    "5": {},
    "7": {"do_compression": True},
    "4": {"format": "4"},
}


def _load(folder: Path, arrays: dict[str, Any], **settings: Any) -> GraphData:
    how = settings.pop("how", {})
    scipy.io.savemat(folder / "mine.mat", arrays, **how)
    return load_dataset(
        str(folder / "mine.mat"), folder, DataConfig(**{"split": "random"} | settings)
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_facebook(tmp_path: Path, version: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = _load(tmp_path, {"A": BOTH, "local_info": INFO}, how=VERSIONS[version])
    assert "a file of Facebook100; gender is predicted" in caplog.text
    assert found.class_names == ("1", "2")
    assert found.labels.tolist() == [0, 1, -1] * 4
    assert np.array_equal(found.graphs[0].to_dense().numpy(), BOTH.toarray())
    assert isinstance(found.features, CSRMatrix)
    # status, two majors, no second major, eleven dorms, a year, a high school
    assert found.num_features == 1 + 2 + 0 + 11 + 1 + 1
    dense = found.features.to_dense()
    assert dense[0].nonzero().flatten().tolist() == [0, 1, 14, 15]
    assert dense[1].nonzero().flatten().tolist() == [0, 2, 3, 14]


def test_another_column_of_facebook(tmp_path: Path) -> None:
    arrays = {"A": BOTH, "local_info": INFO}
    found = _load(tmp_path, arrays, label="major")
    assert found.class_names == ("7", "9")
    assert found.num_features == 1 + 2 + 11 + 1 + 1
    with pytest.raises(UserError, match=r"did you mean 'gender'\?\); take one of status, gender"):
        _load(tmp_path, arrays, label="gendre")
    with pytest.raises(UserError, match=r"data.features = x has no effect .*; drop it"):
        _load(tmp_path, arrays, features="x")
    with pytest.raises(UserError, match=r"local_info has shape \(12, 6\)"):
        _load(tmp_path, {"A": BOTH, "local_info": INFO[:, 1:]})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dense", [False, True])
def test_matrices_by_their_usual_names(tmp_path: Path, version: str, dense: bool) -> None:
    masks = {f"{s}_mask": (np.arange(N) // 4 == i) for i, s in enumerate(("train", "val", "test"))}
    edges = np.stack([RING.tocoo().col, RING.tocoo().row])
    plain = {"edge_index": edges, "x": X, "y": Y, **masks}
    expected = graph_in_memory(plain, DataConfig(directions="both"))
    arrays = {
        "Network": RING.toarray() if dense else RING,
        "Attributes": X,
        "Label": Y[:, None].astype(float),
        **{name: mask.astype(float) for name, mask in masks.items()},
    }
    found = _load(tmp_path, arrays, split="file", directions="both", how=VERSIONS[version])
    assert found.fingerprint() == expected.fingerprint()
    named = {"P": arrays["Network"], "Q": X, "R": Y, "y": np.zeros(N), **masks}
    settings = {"adjacency": "P", "features": "Q", "label": "R"}
    found = _load(tmp_path, named, split="file", directions="both", **settings)
    assert found.fingerprint() == expected.fingerprint()


def test_sparse_features_weights_and_several_labels(tmp_path: Path) -> None:
    group = np.stack([Y == 0, np.arange(N) > 3], axis=1)
    arrays = {"network": RING * 2.5, "group": sp.csc_matrix(group), "attrb": sp.csc_matrix(X)}
    found = _load(tmp_path, arrays)
    assert (found.task, found.labels.tolist()) == ("multilabel", group.astype(float).tolist())
    assert isinstance(found.features, CSRMatrix)
    assert torch.equal(found.features.to_dense(), torch.from_numpy(X).float())
    assert found.graphs[0].value is not None
    assert set(found.graphs[0].value.tolist()) == {2.5}
    words = _load(tmp_path, {"A": BOTH, "y": np.array(["cat", "horse", "ant"] * 4)})
    assert words.class_names == ("ant", "cat", "horse")


def test_what_is_not_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _load(tmp_path, {"A": BOTH, "y": Y, "words": np.array(["a", 1], object), "z": X})
    assert "not read: words, z" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        (
            {"M": BOTH, "y": Y},
            {},
            r"holds M \[12 x 12\], y \[1 x 12\], and none is called as edges .*--data.adjacency A",
        ),
        ({"A": BOTH, "y": Y}, {"features": "z"}, "data.features = z is not in it; name its"),
        ({"A": BOTH, "y": Y}, {"label": "z"}, "label = z is not in .*, which holds A, y; name one"),
        ({"A": BOTH, "x": X}, {"label": "z"}, "label = z is not in .*, which holds A, x; name one"),
        ({"A": np.ones((3, 4)), "y": Y}, {}, r"the edges have shape \(3, 4\); a square matrix"),
        (
            {"edge_index": np.ones((9, 2)), "y": Y},
            {},
            r"mine\.mat: the edges have shape \(9, 2\); .*\[2, E\] of nodes from 0 .*\(list - 1\)'",
        ),
        ({"A": BOTH, "y": np.array([1, "a"], object)}, {}, "y is a cell array; a matrix"),
        ({"A": {"b": 1}, "y": Y}, {}, "A is a structure; a matrix of numbers is needed"),
        ({"A": BOTH * 1j, "y": Y}, {}, "A holds complex numbers"),
        ({"A": BOTH, "y": Y + 0.5}, {}, "y holds numbers that are no class"),
        ({"A": BOTH, "y": Y, "train_idx": [0.5, 1]}, {}, "train_idx holds numbers that are not"),
        ({"A": BOTH}, {}, r"holds edges alone; .*--data\.nodes nodes\.csv"),
    ],
)
def test_mistakes_are_one_clear_line(
    tmp_path: Path, arrays: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _load(tmp_path, arrays, **settings)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("head", [b"MATLAB 7.3 MAT-file, Platform: GLNXA64", b"\x89HDF\r\n\x1a\n"])
def test_the_newer_form_is_refused_with_a_way_out(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "mine.mat").write_bytes(head + bytes(600))
    with pytest.raises(
        UserError, match=r"version 7.3, which is HDF5\); .*save\('graph.mat', '-v7'"
    ):
        load_dataset(str(tmp_path / "mine.mat"), tmp_path, DataConfig())


def test_known_by_content(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "mine.txt", {"A": BOTH, "y": Y}, appendmat=False)
    assert load_dataset(str(tmp_path / "mine.txt"), tmp_path, DataConfig(split="random")).num_nodes
    table = tmp_path / "mine.mat"
    table.write_text("source,target\n0,1\n")
    with pytest.raises(UserError, match=r"is not a \.mat file of matrices"):
        load_dataset(str(table), tmp_path, DataConfig())


def test_a_table_of_nodes_beside_a_matrix(tmp_path: Path) -> None:
    rows = "\n".join(f"{label},{a},{b}" for label, (a, b) in zip(Y, X, strict=True))
    (tmp_path / "nodes.csv").write_text(f"y,a,b\n{rows}\n")
    found = _load(tmp_path, {"A": BOTH}, nodes=tmp_path / "nodes.csv")
    expected = _load(tmp_path, {"A": BOTH, "x": X, "y": Y})
    assert found.fingerprint() == expected.fingerprint()


def test_settings_of_names_have_an_effect_or_are_refused(tmp_path: Path) -> None:
    for key in ("label", "features", "adjacency"):
        with pytest.raises(ValueError, match=f"data.{key} = z is for a file of your own"):
            RunConfig.model_validate({"dataset": "acm", "data": {key: "z"}})
    (tmp_path / "edges.csv").write_text("source,target\n0,1\n")
    (tmp_path / "nodes.csv").write_text("y,a\n0,1\n1,2\n")
    with pytest.raises(UserError, match=r"data.features = z has no effect .*edges alone; drop it"):
        load_dataset(
            str(tmp_path / "edges.csv"),
            tmp_path,
            DataConfig(nodes=tmp_path / "nodes.csv", features="z"),
        )


@pytest.mark.parametrize("kind", ["npz", "memory"])
def test_names_by_settings_in_other_files(tmp_path: Path, kind: str) -> None:
    arrays = {"E": RING.toarray(), "F": X, "G": np.array(["a", "b", "c"] * 4), "y": Y}
    data = DataConfig(split="random", adjacency="E", features="F", label="G")
    if kind == "npz":
        np.savez(tmp_path / "mine.npz", **arrays)
        found = load_dataset(str(tmp_path / "mine.npz"), tmp_path, data)
    else:
        found = graph_in_memory(arrays, data)
    assert found.class_names == ("a", "b", "c")
    assert torch.equal(found.features, torch.from_numpy(X).float())  # type: ignore[arg-type]
    assert np.array_equal(found.graphs[0].to_dense().numpy(), BOTH.toarray())
    with pytest.raises(UserError, match=r"data.features = H is not in .*, which holds E, F, G, y"):
        graph_in_memory(arrays, data.model_copy(update={"features": "H"}))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mat_files, "Limits", lambda: Limits(free=2**20))
    scipy.io.savemat(tmp_path / "mine.mat", {"x": np.zeros(1)})
    head = (tmp_path / "mine.mat").read_bytes()[:128]
    body = struct.pack("<14I", 14, 2**25, 6, 8, 6, 0, 5, 8, 1, 2**22, 1, 1, ord("x"), 0)
    packed = zlib.compress(body + bytes(2**25), 9)
    path = tmp_path / "bomb.mat"
    path.write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    (variable,) = mat_variables(path).values()
    assert (variable.name, variable.shape) == ("x", (1, 2**22))
    with pytest.raises(ValueError, match=r"unpacks to more than"):
        variable.read()
