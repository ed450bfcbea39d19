"""Every reader of the package with a small valid file: what is damaged, and how it is read."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import scipy.io
import scipy.sparse as sp
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import DataConfig, PartitionConfig, RunConfig, dump_yaml, load_yaml
from distributed_ignn.config.dataset import ChainsConfig
from distributed_ignn.config.deepspeed_settings import read_settings
from distributed_ignn.errors import UserError
from distributed_ignn.files import sha256_file
from distributed_ignn.graph.datasets import amazon, load_dataset, validate
from distributed_ignn.graph.datasets.chains import make_chains
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.storage.shard_store import read_manifest, read_shard, write_shards
from distributed_ignn.lab.planning.hardware import FOLDER as PROFILES
from distributed_ignn.lab.planning.hardware import load_profile, shipped
from distributed_ignn.runs.checkpoints.checkpoint import Snapshot, load_checkpoint, sealed
from distributed_ignn.runs.checkpoints.checkpoint_store import CheckpointStore
from distributed_ignn.runs.output.records import read_metrics
from distributed_ignn.runs.shard_record import read_record

NODES = torch.arange(6)
EDGES = np.array([[0, 1, 2, 5, 3, 0], [1, 2, 0, 4, 3, 5]])
LABELS = np.array([0, 1, 2, 0, 1, 2])
FEATURES = np.arange(18, dtype=np.float32).reshape(6, 3) / 8


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        make: writes valid files into a folder.
        file: the one to damage, relative to the folder.
        read: reads it; raises AssertionError if what was read breaks a rule.
        mend: makes checksums elsewhere fit the damaged file, so that it is looked at at all.
    """

    make: Callable[[Path], None]
    file: str
    read: Callable[[Path], None]
    mend: Callable[[Path], None] | None = None


def check(target: Target, folder: Path, content: bytes) -> str | None:
    """Read ``content`` as the target's file; the message if it was refused, None if not."""
    path = folder / target.file
    path.write_bytes(content)
    if target.mend is not None:
        target.mend(folder)
    try:
        target.read(folder)
    except UserError as error:
        message = str(error)
        assert message
        assert message.isprintable(), message
        assert len(message) < 2_000
        return message
    return None


# Shards


def _make_shards(folder: Path) -> None:
    data = make_chains(ChainsConfig(length=4, chains_per_class=4, features=3))
    config = PartitionConfig(method="contiguous")
    assignment = assign_parts(data.graphs, 2, config)
    write_shards(folder / "shards", data, assignment, config, settings={"dataset": "chains"})


def _read_manifest(folder: Path) -> None:
    manifest = read_manifest(folder / "shards")
    assert len(manifest.files) == manifest.parts
    for file in manifest.files:
        assert (folder / "shards" / file.name).parent == folder / "shards"
    for part in range(manifest.parts):
        read_shard(folder / "shards", part, verify=False)


_PART = "shards/part-00000-of-00002.safetensors"


def _mend_shard(folder: Path) -> None:
    path = folder / "shards" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    part = folder / _PART
    manifest["files"][0] |= {"size": part.stat().st_size, "sha256": sha256_file(part)}
    path.write_text(json.dumps(manifest))


def _read_shard(folder: Path) -> None:
    shard = read_shard(folder / "shards", 0)
    assert shard.part == 0
    # every index of it is followed
    shard.labels[shard.train_index]
    shard.owned_nodes[shard.send_index]
    for channel in shard.channels:
        for block in (channel.owned, channel.boundary):
            assert block.to_dense().shape == (block.num_rows, block.num_cols)


def _make_record(folder: Path) -> None:
    record = {"folder": "shards/acm-2-ab12", "fingerprint": "ab" * 32, "parts": 2}
    (folder / "shards.json").write_text(json.dumps(record))


def _read_record(folder: Path) -> None:
    record = read_record(folder)
    assert ".." not in record.path(folder).parts


# Settings


def _make_config(folder: Path) -> None:
    (folder / "config.yaml").write_text(dump_yaml(RunConfig(dataset="chains")))


def _read_config(folder: Path) -> None:
    config = load_yaml(folder / "config.yaml")
    (folder / "config.yaml").write_text(dump_yaml(config))
    assert load_yaml(folder / "config.yaml") == config


def _make_profile(folder: Path) -> None:
    (folder / "mine.yaml").write_bytes((PROFILES / f"{shipped()[0]}.yaml").read_bytes())


def _make_deepspeed(folder: Path) -> None:
    settings = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}, "bf16": {}}
    settings["bf16"] = {"enabled": False}
    (folder / "ds.json").write_text(json.dumps(settings))


def _read_deepspeed(folder: Path) -> None:
    settings = read_settings(folder / "ds.json")
    assert settings["zero_optimization"]["stage"] in (1, 2)


# A run's own files


def _make_metrics(folder: Path) -> None:
    lines = [json.dumps({"epoch": n, "loss": 1.0, "val_metric": None}) for n in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _read_metrics(folder: Path) -> None:
    for record in read_metrics(folder / "metrics.jsonl"):
        assert type(record["epoch"]) is int


def _make_checkpoint(folder: Path) -> None:
    rows = {"warm/train": torch.rand(6, 3), "optimizer/e|step": torch.ones(6)}
    common = {"model/head.weight": torch.rand(3, 2), "rng/torch": torch.get_rng_state()}
    state = {"epoch": 5, "best_epoch": 4, "best_val": 0.5}
    store = CheckpointStore(folder, Communicator(), 1)
    store.save(5, Snapshot(state, common, rows), NODES)


_EPOCH = "epoch-000005"
_RANK = f"{_EPOCH}/rank-00000-of-00001.safetensors"


def _mend_checkpoint(folder: Path) -> None:
    path = folder / _EPOCH / "state.json"
    state = json.loads(path.read_bytes())
    for name in state["sha256"]:
        state["sha256"][name] = sha256_file(folder / _EPOCH / name)
    path.write_text(json.dumps(sealed(state)))


def _seal_checkpoint(folder: Path) -> None:
    """A checksum that fits whatever the state now says, if it says anything."""
    path = folder / _EPOCH / "state.json"
    try:
        state = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(state, dict):
        path.write_text(json.dumps(sealed(state)))


def _read_checkpoint(folder: Path) -> None:
    comm = Communicator()
    for nodes in (NODES, NODES[[4, 1]]):  # as written, and as another number of ranks reads it
        snapshot = load_checkpoint(folder / _EPOCH, comm, nodes)
        assert type(snapshot.state["epoch"]) is int
        assert all(value.shape[0] == nodes.numel() for value in snapshot.rows.values())


# Datasets


def _read_dataset(name: str, **settings: Any) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        place = str(folder / name) if name.startswith("mine") else name
        data = load_dataset(place, folder, DataConfig(**settings))
        validate(data, name)
        for matrix in data.graphs:
            assert matrix.problem() is None
            assert matrix.to_dense().shape == (data.num_nodes, data.num_nodes)
        data.fingerprint()

    return read


def _arrays() -> dict[str, np.ndarray]:
    masks = {
        f"{name}_mask": np.arange(6) // 2 == i for i, name in enumerate(("train", "val", "test"))
    }
    return {"edge_index": EDGES, "x": FEATURES, "y": LABELS, **masks}


def _make_npz(folder: Path) -> None:
    np.savez(folder / "mine.npz", **_arrays())  # type: ignore[arg-type]


def _make_sparse_npz(folder: Path) -> None:
    arrays = _arrays()
    del arrays["x"], arrays["edge_index"]
    arrays |= {
        "indptr": np.arange(7),
        "indices": np.roll(np.arange(6), 1),
        "x_indptr": np.arange(7),
        "x_indices": np.arange(6) % 3,
        "x_data": np.ones(6, np.float32),
    }
    np.savez_compressed(folder / "mine.npz", **arrays)  # type: ignore[arg-type]


def _pyg(sparse: bool) -> Any:
    from torch_geometric.data import Data

    data = Data(**{key: torch.from_numpy(value) for key, value in _arrays().items()})
    if sparse:
        data.x = data.x.to_sparse()
    return data


def _make_pt(folder: Path) -> None:
    torch.save(_pyg(sparse=False), folder / "mine.pt")


def _make_sparse_pt(folder: Path) -> None:
    torch.save(_pyg(sparse=True).to_dict(), folder / "mine.pt")


def _make_numpy_pt(folder: Path) -> None:
    torch.save(_arrays() | {"y": np.array(list("abcabc"))}, folder / "mine.pt", pickle_protocol=4)


def _make_adjacency_pt(folder: Path) -> None:
    data = _pyg(sparse=False)
    edges = data.edge_index.flip(0)
    del data.edge_index
    data.adj_t = torch.sparse_coo_tensor(edges, torch.rand(6), (6, 6)).coalesce().to_sparse_csr()
    torch.save((data, None), folder / "mine.pt")


def _make_nodes(folder: Path) -> None:
    splits = ("train", "train", "val", "val", "test", "test")
    rows = [f"n{i},{'abc'[i % 3]},{split},{i / 8}" for i, split in enumerate(splits)]
    (folder / "nodes.csv").write_text("\n".join(["id,label,split,x0", *rows]) + "\n")
    (folder / "mine.csv").write_text("a,b\n" + "".join(f"n{a},n{b}\n" for a, b in EDGES.T))


def _make_snap(folder: Path) -> None:
    _make_nodes(folder)
    _drop_ids(folder)
    text = "# a remark\n" + "".join(f"{a}\t{b}\n" for a, b in EDGES.T)
    (folder / "mine.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def _make_parquet(folder: Path) -> None:
    _make_nodes(folder)
    _drop_ids(folder)
    table = pa.table({"source": EDGES[0], "target": EDGES[1], "weight": np.arange(1.0, 7.0)})
    pa.parquet.write_table(table, folder / "mine.parquet")


def _make_market(folder: Path) -> None:
    _make_nodes(folder)
    _drop_ids(folder)
    scipy.io.mmwrite(folder / "mine.mtx", sp.coo_array((np.arange(1.0, 7.0), tuple(EDGES))))


def _make_scipy(folder: Path) -> None:
    _make_nodes(folder)
    _drop_ids(folder)
    matrix = sp.csr_array((np.arange(1.0, 7.0), tuple(EDGES)), shape=(6, 6))
    sp.save_npz(folder / "mine.npz", matrix)


def _make_mat(**how: Any) -> Callable[[Path], None]:
    masks = {key: value for key, value in _arrays().items() if key.endswith("mask")}
    edges = sp.csc_matrix((np.arange(1.0, 7.0), tuple(EDGES)), (6, 6))
    arrays = {"network": edges, "attrb": FEATURES, "group": LABELS, **masks}
    return lambda folder: scipy.io.savemat(folder / "mine.mat", arrays, **how)


def _make_facebook(folder: Path) -> None:
    edges = sp.csc_matrix((np.ones(6), tuple(EDGES)), (6, 6))
    info = np.tile(np.arange(7.0), (6, 1)) + LABELS[:, None]
    scipy.io.savemat(folder / "mine.mat", {"A": edges, "local_info": info})


def _make_ogb_folder(folder: Path) -> None:
    _make_arxiv(folder)
    scheme = folder / "ogbn_arxiv" / "split" / "time"
    for name, nodes in {"train": [0, 3], "valid": [1, 2], "test": [5]}.items():
        _csv(scheme / f"{name}.csv.gz", nodes)


def _drop_ids(folder: Path) -> None:
    """Leave nodes to be counted from 0."""
    rows = (folder / "nodes.csv").read_text().splitlines()
    (folder / "nodes.csv").write_text("\n".join(row.partition(",")[2] for row in rows) + "\n")


def _read_with_nodes(name: str) -> Callable[[Path], None]:
    return lambda folder: _read_dataset(name, nodes=folder / "nodes.csv")(folder)


def _make_amgcn(folder: Path) -> None:
    path = folder / "am-gcn" / "coraml.zip"
    path.parent.mkdir()
    texts = {
        "x.edge": "".join(f"{a} {b}\n" for a, b in EDGES.T),
        "x.feature": "".join("1 0 1\n" for _ in LABELS),
        "x.label": "".join(f"{y}\n" for y in LABELS),
        "train60.txt": "0\n1\n",
        "test60.txt": "2\n3\n",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(f"coraml/{name}", text)


def _csv(path: Path, table: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.asarray(table)
    rows = rows[:, None] if rows.ndim == 1 else rows
    text = "".join(",".join(str(value) for value in row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _make_arxiv(folder: Path) -> None:
    root = folder / "ogbn_arxiv"
    _csv(root / "raw" / "edge.csv.gz", EDGES.T)
    _csv(root / "raw" / "num-node-list.csv.gz", [6])
    _csv(root / "raw" / "num-edge-list.csv.gz", [6])
    _csv(root / "raw" / "node-feat.csv.gz", FEATURES)
    _csv(root / "raw" / "node-label.csv.gz", LABELS)
    split = {"train": np.array([0, 3]), "valid": np.array([1, 2]), "test": np.array([5])}
    (root / "split" / "time").mkdir(parents=True)
    torch.save(split, root / "split" / "time" / "split_dict.pt")
    (root / "RELEASE_v1.txt").write_text("")


def _make_papers(folder: Path) -> None:
    raw = folder / "ogbn_papers100M" / "raw"
    raw.mkdir(parents=True)
    count = np.array([6])
    features = FEATURES.astype(np.float16)
    np.savez(raw / "data.npz", edge_index=EDGES, num_nodes_list=count, node_feat=features)
    np.savez(raw / "node-label.npz", node_label=LABELS[:, None].astype(np.float32))
    for name, nodes in {"train": [0, 3], "valid": [1, 2], "test": [5]}.items():
        _csv(raw.parent / "split" / "time" / f"{name}.csv.gz", nodes)
    (raw.parent / "RELEASE_v1.txt").write_text("")


def _make_reddit(folder: Path) -> None:
    raw = folder / "reddit" / "raw"
    raw.mkdir(parents=True)
    kinds = np.array([1, 2, 3, 1, 2, 3])
    np.savez(raw / "reddit_data.npz", feature=FEATURES, label=LABELS, node_types=kinds)
    adjacency = sp.coo_matrix((np.ones(6), tuple(EDGES)), (6, 6))
    sp.save_npz(raw / "reddit_graph.npz", adjacency)


def _make_reddit2(folder: Path) -> None:
    raw = folder / "reddit2" / "raw"
    raw.mkdir(parents=True)
    graph = sp.csr_matrix((np.ones(6), tuple(EDGES)), (6, 6))
    parts = {name: getattr(graph, name) for name in ("data", "indices", "indptr", "shape")}
    np.savez(raw / "adj_full.npz", **parts)
    np.save(raw / "feats.npy", FEATURES)
    classes = {str(node): int(label) for node, label in enumerate(LABELS)}
    (raw / "class_map.json").write_text(json.dumps(classes))


def _make_amazon(folder: Path) -> None:
    root = folder / "amazon-all"
    root.mkdir()
    ring = "# tiny\n" + "".join(f"{7 * i}\t{7 * ((i + 1) % 40)}\n" for i in range(40))
    members = "\t".join(str(7 * i) for i in range(40)) + "\n"
    (root / amazon.GRAPH_FILE).write_bytes(gzip.compress(ring.encode(), mtime=0))
    (root / amazon.COMMUNITY_FILE).write_bytes(gzip.compress(members.encode(), mtime=0))


def _read_amazon(folder: Path) -> None:
    data = amazon.load_amazon(folder, min_community=20)
    validate(data, "amazon")


TARGETS: dict[str, Target] = {
    "manifest": Target(_make_shards, "shards/manifest.json", _read_manifest),
    "shard": Target(_make_shards, _PART, _read_shard, _mend_shard),
    "record": Target(_make_record, "shards.json", _read_record),
    "config": Target(_make_config, "config.yaml", _read_config),
    "profile": Target(
        _make_profile, "mine.yaml", lambda folder: _ignore(load_profile(str(folder / "mine.yaml")))
    ),
    "deepspeed": Target(_make_deepspeed, "ds.json", _read_deepspeed),
    "metrics": Target(_make_metrics, "metrics.jsonl", _read_metrics),
    "checkpoint state": Target(
        _make_checkpoint, f"{_EPOCH}/state.json", _read_checkpoint, _seal_checkpoint
    ),
    "checkpoint rows": Target(_make_checkpoint, _RANK, _read_checkpoint, _mend_checkpoint),
    "npz": Target(_make_npz, "mine.npz", _read_dataset("mine.npz")),
    "sparse npz": Target(_make_sparse_npz, "mine.npz", _read_dataset("mine.npz")),
    "pt": Target(_make_pt, "mine.pt", _read_dataset("mine.pt")),
    "sparse pt": Target(_make_sparse_pt, "mine.pt", _read_dataset("mine.pt")),
    "numpy pt": Target(_make_numpy_pt, "mine.pt", _read_dataset("mine.pt")),
    "adjacency pt": Target(_make_adjacency_pt, "mine.pt", _read_dataset("mine.pt")),
    "edge table": Target(_make_nodes, "mine.csv", _read_with_nodes("mine.csv")),
    "node table": Target(_make_nodes, "nodes.csv", _read_with_nodes("mine.csv")),
    "packed edge table": Target(_make_snap, "mine.gz", _read_with_nodes("mine.gz")),
    "parquet": Target(_make_parquet, "mine.parquet", _read_with_nodes("mine.parquet")),
    "matrix market": Target(_make_market, "mine.mtx", _read_with_nodes("mine.mtx")),
    "scipy npz": Target(_make_scipy, "mine.npz", _read_with_nodes("mine.npz")),
    "mat": Target(_make_mat(), "mine.mat", _read_dataset("mine.mat")),
    "packed mat": Target(_make_mat(do_compression=True), "mine.mat", _read_dataset("mine.mat")),
    "old mat": Target(_make_mat(format="4"), "mine.mat", _read_dataset("mine.mat")),
    "facebook mat": Target(
        _make_facebook,
        "mine.mat",
        _read_dataset("mine.mat", split="random", split_train=2.0, split_val=1.0),
    ),
    "ogb folder": Target(
        _make_ogb_folder,
        "ogbn_arxiv/raw/edge.csv.gz",
        lambda folder: _read_dataset("file", path=folder / "ogbn_arxiv")(folder),
    ),
    "amgcn": Target(_make_amgcn, "am-gcn/coraml.zip", _read_dataset("corafull")),
    "ogb table": Target(_make_arxiv, "ogbn_arxiv/raw/edge.csv.gz", _read_dataset("ogbn-arxiv")),
    "ogb split": Target(
        _make_arxiv, "ogbn_arxiv/split/time/split_dict.pt", _read_dataset("ogbn-arxiv")
    ),
    "ogb arrays": Target(
        _make_papers, "ogbn_papers100M/raw/data.npz", _read_dataset("ogbn-papers100M")
    ),
    "reddit": Target(_make_reddit, "reddit/raw/reddit_graph.npz", _read_dataset("reddit")),
    "reddit2": Target(_make_reddit2, "reddit2/raw/adj_full.npz", _read_dataset("reddit2")),
    "amazon": Target(_make_amazon, f"amazon-all/{amazon.COMMUNITY_FILE}", _read_amazon),
}


def _ignore(_: object) -> None:
    """The value is checked by the reader itself."""


def everything_below(folder: Path) -> set[str]:
    """Names of all files and folders, links not followed."""
    return {
        os.path.join(place, name)
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with these members, in order."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()
