"""The documentation as a site: every link leads somewhere, and every page has its place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_SOURCE = re.compile(r"<(?:img|script|link)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"")


def _is_there(page: Path, source: str, site: Path) -> bool:
    """Whether a picture, style or script is a file of the site; none comes from elsewhere."""
    if source.startswith("data:"):
        return True
    base = site if source.startswith("/") else page.parent
    return (base / source.lstrip("/").partition("#")[0].partition("?")[0]).exists()


@pytest.mark.timeout(200)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=_ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    site = tmp_path / "site"
    tutorials = [page.read_text() for page in site.glob("tutorials/*/index.html")]
    assert len(tutorials) >= 3
    assert all('src="data:image/png' in page for page in tutorials)
    lost = [
        (page.relative_to(site), source)
        for page in site.rglob("*.html")
        for source in _SOURCE.findall(page.read_text())
        if not _is_there(page, source, site)
    ]
    assert lost == []
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    for name in ("fit", "load", "Run", "FixedPoint", "ImplicitGNN", "DistributedGraph", "exact"):
        assert f">{name}</span>" in reference, name
