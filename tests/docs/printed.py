"""Blocks of the pages that a command prints, a file holds, or the planner counts.

They stand between ``<!-- printed: COMMAND -->`` (or ``file: PATH``, ``table: NAME``) and ``<!-- end
-->``. ``python -m tests.docs.printed`` (``make docs-figures``) writes them anew; a test compares.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from pathlib import Path

from distributed_ignn.commands.main import main as ignn
from tests.docs.pages import ROOT
from tests.docs.planner_tables import TABLES

_BLOCK = re.compile(r"(<!-- (printed|file|table): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_VARIES = re.compile(r"^│ (seconds|peak memory|size on disk)")
"""Rows of a printed table that differ between machines and calls."""
_WIDTH = "88"


def pages() -> list[Path]:
    """Those with such blocks."""
    found = sorted((ROOT / "docs").rglob("*.md"))
    return [path for path in found if _BLOCK.search(path.read_text())]


def renewed(text: str) -> str:
    """The text of a page with its blocks made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{_content(found[2], found[3])}\n{found[5]}", text)


def _content(kind: str, what: str) -> str:
    if kind == "table":
        return TABLES[what]() + "\n"
    if kind == "file":
        return f"```python\n{(ROOT / what).read_text()}```\n"
    return f"```text\n{_printed(shlex.split(what))}```\n"


def _printed(words: list[str]) -> str:
    """What a command of ignn prints in an empty folder."""
    said = io.StringIO()
    before, columns = Path.cwd(), os.environ.get("COLUMNS")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["COLUMNS"] = _WIDTH
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
                code = ignn(words[1:])
        finally:
            os.chdir(before)
            os.environ.pop("COLUMNS")
            if columns is not None:
                os.environ["COLUMNS"] = columns
    assert code == 0, words
    lines = said.getvalue().splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines if not _VARIES.search(line))


def main() -> None:
    """Write all blocks anew."""
    for path in pages():
        text = path.read_text()
        new = renewed(text)
        if new != text:
            path.write_text(new)
            print(f"renewed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
