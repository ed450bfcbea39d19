"""Reddit and the ogbn graphs, read by PyTorch Geometric's and OGB's own dataset classes.

Both libraries keep processed copies as pickles, which run code when they are loaded. These are
neither read nor written here: only the raw files are read, and what takes long to parse is kept
as plain arrays. OGB is imported only here, and only when asked for.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.files import temporary_sibling
from distributed_ignn.graph.data import GraphData, csr_from_edges
from distributed_ignn.graph.datasets.cache import Arrays, cached_arrays, mapped_members
from distributed_ignn.graph.datasets.checks import brief, check_ids, way_out
from distributed_ignn.graph.datasets.download import cache_folder, exclusive, fetch
from distributed_ignn.reading.archives import Limits, check_gzip, unpack
from distributed_ignn.reading.arrays import check_npz, read_npz
from distributed_ignn.reading.torch_files import read_torch_arrays

logger = logging.getLogger(__name__)

_LIMITS = Limits(total=2**38, members=1_000)  # papers100M, the largest, unpacks to 61 GB
_TEXT_LIMIT = 16 * 2**30  # one table of ogbn-products; its largest has 2.6 GB

OGB_NAMES = ("ogbn-arxiv", "ogbn-products", "ogbn-papers100M")


def load_reddit(data_root: Path) -> GraphData:
    """Reddit (Hamilton et al., 2017) from ``data_root/reddit/raw/reddit_{data,graph}.npz``.

    Raises:
        UserError: files that are missing and cannot be downloaded, or are damaged.
    """
    from torch_geometric.data import Data
    from torch_geometric.datasets import Reddit

    class RawReddit(Reddit):
        """PyG's reader of the raw files, without its pickled copy (2 GB, loaded unsafely)."""

        def _process(self) -> None:
            self.process()

        def save(self, data_list: list[Data], path: str) -> None:
            self.graph = data_list[0]

        def load(self, path: str, data_cls: type = Data) -> None:
            self.data, self.slices = self.collate([self.graph])

    folder = data_root / "reddit"
    files = ("reddit_data.npz", "reddit_graph.npz")
    _fetch_unpacked(Reddit.url, folder / "raw", None, files)
    try:
        # the other arrays, such as the names of the posts, are not read
        wanted = ("feature", "label", "node_types")
        check_npz(folder / "raw" / "reddit_data.npz", wanted, limits=_LIMITS)
        check_npz(folder / "raw" / "reddit_graph.npz", kinds="biufS", limits=_LIMITS)
        data = RawReddit(str(folder))[0]
        _check_reddit(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
            IndexError) as error:  # fmt: skip
        # the last four: of PyG, torch and scipy, where arrays have other shapes than they expect
        advice = way_out(error, "delete the folder")
        raise UserError(f"{folder / 'raw'} cannot be read ({brief(error)}); {advice}") from error
    n = data.num_nodes
    check_ids(data.edge_index, n, f"{folder}: edges")
    return GraphData(
        name="reddit",
        graphs=(csr_from_edges(data.edge_index[0], data.edge_index[1], n),),
        features=data.x,
        labels=data.y,
        num_classes=int(data.y.max()) + 1,
        task="multiclass",
        train_nodes=data.train_mask.nonzero().flatten(),
        val_nodes=data.val_mask.nonzero().flatten(),
        test_nodes=data.test_mask.nonzero().flatten(),
    )


def _check_reddit(data: Any) -> None:
    n = data.x.shape[0]
    if data.x.dim() != 2 or any(
        part.shape != (n,) for part in (data.y, data.train_mask, data.val_mask, data.test_mask)
    ):
        raise ValueError("features, labels and node types are not one row a node")


def load_ogb(name: str, data_root: Path) -> GraphData:
    """One of OGB_NAMES from ``data_root/ogbn_*``, with OGB's own split, symmetrised.

    Args:
        name: OGB's name; the folder has OGB's own layout, so an existing OGB root can be used.
        data_root: OGB's ``root``.

    Raises:
        UserError: files that are missing and cannot be downloaded, are damaged or outdated.
    """
    info = _ogb_info(name)
    folder = data_root / name.replace("-", "_")
    _fetch_unpacked(info["url"], folder, info["download_name"], ())
    release = f"RELEASE_v{info['version']}.txt"
    raw = folder / "raw" / ("data.npz" if info["binary"] == "True" else "edge.csv.gz")
    # OGB would ask on the terminal about an old release, and about a large download.
    if not (folder / release).is_file() or not raw.is_file():
        raise UserError(
            f"{folder} lacks {release} or raw/{raw.name}; delete the folder to have {name} fetched "
            "again"
        )
    graph, labels, split = _read_ogb(name, folder)
    edges = _tensor(graph["edge_index"])
    n = int(np.asarray(graph["num_nodes"]).item())
    if labels.size != n:  # before memory is taken for n nodes
        raise UserError(
            f"{folder}: {labels.size} labels for {n} nodes; delete it to fetch it again"
        )
    check_ids(edges, n, f"{folder}: edges")
    return GraphData(
        name=name,
        graphs=(csr_from_edges(edges[0], edges[1], n),),
        features=_dense(graph.get("node_feat")),
        labels=_labels(labels),
        num_classes=int(info["num classes"]),
        task="multiclass",
        train_nodes=_sorted(split["train"]),
        val_nodes=_sorted(split["valid"]),
        test_nodes=_sorted(split["test"]),
    )


def _tensor(array: np.ndarray) -> Tensor:
    # Arrays straight from pandas are read-only, which tensors cannot be.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _dense(features: np.ndarray | None) -> Tensor | None:
    """Half precision stays: at the size of papers100M the copy would not fit, and ranks convert."""
    if features is not None and features.dtype == np.float16:
        return _tensor(features)
    return None if features is None else _tensor(features.astype(np.float32, copy=False))


def _labels(labels: np.ndarray) -> Tensor:
    """int64 [n]; OGB marks unlabelled nodes with NaN, we do with -1."""
    flat = labels.reshape(-1)
    if flat.dtype.kind == "f":
        flat = np.where(np.isnan(flat), -1, flat)
    return torch.from_numpy(flat.astype(np.int64))


def _sorted(nodes: np.ndarray | Tensor) -> Tensor:
    return torch.from_numpy(np.sort(np.asarray(nodes)).astype(np.int64))


def _import_ogb() -> Any:
    # OGB asks a package index for news in a thread that outlives the import, which delays the end
    # of the process for minutes where there is no network; without this module it does not ask.
    missing = object()
    before = sys.modules.get("outdated", missing)
    sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        import ogb.nodeproppred
    except ImportError as error:
        raise UserError(
            f"this dataset needs the package ogb ({brief(error)}); install it"
        ) from error
    finally:
        if before is missing:
            del sys.modules["outdated"]
        else:
            sys.modules["outdated"] = before  # type: ignore[assignment]
    return ogb.nodeproppred


def _ogb_info(name: str) -> dict[str, str]:
    """OGB's own record of a dataset: url, release version, file format, number of classes."""
    folder = Path(_import_ogb().__file__).parent
    with (folder / "master.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    column = table[0].index(name)
    return {row[0]: row[column] for row in table[1:]}


def _read_ogb(name: str, folder: Path) -> tuple[Arrays, np.ndarray, dict[str, Any]]:
    class RawDataset(_import_ogb().NodePropPredDataset):  # type: ignore[misc]
        """OGB's class without its pickled copy, in a form that torch cannot load safely."""

        def pre_process(self) -> None:
            raw = Path(self.root) / "raw"
            self.graph = _read_npz(raw) if self.binary else _read_csv(raw)
            self.labels = self.graph.pop("labels")

    # OGB reports its progress on stdout, where only results belong.
    quiet = contextlib.redirect_stdout(sys.stderr)
    try:
        with quiet:
            dataset = RawDataset(name, root=str(folder.parent))
            graph, labels = dataset[0]
            _check_ogb(graph)
            return graph, labels, _read_split(dataset)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, TypeError, OverflowError,
            AssertionError) as error:  # fmt: skip
        # pandas and OGB raise any of these for tables of other shapes than they expect
        advice = way_out(error, f"delete it to have {name} fetched again")
        raise UserError(f"{folder} cannot be read ({brief(error)}); {advice}") from error


def _check_ogb(graph: dict[str, Any]) -> None:
    edges, features = graph["edge_index"], graph.get("node_feat")
    count = np.asarray(graph["num_nodes"])
    if count.size != 1 or count.dtype.kind not in "iu":
        raise ValueError("its number of nodes is no whole number")
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype.kind not in "iu":
        raise ValueError(f"its edges have shape {edges.shape}, two rows of ids are needed")
    if features is not None and (features.ndim != 2 or features.dtype.kind not in "iuf"):
        raise ValueError(f"its features have shape {features.shape} and type {features.dtype}")


def _read_split(dataset: Any) -> dict[str, Any]:
    """The split that OGB reads with torch.load, or with pandas if it is not kept so."""
    folder = Path(dataset.root) / "split" / dataset.meta_info["split"]
    saved = folder / "split_dict.pt"
    if saved.is_file():
        split = read_torch_arrays(saved)
    else:
        for table in sorted(folder.glob("*.csv.gz")):
            check_gzip(table, _TEXT_LIMIT)
        split = dataset.get_idx_split()
    for name in ("train", "valid", "test"):
        nodes = np.asarray(split[name])
        if nodes.ndim != 1 or nodes.dtype.kind not in "iu":
            raise ValueError(f"its {name} split is not a list of ids")
    return dict(split)


def _read_npz(raw: Path) -> Arrays:
    """As OGB's ``read_binary_graph_raw``, which would load everything: 50 GB for papers100M."""
    folder = cache_folder(raw.parent / ".cache", "ogb")
    names = ("edge_index", "node_feat", "num_nodes_list")
    arrays = mapped_members(raw / "data.npz", names, folder)
    graph = {"edge_index": arrays["edge_index"], "node_feat": arrays.get("node_feat")}
    labels = read_npz(raw / "node-label.npz", ["node_label"], limits=_LIMITS)["node_label"]
    return _wanted(graph | {"num_nodes": arrays["num_nodes_list"][0]}, labels)


def _read_csv(raw: Path) -> Arrays:
    """Text files of ogbn-products take minutes, so their arrays are kept."""

    def build() -> Arrays:
        from ogb.io.read_graph_raw import read_csv_graph_raw

        for table in files:
            check_gzip(table, _TEXT_LIMIT)
        graph = read_csv_graph_raw(str(raw))[0]
        return _wanted(graph, np.loadtxt(raw / "node-label.csv.gz", delimiter=","))

    files = sorted(raw.glob("*.csv.gz"))
    stamps = "".join(f"{f.resolve()} {f.stat().st_size} {f.stat().st_mtime_ns}\n" for f in files)
    mark = hashlib.sha256(stamps.encode()).hexdigest()
    folder = cache_folder(raw.parent / ".cache", "ogb")
    return cached_arrays(folder / f"{raw.parent.name}-{mark[:16]}.npz", f"ogb 1 {mark}", build)


def _wanted(graph: dict[str, Any], labels: np.ndarray) -> Arrays:
    arrays = {"edge_index": graph["edge_index"], "num_nodes": np.array(graph["num_nodes"])}
    if graph["node_feat"] is not None:
        arrays["node_feat"] = graph["node_feat"]
    return arrays | {"labels": labels}


def _fetch_unpacked(url: str, folder: Path, inner: str | None, files: tuple[str, ...]) -> None:
    """Download a zip and unpack it as ``folder``, all or nothing, unless that is there already.

    Args:
        inner: the folder inside the zip that becomes ``folder``; None takes the zip's top level.
        files: what ``folder`` has to hold.
    """

    def there() -> bool:
        return folder.is_dir() and all((folder / name).is_file() for name in files)

    if there():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            if not there():  # another process has not done it meanwhile
                _unpacked(url, folder, inner)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder.parent} ({brief(error)}); name another folder with "
            "--data-root"
        ) from error


def _unpacked(url: str, folder: Path, inner: str | None) -> None:
    url = url.replace("http://", "https://", 1)  # OGB still names its files without encryption
    host = url.split("/")[2]
    target = folder.parent / url.rsplit("/", 1)[1]
    archive = fetch(url, target, source=host, limit=_LIMITS.total)
    partial = temporary_sibling(folder)
    try:
        unpack(archive, partial, _LIMITS)
        shutil.rmtree(folder, ignore_errors=True)
        (partial / inner if inner else partial).replace(folder)
        archive.unlink()
    except (OSError, ValueError) as error:
        advice = way_out(error, "delete it")
        raise UserError(f"{archive} cannot be unpacked ({brief(error)}); {advice}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
