"""Files that are whole as files, with checksums that fit, and hold wrong values."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import Damage, apply_all, changed_documents, damages
from tests.fuzz.targets import TARGETS, check, everything_below, zip_of
from tests.fuzz.test_damaged_bytes import room

__all__ = ["room"]

pytestmark = pytest.mark.filterwarnings("ignore")

JSON = ("manifest", "record", "deepspeed", "checkpoint state")
YAML = ("config", "profile")
NPZ = ("npz", "sparse npz", "scipy npz", "ogb arrays", "reddit", "reddit2")
ZIPS = (*NPZ, "pt", "sparse pt", "numpy pt", "adjacency pt", "amgcn", "ogb split")
GZIPS = ("ogb table", "amazon", "packed edge table", "ogb folder")
TENSORS = ("shard", "checkpoint rows")


def _valid(name: str, folder: Path) -> bytes:
    """The target's valid file, made once for each test."""
    target = TARGETS[name]
    kept = folder.parent / "valid"
    if not kept.exists():
        target.make(folder)
        kept.write_bytes((folder / target.file).read_bytes())
    return kept.read_bytes()


def _attempt(name: str, folder: Path, content: bytes) -> None:
    before = everything_below(folder)
    check(TARGETS[name], folder, content)
    assert not {path for path in everything_below(folder) - before if "/.cache" not in path}


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("name", JSON)
@given(data=st.data())
def test_json_values(name: str, room: Path, data: st.DataObject) -> None:
    document = json.loads(_valid(name, room))
    _attempt(name, room, _dump(data.draw(changed_documents(document))))


@given(data=st.data())
def test_metrics_lines(room: Path, data: st.DataObject) -> None:
    lines = [json.loads(line) for line in _valid("metrics", room).splitlines()]
    changed = data.draw(changed_documents(lines))
    lines = changed if isinstance(changed, list) else [changed]
    _attempt("metrics", room, b"\n".join(map(_dump, lines)))


@pytest.mark.parametrize("name", YAML)
@given(data=st.data())
def test_yaml_values(name: str, room: Path, data: st.DataObject) -> None:
    document = data.draw(changed_documents(yaml.safe_load(_valid(name, room))))
    _attempt(name, room, yaml.safe_dump(document, sort_keys=False).encode())


@pytest.mark.parametrize("name", YAML)
@given(
    line=st.integers(0, 200),
    text=st.sampled_from(
        [
            "*a",
            "&a [*a]",
            "!!python/object/apply:os.system [id]",
            "!!python/name:os.system",
            "2001-99-99",
            "!!timestamp x",
            "!!int 0x",
            "!!float x",
            "!!binary x",
            "!!set {a, b}",
            "!!omap [a: 1]",
            "!!bool 3",
            "0b",
            "1:99:1",
            "9" * 5_000,
            "{[1]: 2}",
            "{{a: 1}: 2}",
            "<<",
            "[" * 400,
            "- " * 200,
            "? x",
            "|\n \x85",
            "=",
            "~",
            "%YAML 9.9",
        ]
    ),
)
def test_yaml_words(name: str, room: Path, line: int, text: str) -> None:
    lines = _valid(name, room).decode().splitlines()
    at = line % len(lines)
    key = lines[at].split(":")[0]
    for written in (f"{key}: {text}", text, f"{text}: 1"):
        _attempt(name, room, "\n".join([*lines[:at], written, *lines[at + 1 :]]).encode())


@pytest.mark.parametrize("name", ZIPS)
@given(changes=damages(), which=st.integers(0, 20))
def test_members_of_archives(name: str, room: Path, changes: list[Damage], which: int) -> None:
    with zipfile.ZipFile(io.BytesIO(_valid(name, room))) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = list(members)[which % len(members)]
    members[chosen] = apply_all(members[chosen], changes, b"")
    _attempt(name, room, zip_of(members))


@pytest.mark.parametrize("name", GZIPS)
@given(changes=damages())
def test_text_in_gzip(name: str, room: Path, changes: list[Damage]) -> None:
    text = gzip.decompress(_valid(name, room))
    _attempt(name, room, gzip.compress(apply_all(text, changes, b"nan,inf,-9,1e400"), mtime=0))


@pytest.mark.parametrize("name", TENSORS)
@given(data=st.data())
def test_headers_of_tensors(name: str, room: Path, data: st.DataObject) -> None:
    content = _valid(name, room)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    inner = json.loads(header.get("__metadata__", {}).get("shard", "null"))
    if inner is not None and data.draw(st.booleans()):
        header["__metadata__"]["shard"] = json.dumps(data.draw(changed_documents(inner)))
    else:
        header = data.draw(changed_documents(header))
    raw = json.dumps(header).encode()
    _attempt(name, room, struct.pack("<Q", len(raw)) + raw + content[8 + length :])


@pytest.mark.parametrize("name", TENSORS)
@given(
    place=st.integers(0, 65_535),
    value=st.sampled_from([-1, 0, 1, 6, 7, 2**31, 2**40, 2**62, -(2**63)]),
)
def test_numbers_in_tensors(name: str, room: Path, place: int, value: int) -> None:
    content = bytearray(_valid(name, room))
    (length,) = struct.unpack("<Q", content[:8])
    words = (len(content) - 8 - length) // 8
    at = 8 + length + 8 * (place * words >> 16)
    content[at : at + 8] = struct.pack("<q", value)
    _attempt(name, room, bytes(content))


def _strange_arrays() -> list[np.ndarray]:
    return [
        np.array(3),
        np.array(-1),
        np.array(2**62),
        np.array([2**62]),
        np.zeros(0),
        np.zeros((2, 0), np.int64),
        np.zeros((0, 3)),
        np.zeros((6, 3, 1)),
        np.full((2, 6), 2**40),
        np.full((2, 6), -1),
        np.full(6, np.nan),
        np.full((6, 3), np.inf, np.float16),
        np.arange(6, dtype=">i4"),
        np.arange(6, dtype=np.uint64) + 2**63,
        np.arange(6, dtype=np.longdouble),
        np.arange(6) * 1j,
        np.array(["a"] * 6),
        np.array([b"coo"]),
        np.array(b"csr"),
        np.array(b"../../x"),
        np.array([None] * 6),
        np.array(["2001-01-01"] * 6, "M8[D]"),
        np.zeros(6, [("a", "i4")]),
        np.asfortranarray(np.arange(18.0).reshape(6, 3)),
        np.ones(6, bool),
    ]


@pytest.mark.parametrize("name", NPZ)
@given(which=st.integers(0, 20), value=st.integers(0, 24))
def test_foreign_arrays(name: str, room: Path, which: int, value: int) -> None:
    with np.load(io.BytesIO(_valid(name, room))) as file:
        arrays = {key: file[key] for key in file.files}
    chosen = list(arrays)[which % len(arrays)]
    arrays[chosen] = _strange_arrays()[value]
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    _attempt(name, room, stream.getvalue())


def _lying(size: tuple[int, ...]) -> torch.Tensor:
    index = torch.tensor([[0, 5], [0, 2]])
    return torch.sparse_coo_tensor(index, torch.ones(2), size, check_invariants=False)


STRANGE_TENSORS: dict[str, Callable[[], Any]] = {
    "expanded": lambda: torch.zeros(1).expand(6, 2**40),
    "of no size": lambda: torch.zeros(()),
    "empty": lambda: torch.zeros(0, dtype=torch.int64),
    "sparse beyond its rows": lambda: _lying((2, 2)),
    "sparse of vast rows": lambda: _lying((2**40, 3)),
    "sparse of vast columns": lambda: _lying((6, 2**60)),
    "sparse rows compressed": lambda: torch.eye(6).to_sparse_csr(),
    "sparse columns compressed": lambda: torch.eye(6).to_sparse_csc(),
    "sparse blocks": lambda: torch.eye(6).to_sparse_bsr((2, 2)),
    "sparse of three": lambda: torch.zeros(6, 3, 2).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(6), 0.1, 0, torch.qint8),
    "without memory": lambda: torch.ones(6, 3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "parameter": lambda: torch.nn.Parameter(torch.ones(6, 3)),
    "complex": lambda: torch.ones(6, 3, dtype=torch.complex64),
    "half": lambda: torch.ones(6, 3, dtype=torch.bfloat16),
    "float8": lambda: torch.ones(6, 3).to(torch.float8_e4m3fn),
    "unsigned": lambda: torch.ones(6, dtype=torch.uint32),
    "negative": lambda: torch.full((6,), -7),
    "vast": lambda: torch.full((2, 6), 2**40),
    "conjugated": lambda: torch.ones(6, dtype=torch.complex64).conj(),
    "list": lambda: [1, [2, [3]]],
    "number": lambda: 10**30,
    "true": lambda: True,
    "text": lambda: "x\ny",
    "dictionary": lambda: {"a": {1: 2}},
}


@pytest.mark.parametrize("kind", STRANGE_TENSORS)
@pytest.mark.parametrize("name", ["pt", "ogb split"])
def test_foreign_tensors(name: str, kind: str, room: Path) -> None:
    _valid(name, room)
    content = torch.load(room / TARGETS[name].file, weights_only=False)
    keys = ("edge_index", "x", "y", "train_mask", "num_classes") if name == "pt" else ("train",)
    for key in keys:
        changed = content.to_dict() if name == "pt" else dict(content)
        changed[key] = STRANGE_TENSORS[kind]()
        stream = io.BytesIO()
        torch.save(changed, stream)
        _attempt(name, room, stream.getvalue())
