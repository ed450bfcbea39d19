"""Reddit2: the Reddit posts with GraphSAINT's sparser graph, which the paper's counts belong to.

Files, as PyTorch Geometric's class ``Reddit2`` names and fetches them: ``adj_full.npz`` (a CSR
matrix: ``indptr``, ``indices``, ``shape``), ``feats.npy`` and ``class_map.json`` (the class of each
node id). They are read here and not by that class, which keeps a pickled copy. The release's own
split is not read: the IGNN-Solver paper has 139,779 training and 46,593 test nodes, 60 and 20 % of
all.
Letters: n nodes, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData, csr_from_edges
from distributed_ignn.graph.datasets.checks import brief, check_ids, way_out
from distributed_ignn.graph.datasets.download import fetch
from distributed_ignn.reading.archives import Limits
from distributed_ignn.reading.arrays import map_npy, read_npz
from distributed_ignn.reading.strict_json import read_json

GRAPH_FILE, FEATURE_FILE, CLASS_FILE = "adj_full.npz", "feats.npy", "class_map.json"
TRAIN_FRACTION, TEST_FRACTION = 0.6, 0.2

_SOURCE = "drive.usercontent.google.com (PyG's Reddit2)"
_URL = "https://drive.usercontent.google.com/download?confirm=t&id="
_LIMITS = Limits(total=2**34, members=100)
_CLASS_LIMIT = 2**28  # the published file has 3 MB


def load_reddit2(data_root: Path, seed: int = 0) -> GraphData:
    """The whole graph; of the n nodes 60 % are for training, 20 % each for validation and test.

    Args:
        data_root: the files lie in, or are downloaded to, ``data_root/reddit2/raw``.
        seed: draws the split.

    Raises:
        UserError: files that are missing and cannot be downloaded, or are damaged.
    """
    folder = data_root / "reddit2" / "raw"
    _fetch(folder)
    with _told(folder / FEATURE_FILE) as path:
        features = np.asarray(map_npy(path), np.float32)
        if features.ndim != 2 or features.shape[0] == 0:
            raise ValueError(f"its features have shape {features.shape}, one row a node is needed")
    with _told(folder / GRAPH_FILE) as path:
        source, target = _edges(path, features.shape[0])
    with _told(folder / CLASS_FILE) as path:
        labels = _labels(path, features.shape[0])
    n = labels.numel()
    check_ids(target, n, f"{folder}: edges")
    train, val, test = _split(n, seed)
    return GraphData(
        name="reddit2",
        graphs=(csr_from_edges(source, target, n),),
        features=torch.from_numpy(features),
        labels=labels,
        num_classes=int(labels.max()) + 1,
        task="multiclass",
        train_nodes=train,
        val_nodes=val,
        test_nodes=test,
    )


def _fetch(folder: Path) -> None:
    """Files that are not there, by the ids that PyG's class has for them."""
    missing = [n for n in (GRAPH_FILE, FEATURE_FILE, CLASS_FILE) if not (folder / n).is_file()]
    if not missing:
        return
    from torch_geometric.datasets import Reddit2

    ids = {
        GRAPH_FILE: Reddit2.adj_full_id,
        FEATURE_FILE: Reddit2.feats_id,
        CLASS_FILE: Reddit2.class_map_id,
    }
    for name in missing:
        fetch(_URL + ids[name], folder / name, source=_SOURCE)


@contextmanager
def _told(path: Path) -> Iterator[Path]:
    """Name the file that cannot be read: the others may be good."""
    try:
        yield path
    except (OSError, ValueError, KeyError, TypeError) as error:
        advice = way_out(error, "delete that file to have it fetched again")
        raise UserError(f"{path} cannot be read ({brief(error)}); {advice}") from error


def _edges(path: Path, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Both ends of every stored entry, int64 [E]."""
    arrays = read_npz(path, ("indptr", "indices", "shape"), limits=_LIMITS)
    pointers, ends = arrays["indptr"].astype(np.int64), arrays["indices"]
    if arrays["shape"].tolist() != [num_nodes, num_nodes]:
        raise ValueError(f"its graph has shape {arrays['shape'].tolist()}, not {num_nodes} squared")
    counts = np.diff(pointers)
    whole = arrays["indptr"].dtype.kind in "iu" and ends.dtype.kind in "iu"
    if not whole or pointers.shape != (num_nodes + 1,) or (counts < 0).any():
        raise ValueError("its graph is no CSR matrix")
    if int(pointers[0]) != 0 or int(pointers[-1]) != ends.size:
        raise ValueError("the offsets of its graph do not fit its entries")
    rows = np.repeat(np.arange(num_nodes), counts)
    return torch.from_numpy(rows), torch.from_numpy(ends.astype(np.int64))


def _labels(path: Path, num_nodes: int) -> Tensor:
    """int64 [n]; every node has a class."""
    classes = read_json(path, limit=_CLASS_LIMIT)
    labels = torch.full((num_nodes,), -1)
    if not isinstance(classes, dict) or len(classes) != num_nodes:
        raise ValueError(f"{path.name} does not name a class for each of {num_nodes} nodes")
    for node, label in classes.items():
        if not node.isdecimal() or int(node) >= num_nodes:
            raise ValueError(f"{path.name} names node {node[:20]!r}")
        if type(label) is not int or not 0 <= label < num_nodes:
            raise ValueError(f"{path.name} gives node {node} no whole number as class")
        labels[int(node)] = label
    return labels


def _split(num_nodes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test nodes, ascending; no test node depends on the rest."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(num_nodes))
    test, train = round(TEST_FRACTION * num_nodes), round(TRAIN_FRACTION * num_nodes)
    tests, trains, vals = order.split([test, train, num_nodes - test - train])
    return torch.sort(trains).values, torch.sort(vals).values, torch.sort(tests).values
