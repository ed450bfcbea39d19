"""Pieces of Python in the pages run, one after the other on each page, or are excused."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch_geometric.data import Data

import distributed_ignn as di
from distributed_ignn.commands.main import main as ignn
from distributed_ignn.runs.output.loggers import LOGGERS
from distributed_ignn.solvers.methods import METHODS
from tests.docs.pages import Block, blocks

_EXCUSES: dict[str, str] = {
    "import ray": "starts Ray: tests/launch/test_ray_programs.py fits such a trainer",
    "from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig": "the same",
}
"""First lines of pieces that are not run, and why; tests/docs/test_printed.py has whole files."""
_EPOCHS = 2  # of every fit, whatever the page says
_NODES = 60

_PIECES = [
    block
    for block in blocks()
    # a piece that is a file of the repository is tested where that file is
    if block.language == "python" and not block.text.startswith('"""')
]
_PAGES = sorted({block.page for block in _PIECES})


@pytest.fixture
def _place(tmp_path: Path) -> Iterator[None]:
    """A working directory with the files that the pages name."""
    (tmp_path / "mine.yaml").write_text("model:\n  hidden: 8\n")
    with contextlib.chdir(tmp_path):
        yield


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """``fit`` trains for a moment, and lists that a page adds to are as before afterwards."""
    whole = di.fit

    def fit(data: Any, settings: Any = None, **named: Any) -> di.Run:
        run = whole(data, settings, **named | {"epochs": _EPOCHS})
        assert isinstance(run, di.Run)
        return run

    monkeypatch.setattr(di, "fit", fit)
    for listed in (LOGGERS, METHODS):
        for name in ("printed", "momentum"):
            monkeypatch.setitem(listed, name, None)
            del listed[name]


def _names() -> dict[str, Any]:
    """What a page takes for granted: a small graph and what is usually imported."""
    rng = np.random.default_rng(0)
    y = torch.arange(_NODES) % 3
    x = F.one_hot(y, 3) + torch.tensor(rng.normal(size=(_NODES, 3)), dtype=torch.float32)
    edge_index = torch.tensor(rng.integers(_NODES, size=(2, 240)))
    data = Data(x=x, edge_index=edge_index, y=y)
    for offset, split in enumerate(("train", "val", "test")):
        data[f"{split}_mask"] = torch.arange(_NODES) // 3 % 3 == offset
    names = {"x": x, "edge_index": edge_index, "y": y, "data": data, "classes": 3}
    return names | {"di": di, "torch": torch, "cross_entropy": F.cross_entropy}


def _prepare(page: str, names: dict[str, Any]) -> None:
    """What single pages take for granted besides."""
    said = io.StringIO()
    if page == "docs/layers.md":
        names["x"] = torch.randn(_NODES, 64)
    if page == "docs/pyg-models.md":
        torch.save(names["data"], "graph.pt")
        with contextlib.redirect_stdout(said):
            assert ignn(shlex.split("partition --dataset graph.pt --parts 1 --out shards")) == 0
    if page == "docs/numbers.md":
        di.fit(names["data"], output="runs/acm")
        with contextlib.redirect_stdout(said):
            assert ignn(shlex.split("predict runs/acm --out acm.parquet")) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", _PAGES)
@pytest.mark.usefixtures("_place", "_short")
def test_pieces_of_a_page_run_in_order(page: str) -> None:
    names = _names()
    _prepare(page, names)
    for block in _PIECES:
        if block.page == page and _first(block) not in _EXCUSES:
            # lines of an error are those of the page
            text = "\n" * block.line + block.text
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(text, page, "exec"), names)


def test_excuses_are_of_pieces_that_are_there() -> None:
    assert set(_EXCUSES) <= {_first(block) for block in _PIECES}
    assert len(_PIECES) >= 10


def _first(block: Block) -> str:
    return block.text.partition("\n")[0]
