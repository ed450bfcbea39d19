"""The wheel, built from the source archive and installed into an environment without the checkout.

The environment sees the libraries of this one and nothing of the repository, so that whatever the
package needs has to be in the wheel.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("distributed_ignn", "configs", "setup.py", "MANIFEST.in", "pyproject.toml"),
    *("README.md", "LICENSE"),
)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
_QUICK = ("--device", "cpu", "--train.threads", "1")


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel.

    Args:
        programs: folder of its interpreter and scripts.
        folder: an empty one to work in.
        wheel: what was installed.
    """

    programs: Path
    folder: Path
    wheel: Path

    def run(self, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A program of the environment, from the empty folder."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        done = subprocess.run(
            [str(self.programs / command[0]), *command[1:]],
            cwd=self.folder,
            env=kept | {"PATH": f"{self.programs}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done


def _build(command: str, source: Path, out: Path) -> Path:
    """What setuptools makes of a source folder: ``build_sdist`` or ``build_wheel``."""
    out.mkdir()
    script = f"from setuptools import build_meta; build_meta.{command}({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


def _pip(*arguments: str) -> None:
    command: Sequence[str] = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    top = tmp_path_factory.mktemp("package")
    source = top / "source"
    source.mkdir()
    for name in SOURCES:
        place = ROOT / name
        copy = shutil.copytree if place.is_dir() else shutil.copy
        copy(place, source / name)
    archive = _build("build_sdist", source, top / "sdist")
    with tarfile.open(archive) as content:
        content.extractall(top / "unpacked", filter="data")
    (unpacked,) = (top / "unpacked").iterdir()
    wheel = _build("build_wheel", unpacked, top / "wheel")
    environment = top / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    _pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    # the libraries, and not the editable installation: .pth files are read in site folders only
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = top / "empty"
    folder.mkdir()
    return Installed(python.parent, folder, wheel)


def test_the_wheel_holds_the_package_and_its_data_alone(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = wheel.read(metadata).decode()
    shipped = {
        f"distributed_ignn/configs/{path.relative_to(ROOT / 'configs')}"
        for path in (ROOT / "configs").rglob("*")
        if path.is_file()
    }
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "distributed_ignn").rglob("*.py")}
    assert shipped | modules | {"distributed_ignn/py.typed"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"distributed_ignn"}
    assert "License-Expression: MIT" in text
    assert "License-File: LICENSE" in text
    assert (ROOT / "README.md").read_text().splitlines()[0] in text


def test_the_package_is_that_of_the_wheel_and_knows_its_settings(installed: Installed) -> None:
    script = (
        "import distributed_ignn, json, sys; from distributed_ignn.config import parse_args; "
        "run = parse_args(['--dataset', 'flickr']); "
        "print(json.dumps([distributed_ignn.__file__, run.model_dump(mode='json')]))"
    )
    place, run = json.loads(installed.run("python", "-c", script).stdout)
    assert Path(place).is_relative_to(installed.programs.parent)
    assert (run["model"]["hidden"], run["model"]["kappa"]) == (64, 0.5)
    assert (run["forward"]["method"], run["solver"]["network"]) == ("neural", "none")
    assert run["train"]["epochs"] == 50
    shown = installed.run("ignn", "plan", "--hardware", "a1000", code=2).stderr
    assert "did you mean 'a100'?" in shown


def test_chains_are_learned_and_predicted_from_an_empty_folder(installed: Installed) -> None:
    installed.run("ignn", "train", "--dataset", "chains", *_QUICK)
    run = installed.folder / "runs" / "chains-seed0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_at_best_val"] == 1.0
    shipped = yaml.safe_load((ROOT / "configs" / "chains.yaml").read_text())
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["model"]["hidden"] == shipped["model"]["hidden"]
    installed.run("ignn", "predict", str(run), "--out", "chains.parquet", "--device", "cpu")
    assert pq.read_table(installed.folder / "chains.parquet").num_rows == summary["nodes"]


def test_torchrun_starts_it_as_a_module_and_as_a_program(installed: Installed) -> None:
    torchrun = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    short = (*_QUICK, "--train.epochs", "2", "--output", "runs/two")
    installed.run(*torchrun, "-m", "distributed_ignn", "train", "--dataset", "chains", *short)
    summary = json.loads((installed.folder / "runs" / "two" / "summary.json").read_text())
    assert summary["world_size"] == 2
    out = ("--out", "two.parquet", "--device", "cpu")
    installed.run(*torchrun, "--no-python", "ignn", "predict", "runs/two", *out)
    assert pq.read_table(installed.folder / "two.parquet").num_rows == summary["nodes"]


def _command(example: Path) -> list[str]:
    """How an example says that it is started, by the first such line of its docstring, if any."""
    plain = f"python examples/{example.name}"
    lines = map(str.strip, example.read_text().splitlines())
    words = shlex.split(next((x for x in lines if x.endswith(f" examples/{example.name}")), plain))
    starter = ["python", "-m", "torch.distributed.run"] if words[0] == "torchrun" else ["python"]
    return [*starter, *words[1:-1], example.name]


def _marks(example: Path) -> pytest.MarkDecorator | tuple[()]:
    """tests/test_examples.py runs with every change what needs no ranks."""
    return () if _command(example)[1] == "-m" else pytest.mark.long


@pytest.mark.skipif(not EXAMPLES, reason="there is no folder examples/")
@pytest.mark.parametrize(
    "example",
    [pytest.param(path, marks=_marks(path)) for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_an_example_runs_as_it_says(installed: Installed, example: Path) -> None:
    if "import ray" in example.read_text():
        pytest.importorskip("ray")
    shutil.copy(example, installed.folder / example.name)
    installed.run(*_command(example))
