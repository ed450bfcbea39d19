"""README is short, its links and its picture are there, its figures are those of the logs."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

_LINES = 150
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name: str) -> None:
    targets = _LINK.findall((ROOT / name).read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).is_file()] == []


def test_the_readme_is_short_and_has_a_picture() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= _LINES
    assert re.search(r"!\[[^]]+\]\(docs/pictures/\w+\.svg\)", text)
    for command in ("make train", "make test", "pip install ."):
        assert f"\n{command}" in text


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
