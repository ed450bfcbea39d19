"""The pages that users read, and the blocks of code in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

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
    return tuple(
        Block(page, _line(token), token.info.strip(), token.content)
        for page, token in _tokens()
        if token.type in ("fence", "code_block")
    )


@cache
def spans() -> tuple[Block, ...]:
    """Code within their sentences and tables."""
    return tuple(
        Block(page, _line(token), "", child.content)
        for page, token in _tokens()
        for child in token.children or ()
        if child.type == "code_inline"
    )


def _tokens() -> Iterator[tuple[str, Token]]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = [(page, page.read_text()) for page in pages]
    for path in TUTORIALS:
        cells = json.loads(path.read_text())["cells"]
        written = (cell["source"] for cell in cells if cell["cell_type"] == "markdown")
        texts += [(path, "".join(source)) for source in written]
    for page, text in texts:
        for token in MarkdownIt("commonmark").enable("table").parse(text):
            yield str(page.relative_to(ROOT)), token


def _line(token: Token) -> int:
    return 1 + (token.map[0] if token.map else 0)
