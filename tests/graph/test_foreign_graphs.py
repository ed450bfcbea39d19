"""Graphs in the forms that people have: other libraries' names and objects, unknown labels."""

from __future__ import annotations

import io
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData, InMemoryDataset, TemporalData
from torch_geometric.transforms import ToSparseTensor

from distributed_ignn.config import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import graph_in_memory, load_dataset

# PyTorch Geometric compiles a class on import in a way that newer torch versions deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
    pytest.mark.filterwarnings("ignore:Sparse.* tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]

N = 6
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 0, 4, 5, 3]])
WEIGHT = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def _tensors(**changes: Any) -> dict[str, Any]:
    masks = {
        f"{name}_mask": torch.arange(N) // 2 == i for i, name in enumerate(("train", "val", "test"))
    }
    x = torch.arange(1.0, 19.0).reshape(N, 3)
    plain = {"edge_index": EDGES, "x": x, "y": torch.arange(N) % 3, **masks}
    return {key: value for key, value in (plain | changes).items() if value is not None}


def _saved(folder: Path, content: Any, protocol: int = 2, **settings: Any) -> GraphData:
    torch.save(content, folder / "mine.pt", pickle_protocol=protocol)
    return load_dataset(str(folder / "mine.pt"), folder, DataConfig(**settings))


def _same(found: GraphData, **changes: Any) -> None:
    expected = graph_in_memory(_tensors(**changes), DataConfig())
    assert found.fingerprint() == expected.fingerprint()


def _adjacency(layout: torch.layout, *, weighted: bool) -> Tensor:
    value = WEIGHT if weighted else torch.ones(N)
    transform = ToSparseTensor(attr="edge_attr", layout=torch.sparse_coo)
    made = transform(Data(edge_index=EDGES, edge_attr=value, num_nodes=N)).adj_t
    return {
        torch.sparse_coo: made.to_sparse_coo,
        torch.sparse_csr: made.to_sparse_csr,
        torch.sparse_csc: made.to_sparse_csc,
    }[layout]()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_adjacencies(tmp_path: Path, layout: torch.layout, weighted: bool) -> None:
    """Row i lists whom node i reads: in both directions apart, an exchanged one would show."""
    content = _tensors(edge_index=None, adj_t=_adjacency(layout, weighted=weighted))
    settings = DataConfig(directions="both")
    weight = WEIGHT if weighted else None
    expected = graph_in_memory(_tensors(edge_weight=weight), settings).fingerprint()
    assert _saved(tmp_path, content, directions="both").fingerprint() == expected
    assert graph_in_memory(content, settings).fingerprint() == expected
    turned = _tensors(edge_index=EDGES.flip(0), edge_weight=weight)
    assert graph_in_memory(turned, settings).fingerprint() != expected
    ignored = _saved(tmp_path, content, edge_weights="ignore")
    _same(ignored)


def test_parallel_entries_add_up() -> None:
    value = torch.ones(2 * N)
    twice = torch.sparse_coo_tensor(EDGES.flip(0).repeat(1, 2), value * 0.5, (N, N))
    assert not twice.is_coalesced()
    found = graph_in_memory(_tensors(edge_index=None, adj_t=twice), DataConfig())
    _same(found)


class _SparseTensor:
    """The methods of torch_sparse's ``SparseTensor`` that are called."""

    def csr(self) -> tuple[Tensor, Tensor, Tensor]:
        matrix = _adjacency(torch.sparse_csr, weighted=True)
        return matrix.crow_indices(), matrix.col_indices(), matrix.values()

    def sparse_sizes(self) -> tuple[int, int]:
        return N, N


def _stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, **attributes: Any) -> Any:
    """An object that pickles as one of a library that need not be installed."""
    kind = type(name, (), {"__module__": module})
    monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType(module.split(".")[0]))
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    setattr(sys.modules[module], name, kind)
    found = kind()
    vars(found).update(attributes)
    return found


@pytest.mark.parametrize("rows", [False, True])
def test_sparse_tensors_of_torch_sparse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: bool
) -> None:
    matrix = _adjacency(torch.sparse_csr, weighted=True)
    pointer = matrix.crow_indices()
    parts = {
        "_row": torch.repeat_interleave(torch.arange(N), pointer.diff()) if rows else None,
        "_rowptr": None if rows else pointer,
        "_col": matrix.col_indices(),
        "_value": matrix.values(),
        "_sparse_sizes": (N, N),
        "_rowcount": None,
    }
    storage = _stand_in(monkeypatch, "torch_sparse.storage", "SparseStorage", **parts)
    adjacency = _stand_in(monkeypatch, "torch_sparse.tensor", "SparseTensor", storage=storage)
    content = _tensors(edge_index=None, adj_t=adjacency)
    torch.save(Data(**content), tmp_path / "mine.pt")
    monkeypatch.undo()
    assert b"torch_sparse.tensor\nSparseTensor" in (tmp_path / "mine.pt").read_bytes()
    _same(load_dataset(str(tmp_path / "mine.pt"), tmp_path, DataConfig()), edge_weight=WEIGHT)
    content["adj_t"] = _SparseTensor()
    _same(graph_in_memory(content, DataConfig()), edge_weight=WEIGHT)


@pytest.mark.parametrize(
    ("adjacency", "message"),
    [
        (lambda: torch.eye(N), "adj_t has shape .* a sparse matrix"),
        (lambda: torch.eye(4).to_sparse(), "adj_t is 4 x 4 and there are 6 nodes"),
        (lambda: -torch.eye(N).to_sparse(), "adj_t: edge 0 has weight -1"),
        (_SparseTensor, "adj_t is a .*_SparseTensor, a plain"),
    ],
)
def test_adjacencies_that_are_none(
    tmp_path: Path, adjacency: Callable[[], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _saved(tmp_path, _tensors(edge_index=None, adj_t=adjacency()))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_numpy_in_any_protocol(tmp_path: Path, protocol: int) -> None:
    arrays = {key: value.numpy() for key, value in _tensors().items()}
    _same(_saved(tmp_path, arrays, protocol))
    _same(_saved(tmp_path, Data(**_tensors()), protocol))
    _same(_saved(tmp_path, Data(**arrays), protocol))


def test_lists_of_numbers(tmp_path: Path) -> None:
    content = _tensors(y=[0, 1, 2, 0, 1, 2], train_mask=None, train_idx=[0, 1])
    _same(_saved(tmp_path, content))
    with pytest.raises(UserError, match="y is a list, a tensor is needed"):
        _saved(tmp_path, _tensors(y=[0, 1, 2, None, 1, 2]))
    with pytest.raises(UserError, match="y is an array of object"):
        _saved(tmp_path, _tensors(y=[0, 1, 2, 2**70, 1, 2]))


def test_objects_beside_the_graph_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _same(_saved(tmp_path, Data(**_tensors(), kept=io.BytesIO(b"x"), where=Path("here"))))
    assert "not read: kept, where" in caplog.text


def test_a_single_kind_of_nodes_and_edges(tmp_path: Path) -> None:
    hetero = HeteroData()
    for key, value in _tensors(edge_index=None).items():
        hetero["paper"][key] = value
    hetero["paper", "cites", "paper"].edge_index = EDGES
    _same(_saved(tmp_path, hetero))
    _same(graph_in_memory(hetero, DataConfig()))


def test_the_advice_for_several_kinds_works(tmp_path: Path) -> None:
    hetero = HeteroData()
    for kind, half in {"a": slice(0, 3), "b": slice(3, 6)}.items():
        for key, value in _tensors(edge_index=None).items():
            hetero[kind][key] = value[half]
    hetero["a", "to", "b"].edge_index = torch.tensor([[0, 1], [1, 2]])
    hetero["b", "to", "a"].edge_index = torch.tensor([[0], [2]])
    with pytest.raises(UserError, match=r"2 kinds of nodes and 2 of edges.*to_homogeneous"):
        _saved(tmp_path, hetero)
    found = _saved(tmp_path, hetero.to_homogeneous().to_dict())
    assert found.num_nodes == N
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.train_nodes.tolist() == [0, 1]


def test_the_advice_for_events_works(tmp_path: Path) -> None:
    data = TemporalData(src=EDGES[0], dst=EDGES[1], t=torch.arange(N))
    with pytest.raises(UserError, match=r"TemporalData.*torch\.stack\(\[data\.src, data\.dst\]\)"):
        _saved(tmp_path, data)
    _same(_saved(tmp_path, _tensors(edge_index=torch.stack([data.src, data.dst]))))


class _Published(InMemoryDataset):
    """Writes its processed file as the installed PyG does."""

    def __init__(self, root: Path, copies: int) -> None:
        self.copies = copies
        super().__init__(str(root))
        self.load(self.processed_paths[0])

    @property
    def processed_file_names(self) -> str:
        return "data.pt"

    def process(self) -> None:
        self.save([Data(**_tensors())] * self.copies, self.processed_paths[0])


def test_processed_files_of_pyg(tmp_path: Path) -> None:
    path = Path(_Published(tmp_path / "one", 1).processed_paths[0])
    _same(load_dataset(str(path), tmp_path, DataConfig()))
    _same(_saved(tmp_path, (Data(**_tensors()), None)))  # as PyG before 2.4
    many = _Published(tmp_path / "two", 2)
    with pytest.raises(UserError, match=r"holds 2 graphs .*dataset\[0\]\.to_dict\(\), path"):
        load_dataset(many.processed_paths[0], tmp_path, DataConfig())
    _same(_saved(tmp_path, many[0].to_dict()))


def test_words_of_ogb(tmp_path: Path) -> None:
    plain = _tensors()
    split = {"train": torch.tensor([0, 1]), "valid": torch.tensor([2, 3])}
    split["test"] = torch.tensor([4, 5])
    named = {"edge_index": EDGES, "node_feat": plain["x"], "num_nodes": N, "edge_feat": None}
    labels = plain["y"][:, None]
    _same(_saved(tmp_path, named | {"node_label": labels, "split_idx": split}))
    _same(graph_in_memory(named | {"y": labels, "split_idx": split}, DataConfig()))
    _same(_saved(tmp_path, _tensors(val_mask=None, valid_mask=plain["val_mask"])))
    pair = ({key: value for key, value in named.items() if key != "edge_feat"}, labels.numpy())
    with pytest.raises(UserError, match=r"train nodes are missing.*--data\.split random draws one"):
        _saved(tmp_path, pair)
    assert _saved(tmp_path, pair, split="random", split_train=2, split_val=2).num_nodes == N


def test_words_of_published_npz_files(tmp_path: Path) -> None:
    """Platonov et al. 2023 have a row for each split, Shchur et al. 2018 matrices in parts."""
    arrays = {key: value.numpy() for key, value in _tensors().items()}
    first = {"edges": arrays["edge_index"].T, "node_features": arrays["x"]}
    first |= {"node_labels": arrays["y"]}
    for split in ("train", "val", "test"):
        mask = arrays[f"{split}_mask"]
        first[f"{split}_masks"] = np.stack([np.roll(mask, 1), mask])
    np.savez(tmp_path / "first.npz", **first)
    _same(load_dataset(str(tmp_path / "first.npz"), tmp_path, DataConfig(split=1)))
    matrix = _adjacency(torch.sparse_csr, weighted=False)
    second = {key: value for key, value in arrays.items() if "mask" in key}
    second |= {"labels": arrays["y"], "adj_data": matrix.values().numpy()}
    second |= {"adj_indptr": matrix.crow_indices().numpy()}
    second |= {"adj_indices": matrix.col_indices().numpy()}
    second |= {"attr_indptr": np.arange(N + 1) * 3, "attr_indices": np.tile(np.arange(3), N)}
    second |= {"attr_data": arrays["x"].reshape(-1)}
    np.savez(tmp_path / "second.npz", **second)
    found = load_dataset(str(tmp_path / "second.npz"), tmp_path, DataConfig())
    _same(found, x=_tensors()["x"].to_sparse())


def test_sparse_features_in_memory_are_not_sorted_in_place() -> None:
    sparse = {"x_indptr": np.array([0, 2, 2, 2, 2, 2, 3]), "x_indices": np.array([1, 0, 0])}
    sparse["x_data"] = np.array([5, 7, 9], np.float32)
    kept = {name: array.copy() for name, array in sparse.items()}
    graph_in_memory(_tensors(x=None) | sparse, DataConfig())
    assert all(np.array_equal(sparse[name], array) for name, array in kept.items())


WORDS = ["cat", "dog", "", "ant", "cat", "dog"]


@pytest.mark.parametrize("kind", [list, np.array, lambda words: np.array(words, dtype=object)])
@pytest.mark.parametrize("protocol", [2, 4])
def test_labels_that_are_words(tmp_path: Path, kind: Callable[..., Any], protocol: int) -> None:
    found = _saved(tmp_path, _tensors(y=kind(WORDS)), protocol)
    assert found.class_names == ("ant", "cat", "dog")
    assert found.labels.tolist() == [1, 2, -1, 0, 1, 2]
    assert found.val_nodes.tolist() == [3]  # node 2 has no label


def test_labels_that_are_words_in_other_places(tmp_path: Path) -> None:
    arrays = {key: value.numpy() for key, value in _tensors(y=None).items()}
    np.savez(tmp_path / "mine.npz", **arrays, y=np.array(WORDS)[:, None])
    expected = _saved(tmp_path, _tensors(y=WORDS)).fingerprint()
    read = load_dataset(str(tmp_path / "mine.npz"), tmp_path, DataConfig())
    assert read.fingerprint() == expected
    assert graph_in_memory(_tensors(y=WORDS), DataConfig()).fingerprint() == expected
    other = [word.replace("cat", "bat") for word in WORDS]  # the same numbers by other names
    assert graph_in_memory(_tensors(y=other), DataConfig()).fingerprint() != expected


def test_nan_and_minus_one_mean_unlabelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    y = torch.tensor([0.0, torch.nan, 2.0, 0.0, 1.0, torch.nan])[:, None]
    with caplog.at_level(logging.WARNING):
        found = _saved(tmp_path, _tensors(y=y))
    assert found.labels.tolist() == [0, -1, 2, 0, 1, -1]
    assert (found.train_nodes.tolist(), found.test_nodes.tolist()) == ([0], [4])
    assert "1 of 2 train nodes have no label (NaN or -1) and are left out" in caplog.text
    assert "val nodes" not in caplog.text
    whole = torch.tensor([0, -1, 2, 0, 1, -1])
    assert _saved(tmp_path, _tensors(y=whole)).fingerprint() == found.fingerprint()


def test_unknown_labels_among_several(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    y = torch.tensor([[0, 1], [-1, -1], [1, -1], [1, 1], [0, 0], [0, 1]])
    with caplog.at_level(logging.WARNING):
        found = _saved(tmp_path, _tensors(y=y))
    assert (found.task, found.num_classes) == ("multilabel", 2)
    assert torch.equal(found.labels, y.float())
    assert found.train_nodes.tolist() == [0]
    assert "1 of 2 train nodes" in caplog.text
    shown = torch.where(y < 0, torch.nan, y.double())
    assert _saved(tmp_path, _tensors(y=shown)).fingerprint() == found.fingerprint()
    with pytest.raises(UserError, match=r"must be 0 or 1 \(-1 where one is not known\)"):
        _saved(tmp_path, _tensors(y=y * 2))
