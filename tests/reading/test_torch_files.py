"""Files of torch.save that try to run code, and those that ask for more than they hold."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_ignn.config import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.reading.pickles import Described, describe
from distributed_ignn.reading.torch_files import open_torch, read_torch_arrays

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


class _Attack:
    """Makes a folder when it is unpickled the ordinary way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def _torch_zip(path: Path, content: bytes) -> None:
    """A file of torch.save with another pickle inside."""
    stream = io.BytesIO()
    torch.save({"x": torch.ones(3)}, stream)
    with zipfile.ZipFile(stream) as archive, zipfile.ZipFile(path, "w") as changed:
        for info in archive.infolist():
            data = content if info.filename.endswith("data.pkl") else archive.read(info)
            changed.writestr(info.filename, data)


def _with_protocol(protocol: int) -> Callable[[Path, Path], None]:
    return lambda path, mark: _torch_zip(path, pickle.dumps(_Attack(mark), protocol))


def _plain_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(_Attack(mark)))


def _before_1_6(path: Path, mark: Path) -> None:
    torch.save({"x": _Attack(mark)}, path, _use_new_zipfile_serialization=False)


def _whole_module(path: Path, mark: Path) -> None:
    torch.save({"x": torch.nn.Linear(2, 2), "y": _Attack(mark)}, path)


ATTACKS = {
    "protocol 0": _with_protocol(0),
    "protocol 2": _with_protocol(2),
    "protocol 4": _with_protocol(4),
    "protocol 5": _with_protocol(5),
    "plain pickle": _plain_pickle,
    "older format": _before_1_6,
    "module": _whole_module,
}


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("name", ATTACKS)
def test_no_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, forced: bool
) -> None:
    if forced:  # the environment can make torch.load trust everything, where a caller says nothing
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, mark = tmp_path / "mine.pt", tmp_path / "ran"
    ATTACKS[name](path, mark)
    with pytest.raises(UserError, match=r"save (it again|one in its place)") as caught:
        load_dataset(str(path), tmp_path, DataConfig())
    assert str(caught.value).isprintable()
    assert not mark.exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_traps_work(tmp_path: Path, name: str) -> None:
    path, mark = tmp_path / "mine.pt", tmp_path / "ran"
    ATTACKS[name](path, mark)
    if name == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()


def test_a_processed_file_of_pyg_is_never_opened(tmp_path: Path) -> None:
    """PyG falls back to a plain pickle where the safe way fails; its processed files are left."""
    from tests.fuzz.targets import TARGETS

    TARGETS["reddit"].make(tmp_path)
    mark = tmp_path / "ran"
    for name in ("data.pt", "pre_transform.pt", "pre_filter.pt"):
        path = tmp_path / "reddit" / "processed" / name
        path.parent.mkdir(exist_ok=True)
        torch.save((_Attack(mark), None), path)
    assert load_dataset("reddit", tmp_path, DataConfig()).num_nodes == 6
    assert not mark.exists()


def test_objects_of_any_class_are_described_and_not_made(tmp_path: Path) -> None:
    """A graph beside them can be read, and its message names what is in the place of a tensor."""
    torch.save({"x": _Attack(tmp_path / "ran"), "y": torch.ones(3)}, tmp_path / "mine.pt")
    with open_torch(tmp_path / "mine.pt") as file:
        assert isinstance(file.content["x"], Described)
        assert file.content["x"].name == "posix.mkdir"
        assert torch.equal(file.value(file.content["y"]), torch.ones(3))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["torch._utils._rebuild_wrapper_subclass", "torch.Tensor", "builtins.set"]
)
def test_names_that_torch_itself_allows(tmp_path: Path, name: str) -> None:
    module, _, last = name.rpartition(".")
    _torch_zip(tmp_path / "mine.pt", b"\x80\x02" + f"c{module}\n{last}\n.".encode())
    with pytest.raises(UserError, match=f"holds a {name}, not a PyG Data object"):
        load_dataset(str(tmp_path / "mine.pt"), tmp_path, DataConfig())


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(protocol: int) -> None:
    value: dict[Any, Any] = {
        "numbers": [0, -1, 255, 65_536, 2**40, 2**70, 1.5, True, None],
        "words": ("a", "\u00e4" * 300, ""),
        ("a", "b"): {"deep": [[], {}, ()]},
    }
    value["same"] = value["numbers"]
    if protocol > 2:  # the others write them as text, which is to be encoded
        value["bytes"] = (b"b", b"c" * 300)
    assert describe(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02K\x01K\x02.",
        b"\x80\x02K\x01)R.",  # a number is called
        b"\x80\x02K\x01}b.",  # a number gets a state
        b"\x80\x02K\x01K\x01a.",  # a member is added to a number
        b"\x80\x02}(K\x01u.",  # a key without a value
        b"\x80\x02}]K\x01s.",  # a list for a key
        b"\x80\x02" + b"}" + b")" + b"\x85" * 10_000 + b"K\x01s.",  # a key that hashes deeply
        b"\x80\x02h\x07.",  # what was never kept
        b"\x80\x04K\x01K\x02\x93.",  # a name of numbers
        b"\x80\x02\x82\x01.",  # an extension of the registry
    ],
)
def test_damaged_pickles(content: bytes) -> None:
    with pytest.raises(ValueError, match="pickle"):
        describe(content)


def test_packed_members_are_refused(tmp_path: Path) -> None:
    """torch.save never packs; a reader of its format would unpack a bomb."""
    stream = io.BytesIO()
    torch.save({"x": torch.zeros(2**20)}, stream)
    path = tmp_path / "mine.pt"
    with (
        zipfile.ZipFile(stream) as archive,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info))
    assert path.stat().st_size < 2**16
    with pytest.raises(ValueError, match="times as many"):
        read_torch_arrays(path)


def test_tensors_larger_than_their_file(tmp_path: Path) -> None:
    """One stored number shown as a thousand billion of them."""
    masks = {f"{name}_mask": torch.tensor([True]) for name in ("train", "val", "test")}
    edges, x = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(1).expand(1, 10**12)
    content = {"x": x, "y": torch.zeros(1), "edge_index": edges, **masks}
    torch.save(content, tmp_path / "mine.pt")
    assert (tmp_path / "mine.pt").stat().st_size < 10_000
    with pytest.raises(UserError, match="x is a tensor that shows its values several times"):
        load_dataset(str(tmp_path / "mine.pt"), tmp_path, DataConfig())


def test_sparse_indices_outside(tmp_path: Path) -> None:
    """Unchecked they would be written to memory beyond the matrix."""
    index = torch.tensor([[0, 2**40], [0, 0]])
    bad = torch.sparse_coo_tensor(index, torch.ones(2), (2, 2), check_invariants=False)
    torch.save({"x": bad}, tmp_path / "mine.pt")
    assert torch.load(tmp_path / "mine.pt", weights_only=True)["x"].shape == (2, 2)
    with pytest.raises(ValueError, match="size is inconsistent with indices"):
        read_torch_arrays(tmp_path / "mine.pt")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_numpy(tmp_path: Path, protocol: int) -> None:
    arrays: dict[str, Any] = {
        "small": np.arange(5, dtype=np.int32),
        "swapped": np.arange(5, dtype=">i8"),
        "plane": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "masks": np.array([True, False]),
        "words": np.array(["one", "two", "\u00e4"]),
        "number": np.array(7),
        "none": np.empty((0, 3)),
        "tensor": torch.arange(3),
        "bytes": torch.arange(3).to(torch.uint16),
        "view": torch.arange(12).reshape(3, 4)[1:, ::2],
    }
    torch.save(arrays, tmp_path / "a.pt", pickle_protocol=protocol)
    found = read_torch_arrays(tmp_path / "a.pt")
    for key, array in arrays.items():
        assert np.array_equal(np.asarray(found[key]), np.asarray(array)), key
        own = array.dtype if torch.is_tensor(array) else array.dtype.newbyteorder("=")
        assert found[key].dtype == own, key


@pytest.mark.parametrize(
    "array", [np.array([None, 1]), np.zeros(2, [("a", "O")]), np.zeros(2, "V8")]
)
def test_arrays_of_other_things(tmp_path: Path, array: np.ndarray) -> None:
    torch.save({"a": array}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="another type than numbers"):
        read_torch_arrays(tmp_path / "a.pt")


def test_a_forged_type_of_numpy(tmp_path: Path) -> None:
    """Eight bytes declared to be a reference: numpy would follow them to any address."""

    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("V8", False, True), (3, "|", None, None, None, 8, 1, 0x3F)

    class Array:
        def __reduce__(self) -> tuple[Any, ...]:
            rebuild = np.empty(0).__reduce__()[0]
            return rebuild, (np.ndarray, (0,), b"b"), (1, (1,), Forged(), False, b"\x41" * 8)

    torch.save({"a": Array()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="another type than numbers"):
        read_torch_arrays(tmp_path / "a.pt")
