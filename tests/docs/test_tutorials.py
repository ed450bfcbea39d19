"""Tutorials run from the first cell to the last, and what is stored of them is small and clean."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.pages import ROOT, TUTORIALS
from tests.jobs import environment

_LARGEST = 100_000  # bytes of a stored notebook, pictures included
_SECONDS = 120
# a tutorial's own asserts say what it promises


@pytest.mark.slow
@pytest.mark.timeout(_SECONDS + 30)
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_it_runs_and_says_nothing_unasked(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    # torch_geometric's bar of progress misses a widget that no tutorial needs
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3", resources=place).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert [out.text for out in outputs if out.get("name") == "stderr"] == []
    assert any("image/png" in out.get("data", {}) for out in outputs)


def test_there_are_tutorials() -> None:
    assert len(TUTORIALS) >= 3


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_and_of_no_machine(path: Path) -> None:
    text = path.read_text()
    assert len(text) < _LARGEST
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all("execution" not in cell["metadata"] for cell in cells)
    # executed in order, in one go, so that what is shown belongs together
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [out for cell in cells for out in cell["outputs"]]
    assert all(out.get("name") != "stderr" for out in outputs)
    assert all(out["output_type"] != "error" for out in outputs)


def test_links_of_tutorials_lead_to_pages() -> None:
    for path in TUTORIALS:
        for target in re.findall(r"\]\((\.\./[^)#]+)", path.read_text()):
            assert (path.parent / target).resolve().is_file(), (path.name, target)
            assert (path.parent / target).resolve().is_relative_to(ROOT)
