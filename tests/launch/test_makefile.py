"""The first command of the README, without running it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from distributed_ignn.config import parse_args

ROOT = Path(__file__).resolve().parents[2]


def test_make_train_runs_into_a_fresh_folder(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), "train"]
    recipe = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    start = recipe.index("OMP_NUM_THREADS=1 ")
    line = recipe[start:].replace("\\\n", " ").splitlines()[0]
    assert "torchrun --standalone" in line
    # the shell fills in the time
    arguments = line.split("launch/train.py")[1]
    shell = ["sh", "-c", f"printf '%s\\n' {arguments}"]
    filled = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=True).stdout
    config = parse_args(shlex.split(filled))
    assert (config.dataset, config.device) == ("chains", "cpu")
    name = config.output.name
    assert name.startswith("quickstart-20")
    assert not (ROOT / config.output).exists()
