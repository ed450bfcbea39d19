"""Small files that stand for more than any memory holds, read under the kernel's own limit."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from tests.fuzz.targets import zip_of
from tests.reading.test_arrays import _header, _npy
from tests.reading.test_text import BILLION

#: Runs in a process of its own: what it takes beyond its imports must stay below a gibibyte.
_CHILD = """
import resource, sys
from pathlib import Path
from tests.fuzz.targets import TARGETS, check
from tests.fuzz.test_memory import BOMBS
place = Path(sys.argv[1])
rooms = {}
for name, (target, _) in BOMBS.items():
    rooms[name] = place / name.replace(" ", "-")
    rooms[name].mkdir()
    TARGETS[target].make(rooms[name])
    valid = (rooms[name] / TARGETS[target].file).read_bytes()
    check(TARGETS[target], rooms[name], valid)  # imports what the reader needs
bombs = {name: make() for name, (_, make) in BOMBS.items()}
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, (target, _) in BOMBS.items():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = check(TARGETS[target], rooms[name], bombs[name])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print("refused" if message else "LOADED", grown, name, message, sep="\\t")
"""


def _zeros(name: str, size: int, start: bytes = b"") -> bytes:
    """A zip of one member of ``size`` zeros, a thousandth as large."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        member.write(start)
        for _ in range(size >> 24):
            member.write(bytes(1 << 24))
    return stream.getvalue()


def _torch(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save({"x": value, "y": value}, stream)
    return stream.getvalue()


def _vast_rows() -> bytes:
    index = torch.tensor([[0], [0]])
    return _torch(torch.sparse_coo_tensor(index, torch.ones(1), (2**31, 2**31)))


def _parquet_of_zeros() -> bytes:
    """150 million rows in a few kilobytes."""
    stream = io.BytesIO()
    table = pa.table({name: np.zeros(1 << 24, np.int64) for name in ("source", "target")})
    with pa.parquet.ParquetWriter(stream, table.schema) as writer:
        for _ in range(9):
            writer.write_table(table)
    return stream.getvalue()


def _parquet_of_a_word() -> bytes:
    """Four gigabytes of a word that is stored 400 times."""
    stream = io.BytesIO()
    table = pa.table({"source": ["a" * 100_000] * 100})
    with pa.parquet.ParquetWriter(stream, table.schema) as writer:
        for _ in range(400):
            writer.write_table(table)
    return stream.getvalue()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "npz that claims 8 TB": (
        "npz",
        lambda: zip_of({"y.npy": _npy(_header(shape=f"({2**40},)"), bytes(16))}),
    ),
    "pt of 64 MB of zeros": ("pt", lambda: _zeros("archive/data.pkl", 2**26)),
    "pt that repeats a number": ("pt", lambda: _torch(torch.zeros(1).expand(6, 2**40))),
    "pt of vast sparse rows": ("sparse pt", _vast_rows),
    "parquet of zeros": ("parquet", _parquet_of_zeros),
    "parquet of a long word": ("parquet", _parquet_of_a_word),
    "table of 100,000 columns": ("edge table", lambda: b"1," * 100_000 + b"1\n"),
    "gzip of one line": ("amazon", lambda: gzip.compress(b"1 " * 2**27, 1)),
    "gzip of 300 MB": ("amazon", lambda: gzip.compress((b"1" * 2**20 + b"\n") * 300, 1)),
    "yaml of a billion words": ("config", lambda: BILLION.encode()),
    "yaml of 100 MB": ("config", lambda: b"a: b\n" * 20_000_000),
    "json of 100 MB": ("manifest", lambda: b"[" + b"1," * 50_000_000 + b"1]"),
    "safetensors header of 90 MB": (
        "shard",
        lambda: struct.pack("<Q", 90 * 2**20) + b'{"a":"' + b"x" * (90 * 2**20 - 8) + b'"}',
    ),
    "table of one node far away": (
        "ogb table",
        lambda: gzip.compress(b"0,1\n1,4000000000000\n", mtime=0),
    ),
}


@pytest.mark.slow
def test_refused_within_a_gibibyte(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    lines = [line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 3]
    assert [line[2] for line in lines] == list(BOMBS)
    for outcome, grown, name, message in lines:
        assert outcome == "refused", name
        assert int(grown) < 400 * 1024, (name, message)  # kilobytes
