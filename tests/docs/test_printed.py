"""Blocks that commands print or the planner counts are what they would be today."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path

import pytest

from distributed_ignn.commands.main import main as ignn
from distributed_ignn.graph.storage.shard_store import read_manifest
from tests.docs.pages import ROOT, blocks
from tests.docs.printed import pages, renewed


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_blocks_are_as_they_would_be_written(page: Path) -> None:
    if page.stem == "large-graphs" and importlib.util.find_spec("pyg_lib") is not None:
        pytest.skip("the page shows what pymetis does, and pyg-lib comes first where it is")
    text = page.read_text()
    assert renewed(text) == text, "make docs-figures writes the blocks anew"


def test_a_block_that_is_stale_is_found() -> None:
    text = (ROOT / "docs" / "planning.md").read_text()
    (figure,) = set(re.findall(r"\| float32 \| (\d+) \(none\)", text)) - {"174"}
    stale = text.replace(f"| float32 | {figure} (none)", "| float32 | 143 (none)")
    assert stale != text
    assert renewed(stale) == text


@pytest.mark.slow
def test_counts_of_the_quick_start_are_those_of_its_graph(tmp_path: Path) -> None:
    """Nodes, edges, parameters and halo rows of the tables; accuracy and seconds are one call's."""
    page = "docs/quick-start.md"
    text = (ROOT / page).read_text()
    make, *_ = [block for block in blocks() if block.page == page and block.language == "python"]
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(make.text, page, "exec"), {})
        graph = ["--dataset", "graph.npz", "--data.split", "random"]
        short = ["--train.epochs", "1", "--device", "cpu", "--output", "runs/one"]
        assert ignn(["train", *graph, *short]) == 0
        assert ignn(["partition", *graph, "--parts", "2", "--out", "shards"]) == 0
    summary = json.loads((tmp_path / "runs" / "one" / "summary.json").read_text())
    assert f"│ {summary['nodes']:,} nodes, {summary['edges']:,} edges " in text
    sizes = summary["parameters"]
    assert f"model {sizes['model']:,}, solver {sizes['solver']}, initialiser " in text
    manifest = read_manifest(tmp_path / "shards")
    halo = manifest.statistics.halo_rows * 64 * 4  # columns of float32
    if manifest.provider == "pymetis":
        assert f"│ {halo / 1024:.0f} KiB " in text
