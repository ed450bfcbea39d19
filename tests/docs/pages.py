"""The pages that users read, and the blocks of code in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


@dataclass(frozen=True)
class Block:
    """A block of code: its page, the line before its first one, its language ("" if unsaid)."""

    page: str
    line: int
    language: str
    text: str


@cache
def blocks() -> tuple[Block, ...]:
    """All blocks of README.md, CONTRIBUTING.md, docs/ and the text of tutorials."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [block for page in pages for block in _in_text(_name(page), page.read_text())]
    for path in TUTORIALS:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                found += _in_text(_name(path), "".join(cell["source"]))
    return tuple(found)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _in_text(page: str, text: str) -> Iterator[Block]:
    for token in MarkdownIt("commonmark").parse(text):
        if token.type in ("fence", "code_block"):
            line = token.map[0] if token.map else 0
            yield Block(page, line + 1, token.info.strip(), token.content)
