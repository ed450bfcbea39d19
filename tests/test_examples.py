"""Every script in examples/ runs as it stands, in a folder of its own, and says nothing unasked."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import environment

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
# what tests/launch/test_ray_programs.py, tests/api/test_programs.py and tests/docs have in short
LONG = ("tune_ray", "ray_task", "notebook")


def _needs(script: Path) -> list[pytest.MarkDecorator]:
    long = [pytest.mark.long] if script.stem in LONG else []
    if "import ray" not in script.read_text():
        return long
    absent = importlib.util.find_spec("ray") is None
    return [*long, pytest.mark.ray, pytest.mark.skipif(absent, reason="Ray is not installed")]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", [pytest.param(s, id=s.stem, marks=_needs(s)) for s in SCRIPTS])
def test_it_runs(script: Path, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert found.stdout != ""
