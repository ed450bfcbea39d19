"""Safetensors files and what they sit in: links, other names, headers that claim too much."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.files import write_tensors
from distributed_ignn.graph.storage.shard_store import read_shard
from distributed_ignn.reading.tensors import read_tensors
from distributed_ignn.runs.checkpoints.checkpoint import load_checkpoint
from distributed_ignn.runs.shard_record import read_record
from tests.fuzz.targets import NODES, TARGETS


def _file(header: Any, content: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + content


def _entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**62),
        struct.pack("<Q", 50 * 2**20) + b" " * 100,
        _file(b"{" * 1_000),
        _file(b'{"a":' * 5_000),
        _file(b"[]"),
        _file(_entry(shape=(2**62, 4)), bytes(8)),
        _file(_entry(shape=(-1,)), bytes(8)),
        _file(_entry(shape=(3,)), bytes(8)),
        _file(_entry(offsets=(0, 2**60)), bytes(8)),
        _file(_entry(offsets=(8, 0)), bytes(8)),
        _file(_entry(dtype="PYOBJECT"), bytes(8)),
        _file({"__metadata__": {"a": 1}}),
    ],
)
@pytest.mark.parametrize("copy", [True, False])
def test_headers_that_lie(tmp_path: Path, content: bytes, copy: bool) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r".") as caught:
        read_tensors(tmp_path / "a.safetensors", copy=copy)
    assert str(caught.value).isprintable()


def test_tensors_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.arange(3), "b": torch.ones(2, 2)}, {"k": "v"})
    for copy in (True, False):
        found, metadata = read_tensors(path, copy=copy)
        assert metadata == {"k": "v"}
        assert torch.equal(found["a"], torch.arange(3))
        assert torch.equal(found["b"], torch.ones(2, 2))


def _as_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("replace", [_as_link, _as_pipe])
def test_a_shard_that_is_no_file(tmp_path: Path, replace: Callable[[Path], None]) -> None:
    target = TARGETS["shard"]
    target.make(tmp_path)
    replace(tmp_path / target.file)
    with pytest.raises(UserError, match=r"part 0 of 2 cannot be read"):
        read_shard(tmp_path / "shards", 0)


@pytest.mark.parametrize("replace", [_as_link, _as_pipe])
def test_a_checkpoint_that_is_no_file(tmp_path: Path, replace: Callable[[Path], None]) -> None:
    target = TARGETS["checkpoint rows"]
    target.make(tmp_path)
    replace(tmp_path / target.file)
    with pytest.raises(UserError, match="is missing or damaged"):
        load_checkpoint((tmp_path / target.file).parent, Communicator(), NODES)


@pytest.mark.parametrize(
    "name",
    [
        "../part-00000-of-00002.safetensors",
        "/etc/passwd",
        "part-00001-of-00002.safetensors",
        "part-00000-of-00003.safetensors",
        "part-00000-of-00002.safetensors\n",
    ],
)
def test_a_manifest_that_names_other_files(tmp_path: Path, name: str) -> None:
    TARGETS["shard"].make(tmp_path)
    path = tmp_path / "shards" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"][0]["name"] = name
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is damaged") as caught:
        read_shard(tmp_path / "shards", 0)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("folder", ["../other", "a/../../b", "..", "/srv/../etc", "a\nb"])
def test_a_record_that_leads_out_of_the_run(tmp_path: Path, folder: str) -> None:
    record = {"folder": folder, "fingerprint": "ab", "parts": 1}
    (tmp_path / "shards.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is damaged"):
        read_record(tmp_path)
