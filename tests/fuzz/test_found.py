"""Inputs that once broke a reader, found by fuzzing; each is refused in one line now."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.targets import TARGETS, check, zip_of
from tests.fuzz.test_damaged_bytes import room
from tests.reading.test_arrays import _npy

__all__ = ["room"]

pytestmark = pytest.mark.filterwarnings("ignore")


def _papers(**changes: np.ndarray) -> bytes:
    arrays = {"edge_index": np.zeros((2, 1), np.int64), "num_nodes_list": np.array([6])}
    stream = io.BytesIO()
    np.savez(stream, **(arrays | changes))  # type: ignore[arg-type]
    return stream.getvalue()


def _config(text: str) -> Callable[[], bytes]:
    return text.encode


FOUND: dict[str, tuple[str, Callable[[], bytes]]] = {
    # the parser of headers falls back to Python's tokenizer, which has errors of its own
    "header with zero bytes": (
        "npz",
        lambda: zip_of({"y.npy": _npy("{'descr': '<i8'\x00, (\x00")}),
    ),
    "header of open brackets": ("npz", lambda: zip_of({"y.npy": _npy("{'a': '<i4'," + "[" * 600)})),
    "number of nodes without numbers": (
        "ogb arrays",
        lambda: _papers(num_nodes_list=np.zeros((2, 0), np.int64)),
    ),
    "number of nodes that is a list": (
        "ogb arrays",
        lambda: _papers(num_nodes_list=np.ones((1, 3))),
    ),
    # values that stood in the message as they were
    "dataset of two lines": ("config", _config('dataset: "two\\nlines"')),
    "dataset of half a character": ("config", _config('dataset: "\\ud800"')),
    "path of half a character": ("config", _config('dataset: file\ndata: {path: "\\ud800"}')),
    "key that colours a terminal": ("config", _config('dataset: acm\n"\\e[31m": 1')),
    "dataset of many letters": ("config", _config("dataset: " + "a" * 20_000)),
    "key that is a list": ("config", _config("{[1]: 2}")),
    "date that is none": ("config", _config("dataset: 2001-99-99")),
    "state of nothing": ("checkpoint state", lambda: b'{"version": 1, "world_size": "2"}'),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_inputs(name: str, room: Path) -> None:
    target, make = FOUND[name]
    TARGETS[target].make(room)
    assert check(TARGETS[target], room, make()) is not None
