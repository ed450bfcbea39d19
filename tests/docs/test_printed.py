"""Blocks that commands print or the planner counts are what they would be today."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.printed import pages, renewed

_README_TABLE = re.compile(r"^\| .* \| .* \|$", re.MULTILINE)


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


def test_figures_of_the_readme_are_those_of_the_research_log() -> None:
    """What README's table says stands in the logs, where its command and its spread are."""
    table = (ROOT / "README.md").read_text().partition("## What it gives")[2]
    table = table.partition("No figure in this project")[0]
    logs = "".join(
        (ROOT / "docs" / f"{name}.md").read_text()
        for name in ("results", "tables", "experiments", "design")
    )
    figures = set(re.findall(r"(?<![\w.-])\d*\.\d+(?: ± \d*\.\d+)?", table))
    assert len(figures) >= 20
    assert [figure for figure in sorted(figures) if figure not in logs] == []
