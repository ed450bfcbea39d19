"""Tiny raw files of datasets, in the formats of those who publish them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from distributed_ignn.graph.datasets import amazon

DIRECTED = np.array([[0, 1, 2, 5, 3, 0], [1, 2, 0, 4, 3, 5]])
FEATURES = np.arange(18, dtype=np.float32).reshape(6, 3) / 8
LABELS = np.array([0, 39, 2, 0, 1, 2])
SPLIT = {"train": [3, 0], "valid": [2, 1], "test": [5]}


def write_csv(path: Path, table: Any) -> None:
    """Rows of a table, or a column, with commas and gzip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.asarray(table)
    rows = rows[:, None] if rows.ndim == 1 else rows
    with gzip.open(path, "wt") as file:
        file.writelines(",".join(str(value) for value in row) + "\n" for row in rows)


def write_arxiv(folder: Path) -> None:
    """ogbn-arxiv, as its folder is unpacked from OGB's archive."""
    raw = folder / "raw"
    write_csv(raw / "edge.csv.gz", DIRECTED.T)
    write_csv(raw / "num-node-list.csv.gz", [6])
    write_csv(raw / "num-edge-list.csv.gz", [6])
    write_csv(raw / "node-feat.csv.gz", FEATURES)
    write_csv(raw / "node_year.csv.gz", np.full(6, 2015))
    write_csv(raw / "node-label.csv.gz", LABELS)
    for name, nodes in SPLIT.items():
        write_csv(folder / "split" / "time" / f"{name}.csv.gz", nodes)
    (folder / "RELEASE_v1.txt").write_text("")


def write_papers(folder: Path, labels: np.ndarray) -> None:
    """ogbn-papers100M in the same way, whose arrays are binary."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    np.savez(
        raw / "data.npz",
        edge_index=DIRECTED,
        num_nodes_list=np.array([6]),
        num_edges_list=np.array([6]),
        node_feat=FEATURES.astype(np.float16),
        node_year=np.full((6, 1), 2015),
    )
    np.savez(raw / "node-label.npz", node_label=labels)
    for name, nodes in SPLIT.items():
        write_csv(folder / "split" / "time" / f"{name}.csv.gz", nodes)
    (folder / "RELEASE_v1.txt").write_text("")


def write_products(folder: Path) -> None:
    """ogbn-products: as ``write_arxiv``, with the split where OGB has it."""
    write_arxiv(folder)
    (folder / "split" / "time").rename(folder / "split" / "sales_ranking")


def write_reddit(folder: Path) -> None:
    """Reddit, as PyG unpacks it."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    np.savez(
        raw / "reddit_data.npz",
        feature=FEATURES.astype(np.float64),
        label=np.array([0, 1, 2, 0, 1, 2]),
        node_types=np.array([1, 2, 3, 1, 2, 3]),
        node_ids=np.array(list("abcdef")),  # names, which are not read
    )
    both = np.concatenate([DIRECTED, DIRECTED[::-1]], axis=1)
    sp.save_npz(raw / "reddit_graph.npz", sp.coo_matrix((np.ones(12), tuple(both)), (6, 6)))


def write_reddit2(folder: Path, **changes: Any) -> None:
    """Reddit2, as GraphSAINT publishes it; ``changes`` are of the arrays of its graph."""
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    both = np.concatenate([DIRECTED, DIRECTED[::-1]], axis=1)
    graph = sp.csr_matrix((np.ones(both.shape[1]), tuple(both)), (6, 6))
    names = ("data", "indices", "indptr", "shape")
    np.savez(raw / "adj_full.npz", **{name: getattr(graph, name) for name in names} | changes)
    np.save(raw / "feats.npy", FEATURES.astype(np.float64))
    (raw / "class_map.json").write_text(json.dumps({str(5 - i): i % 3 for i in range(6)}))


def write_amazon(root: Path, communities: Sequence[Sequence[int]], products: int = 40) -> list[int]:
    """A ring of products with scattered ids, in SNAP's format; the ids."""
    folder = root / "amazon-all"
    folder.mkdir(parents=True)
    ids = [7 * i + 3 for i in range(products)]
    with gzip.open(folder / amazon.GRAPH_FILE, "wt") as file:
        file.write("# Undirected graph: tiny\n# FromNodeId\tToNodeId\n")
        file.writelines(f"{ids[i]}\t{ids[(i + 1) % products]}\n" for i in range(products))
    with gzip.open(folder / amazon.COMMUNITY_FILE, "wt") as file:
        file.writelines("\t".join(str(ids[i]) for i in members) + "\n" for members in communities)
    return ids
