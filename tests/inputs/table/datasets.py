"""Datasets: archives, graphs, features, labels and splits."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tests.inputs.case import Case
from tests.inputs.place import NODES, Place, cut, mask, ring

_OWN = "train.py --dataset mine.npz --device cpu --output out"
_PT = "train.py --dataset mine.pt --device cpu --output out"
_ACM = "train.py --dataset acm --data-root data --device cpu --output out"
_ZIP = "data/am-gcn/acm.zip"


def _acm(place: Place, **members: str | None) -> None:
    """A small archive of the form that the AM-GCN release has; members by the end of their name."""
    nodes = 8
    texts: Mapping[str, str | None] = {
        "edge": "".join(f"{k} {(k + 1) % nodes}\n" for k in range(nodes)),
        "feature": "1 0 1\n" * nodes,
        "label": "0\n1\n" * (nodes // 2),
        "train60": "0\n1\n",
        "test60": "2\n3\n",
    } | members
    with zipfile.ZipFile(place.path(_ZIP), "w") as archive:
        for name, text in texts.items():
            folder = "" if name.startswith(("train", "test")) else "acm"
            suffix = ".txt" if not folder else ""
            if text is not None:
                archive.writestr(f"acm/{folder}{'.' if folder else ''}{name}{suffix}", text)


def _cut_npz(place: Place) -> None:
    place.graph()
    cut(place.path("mine.npz"))


def _cut_zip(place: Place) -> None:
    _acm(place)
    cut(place.path(_ZIP))


def _corrupt_zip(place: Place) -> None:
    """Bytes of a member differ from the checksum that the archive keeps of it."""
    _acm(place)
    content = place.path(_ZIP).read_bytes()
    place.write(_ZIP, content.replace(b"0\n1\n0\n1\n", b"0\n1\n0\n9\n"))


def _objects(place: Place) -> None:
    arrays = ring() | {"x": np.array([{"a": 1}] * NODES, dtype=object)}
    np.savez(place.path("mine.npz"), allow_pickle=True, **arrays)


def _pickle(place: Place) -> None:
    """A file whose reading would run a program of its author."""
    content = io.BytesIO()
    torch.save({"x": print}, content)
    place.write("mine.pt", content.getvalue())


def _tensors(**changes: Any) -> Mapping[str, Any]:
    tensors = {key: torch.from_numpy(value) for key, value in ring().items()}
    return {key: value for key, value in (tensors | changes).items() if value is not None}


def _case(name: str, value: str, rule: str, way_out: str, **changes: Any) -> Case:
    """A graph of one's own in which some arrays differ from the good ones."""
    return Case(name, _OWN, value, rule, way_out, spoil=lambda place: place.graph(**changes))


_FEATURES = ring()["x"]
_EDGES = ring()["edge_index"]

DATASETS = [
    Case(
        "a dataset that cannot be downloaded",
        _ACM,
        value="acm.zip is neither in",
        rule="nor could it be downloaded",
        way_out="--data-root",
        keeps=("data/am-gcn",),
    ),
    Case(
        "a file for the folder of the datasets",
        _ACM,
        value="data",
        rule="Not a directory",
        way_out="--data-root",
        spoil=lambda place: place.write("data", ""),
    ),
    Case(
        "a graph file that is not there",
        _OWN,
        value="mine.npz",
        rule="does not exist",
        way_out="give the path of a .pt, .npz, .mat",
    ),
    Case(
        "a folder for the graph file",
        _OWN,
        value="mine.npz",
        rule="is a folder",
        way_out="give the path of a .pt, .npz, .mat",
        spoil=lambda place: place.path("mine.npz/x"),
    ),
    Case(
        "a truncated npz",
        _OWN,
        value="mine.npz",
        rule="is not a .npz file of plain number arrays",
        way_out="numpy.savez",
        spoil=_cut_npz,
    ),
    Case(
        "an npz of Python objects",
        _OWN,
        value="mine.npz",
        rule="is not a .npz file of plain number arrays",
        way_out="without object arrays",
        spoil=_objects,
    ),
    Case(
        "a pt file that holds a program",
        _PT,
        value="mine.pt",
        rule="x is a __builtin__.print, a plain tensor is needed",
        way_out="save one in its place",
        spoil=_pickle,
    ),
    Case(
        "a pt file of text",
        _PT,
        value="mine.pt",
        rule="other than a PyG Data object",
        way_out="torch.save(data.to_dict(), path)",
        spoil=lambda place: place.write("mine.pt", "a graph, or so"),
    ),
    Case(
        "a pt file without labels",
        _PT,
        value="mine.pt",
        rule="labels are missing",
        way_out="give y",
        spoil=lambda place: torch.save(_tensors(y=None), place.path("mine.pt")),
    ),
    Case(
        "a truncated archive",
        _ACM,
        value="acm.zip",
        rule="cannot be read",
        way_out="delete it to have it fetched again",
        spoil=_cut_zip,
    ),
    Case(
        "an archive with a wrong checksum",
        _ACM,
        value="acm.zip",
        rule="Bad CRC-32",
        way_out="delete it to have it fetched again",
        spoil=_corrupt_zip,
    ),
    Case(
        "an archive that lacks a file",
        _ACM,
        value="acm.zip",
        rule="0 members end in .edge, exactly one is needed",
        way_out="use the zip of",
        spoil=lambda place: _acm(place, edge=None),
        keeps=("data/am-gcn/.cache",),
    ),
    Case(
        "labels that are words",
        _ACM,
        value="acm.label",
        rule="is not a table of ids",
        way_out="'cat' to int64 at row 0",
        spoil=lambda place: _acm(place, label="cat\ndog\n"),
    ),
    Case(
        "an edge to a node that is not there",
        _ACM,
        value="id 8",
        rule="is outside 0..7",
        way_out="ids count nodes from 0",
        spoil=lambda place: _acm(place, edge="0 1\n7 8\n"),
        keeps=("data/am-gcn/.cache",),
    ),
    Case(
        "more feature rows than labels",
        _ACM,
        value="9 feature rows",
        rule="for 8 labels",
        way_out="use the zip of",
        spoil=lambda place: _acm(place, feature="1 0 1\n" * 9),
        keeps=("data/am-gcn/.cache",),
    ),
    Case(
        "a feature row that is too short",
        _ACM,
        value="line 8 has 2 entries",
        rule="is not a matrix",
        way_out="line 1 has 3",
        spoil=lambda place: _acm(place, feature="1 0 1\n" * 7 + "1 0\n"),
        keeps=("data/am-gcn/.cache",),
    ),
    _case(
        "NaN in the features",
        "first in node 3",
        "hold NaN or infinity",
        "put numbers there",
        x=np.where(_FEATURES == 10, np.nan, _FEATURES),
    ),
    _case(
        "infinity in sparse features",
        "first in node 1",
        "hold NaN or infinity",
        "put numbers there",
        x=None,
        x_indptr=np.minimum(np.arange(NODES + 1), 3),
        x_indices=np.array([0, 1, 2]),
        x_data=np.array([1.0, np.inf, 2.0]),
    ),
    _case(
        "a feature row too few",
        "11 feature rows",
        "for 12 nodes",
        "give one row a node",
        x=_FEATURES[:-1],
    ),
    _case(
        "features without columns",
        "mine.npz",
        "features have no columns",
        "leave them out",
        x=_FEATURES[:, :0],
    ),
    _case(
        "a label beyond the classes",
        "label 7",
        "is outside 0..1",
        "num_classes",
        y=np.where(np.arange(NODES) == 2, 7, np.arange(NODES) % 2),
        num_classes=np.int64(2),
    ),
    _case(
        "a negative label",
        "label -5",
        "is outside 0..1",
        "-1 means unlabelled",
        y=np.where(np.arange(NODES) == 2, -5, np.arange(NODES) % 2),
    ),
    _case(
        "a label that is no class",
        "y holds numbers that are no class",
        "whole numbers from 0",
        "use",
        y=np.full(NODES, 0.5),
    ),
    _case(
        "a single class",
        "1 class(es)",
        "at least two are needed",
        "numbered from 0",
        y=np.zeros(NODES, dtype=np.int64),
    ),
    _case(
        "a label too few",
        "12 feature rows",
        "for 11 nodes by y",
        "give one row a node in both",
        y=(np.arange(NODES) % 2)[:-1],
    ),
    _case(
        "splits that overlap",
        "node 4",
        "is in the test split and in another",
        "keep each node in one split at most",
        test_mask=mask(4, 9),
    ),
    _case(
        "an empty split",
        "the validation split",
        "is empty",
        "put some into it",
        val_mask=mask(),
    ),
    _case(
        "a split that is not given",
        "test nodes",
        "are missing",
        "give test_mask or test_idx",
        test_mask=None,
    ),
    _case(
        "a mask of another length",
        "train_mask has shape (5,)",
        "12 values, true or false",
        "are needed",
        train_mask=mask(0)[:5],
    ),
    _case(
        "a duplicate id",
        "node 5",
        "the validation split names node 5 twice",
        "name each node once",
        val_idx=np.array([5, 4, 5]),
    ),
    _case(
        "a negative id",
        "train_idx: id -2",
        "is outside 0..11",
        "ids count nodes from 0",
        train_idx=np.array([0, -2]),
    ),
    _case(
        "a split without labels",
        "mine.npz",
        "the validation split is empty",
        "put some into it",
        y=np.where(ring()["val_mask"], -1, np.arange(NODES) % 2),
    ),
    _case(
        "an edge beyond the nodes",
        "id 12",
        "is outside 0..11",
        "ids count nodes from 0",
        edge_index=_EDGES + 1,
    ),
    _case(
        "a negative edge",
        "id -1",
        "is outside 0..11",
        "ids count nodes from 0",
        edge_index=_EDGES - 1,
    ),
    _case(
        "edges that stand upright",
        "edge_index has shape (12, 2)",
        "[2, E] is needed",
        "transpose it",
        edge_index=_EDGES.T,
    ),
    _case(
        "edges that are fractions",
        "edge_index has type float64",
        "whole numbers are needed",
        "convert it to int64",
        edge_index=_EDGES * 1.0,
    ),
    _case(
        "a weight below nothing",
        "mine.npz: edge_weight: edge 3 has weight -1",
        "finite numbers from 0 on",
        "--data.edge-weights ignore",
        edge_weight=np.where(np.arange(NODES) == 3, -1.0, 1.0),
    ),
    _case(
        "a weight that is not a number",
        "mine.npz: edge_weight: edge 3 has weight nan",
        "finite numbers from 0 on",
        "--data.edge-weights ignore",
        edge_weight=np.where(np.arange(NODES) == 3, np.nan, 1.0),
    ),
    _case(
        "an infinite weight",
        "mine.npz: edge_attr: edge 3 has weight inf",
        "finite numbers from 0 on",
        "--data.edge-weights ignore",
        edge_attr=np.where(np.arange(NODES) == 3, np.inf, 1.0)[:, None],
    ),
    _case(
        "edges with several attributes",
        "mine.npz: edge_attr has shape (12, 4)",
        "one number an edge is needed",
        "--data.edge-weights ignore",
        edge_attr=np.ones((NODES, 4)),
    ),
    _case(
        "a weight too few",
        "mine.npz: edge_weight holds 11 weights",
        "for 12 edges",
        "--data.edge-weights ignore",
        edge_weight=np.ones(NODES - 1),
    ),
    _case(
        "weights beyond all bounds",
        "mine.npz: edge_weight",
        "sum to more than a number can hold",
        "divide all of them by 1.7e+308",
        edge_weight=np.full(NODES, 1.7e308),
    ),
    _case(
        "weights of nothing at all",
        "mine.npz: graph 0",
        "has no edges besides self-loops",
        "add edges",
        edge_weight=np.zeros(NODES),
    ),
    Case(
        "weights that are words",
        _PT,
        value="mine.pt: edge_weight",
        rule="is a list",
        way_out="a tensor is needed",
        spoil=lambda place: torch.save(
            {**_tensors(), "edge_weight": ["heavy"] * NODES}, place.path("mine.pt")
        ),
    ),
    Case(
        "weights that are asked for and not there",
        f"{_OWN} --data.edge-weights use",
        value="data.edge_weights = use",
        rule="mine.npz has no weights",
        way_out="give edge_weight [E], or drop",
        spoil=lambda place: place.graph(),
    ),
    Case(
        "weights of a graph that has none",
        "train.py --dataset chains --device cpu --data.edge-weights use --output out",
        value="data.edge_weights = use",
        rule="the edges of chains have no weights",
        way_out="drop the setting",
    ),
    Case(
        "directions of a graph that has none",
        "train.py --dataset chains --device cpu --data.directions both --output out",
        value="data.directions = both",
        rule="chains is read as an undirected graph",
        way_out="drop the setting",
    ),
    Case(
        "a cut by weights that are not there",
        f"{_OWN} --partition.edge-weights true --partition.objective cut --partition.method metis",
        value="partition.edge_weights = true",
        rule="the graph has none",
        way_out="drop it",
        spoil=lambda place: place.graph(),
    ),
    _case(
        "a row pointer of another graph",
        "indptr",
        "must have 13 entries",
        "it has 3",
        edge_index=None,
        indptr=np.array([0, 1, 2]),
        indices=np.array([1, 0]),
    ),
    _case(
        "a graph without edges",
        "mine.npz: graph 0",
        "has no edges besides self-loops",
        "add edges",
        edge_index=_EDGES[:, :0],
    ),
    _case(
        "a graph of one node",
        "1 node(s)",
        "at least two",
        "give a larger one",
        edge_index=np.array([[0], [0]]),
        x=_FEATURES[:1],
        y=np.array([0]),
        train_mask=np.array([True]),
        val_mask=np.array([False]),
        test_mask=np.array([False]),
    ),
    Case(
        "more neighbours than nodes",
        f"{_OWN} --data.knn 12",
        value="12 neighbours",
        rule="are not possible among 12 nodes",
        way_out="data.knn",
        spoil=lambda place: place.graph(),
    ),
    Case(
        "a generated graph that is too small",
        "train.py --dataset synthetic-products --data.synthetic.scale 1e-6 --output out",
        value="1e-06 gives 2 nodes",
        rule="too few",
        way_out="use at least",
    ),
    Case(
        "a generated graph that no machine holds",
        "train.py --dataset chains --data.chains.length 1000000000000 --output out",
        value="length = 1000000000000",
        rule="make 200,000,000,000,000 nodes",
        way_out="2,147,483,646 at most",
    ),
]
