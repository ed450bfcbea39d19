"""make gpu, without a GPU: its one line, and its checks tried on the CPU."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from distributed_ignn.config.shipped import CONFIG_FOLDER
from distributed_ignn.errors import UserError
from tests.gpu.__main__ import NEEDED
from tests.gpu.acceptance import SECONDS, SECTIONS, Options, run
from tests.gpu.prepared_graphs import Preparation
from tests.gpu.sections import exchange_speed, launch_counts
from tests.gpu.sections.agreement import worst
from tests.gpu.sections.ceilings import expected_copy
from tests.gpu.sections.launch_counts import _covered
from tests.gpu.sections.product_speed import OURS, PLAIN, ProductFigure, product_checks
from tests.gpu.setting import SIZES, Budget, Setting, kept
from tests.gpu.verdicts import at_most, holds, judge

ROOT = Path(__file__).resolve().parents[2]


def _run(*arguments: str, seconds: float = 100.0, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | extra,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_no_gpu_is_one_line_and_code_2() -> None:
    done = _run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no GPU was found: torch ")
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(UserError, match="no section 'speed'; there are environment, "):
        run(Options("cpu", "tiny", ("speed",), Path("report.json")))


_BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is not among what make gpu needs", name=name)

sys.meta_path.insert(0, Blocker())
for name in {modules}:
    __import__(name)
"""


def test_what_is_named_is_all_that_the_sections_import() -> None:
    """Of what is installed everything else is hidden, as it is beside a plain torch."""
    needed = _with_requirements({*NEEDED, "triton"})
    owners = metadata.packages_distributions()
    hidden = [name for name, held in owners.items() if not needed & set(map(_canonical, held))]
    hidden = [name for name in hidden if name not in ("distributed_ignn", "launch", "tests")]
    assert {"pytest", "ray", "rich"} & set(hidden) == {"pytest", "ray"} & set(owners)
    files = [file for file in (ROOT / "tests" / "gpu").rglob("*.py") if "test_" not in file.name]
    modules = sorted({name for file in files for name in _imported(file) if _can_import(name)})
    assert {"tests.propagation.triton_cases", "tests.gpu.sections.leaks"} <= set(modules)
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED.format(blocked=set(hidden), modules=modules)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _with_requirements(names: set[str]) -> set[str]:
    """Packages that come with these, themselves included."""
    found: set[str] = set()
    left = set(map(_canonical, names))
    while left:
        name = left.pop()
        found.add(name)
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        plain = (text for text in asked if "extra ==" not in text)
        left |= {_canonical(re.split(r"[^\w.-]", text)[0]) for text in plain} - found
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported(file: Path) -> Iterator[str]:
    """Modules that a file imports, in functions, too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _can_import(name: str) -> bool:
    """Whether it is a module of this repository, not what one holds."""
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists()


@pytest.mark.long
@pytest.mark.timeout(150)
def test_sections_run_on_the_cpu_and_are_marked_as_no_gpus(tmp_path: Path) -> None:
    report = tmp_path / "new" / "report.json"
    names = ("environment", "products")
    done = _run(
        *("--device", "cpu", "--sizes", "tiny", "--sections", *names, "--json", str(report)),
        seconds=140,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "figures are of a CPU; no figure is a GPU's" in done.stdout
    found = json.loads(report.read_text())
    assert (found["kind"], found["figures_are_of_a_gpu"]) == ("cpu", False)
    assert tuple(one["name"] for one in found["sections"]) == names
    checks = [check for one in found["sections"] for check in one["checks"]]
    assert {check["verdict"] for check in checks} == {"ok", "measured", "left out"}
    # a target is shown, and not judged by a CPU's figures
    judged = [check for check in checks if check["name"].endswith("fastest: of a copy's speed")]
    assert judged
    assert {(check["verdict"], check["target"]) for check in judged} == {("measured", ">= 80 %")}
    assert not (CONFIG_FOLDER / "hardware" / "here-gpu.yaml").exists()


def _emulated(report: Path, *arguments: str, seconds: float) -> None:
    """Two emulated GPUs; skipped where none can be emulated."""
    preload = ROOT / "tests" / "pseudo_gpu" / "preload.py"
    if not preload.exists() or shutil.which("g++") is None or torch.backends.cuda.is_built():
        pytest.skip("no GPU can be emulated here")
    path = f"{ROOT / 'tests' / 'gpu' / 'emulated'}{os.pathsep}{ROOT}"
    flags = ("--sizes", "tiny", "--json", str(report), *arguments)
    done = _run(*flags, seconds=seconds, PYTHONPATH=path, IGNN_EMULATED_GPUS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert (found["kind"], found["gpus"], found["figures_are_of_a_gpu"]) == ("emulated", 2, False)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_sections_run_on_emulated_gpus(tmp_path: Path) -> None:
    """Those that take longest, hurt ranks or count what is left run with the long tests.

    What "agreement" and "host" look at, tests/pseudo_gpu looks at too.
    """
    longer = ("agreement", "determinism", "host", "lost ranks", "leaks", "epochs", "profile")
    chosen = [name for name in SECTIONS if name not in longer]
    _emulated(tmp_path / "report.json", "--sections", *chosen, seconds=380)


@pytest.mark.long
@pytest.mark.timeout(2500)
def test_all_sections_run_on_emulated_gpus(tmp_path: Path) -> None:
    _emulated(tmp_path / "report.json", seconds=2400)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_all_sections_run_on_the_cpu(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = _run("--device", "cpu", "--sizes", "tiny", "--json", str(report), seconds=SECONDS + 100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [one["name"] for one in json.loads(report.read_text())["sections"]] == list(SECTIONS)
    assert (tmp_path / "here-gpu.yaml").exists()


def test_targets_are_judged_on_a_gpu() -> None:
    slow = ProductFigure("forward", OURS[0], 128, "float32", 2.0, 0.5, 0.2, 1.2)
    plain = ProductFigure("forward", PLAIN, 128, "float32", 2.4, 0.4, 0.2, 1.0)
    setting = Setting("gpu", 1, SIZES["full"], "", 0.0)
    verdicts = [check.verdict for check in product_checks(setting, [plain, slow])]
    assert verdicts == ["measured", "measured", "failed", "failed"]
    fast = ProductFigure("forward", OURS[1], 128, "float32", 1.2, 0.85, 0.4, 2.0)
    verdicts = [check.verdict for check in product_checks(setting, [plain, slow, fast])]
    assert verdicts == ["measured"] * 3 + ["ok", "ok"]
    assert at_most("x", float("nan"), 1.0).verdict == "failed"
    assert judge("x", 3.0, "", 2.0, least=False).verdict == "failed"
    assert holds("x", False).verdict == "failed"


def test_the_profile_is_written_in_time() -> None:
    """It needs what ceilings, products and host have measured."""
    names = list(SECTIONS)
    before = names[: names.index("profile") + 1]
    assert {"ceilings", "products", "host"} < set(before)
    assert sum(SECTIONS[name][1] for name in before) <= SECONDS


class _Measured:
    """A budget whose ranks answer what they are given."""

    def __init__(self, setting: Setting, answer: dict[str, Any]) -> None:
        self.setting, self._answer = setting, answer

    def left(self) -> float:
        return 1.0

    def ranks(self, action: object, ranks: int) -> list[dict[str, Any]]:
        return [self._answer] * ranks


@pytest.mark.parametrize(("gpus", "counts"), [(1, False), (2, True)])
def test_ranks_that_share_a_gpu_are_not_judged_as_nccls(
    tmp_path: Path, gpus: int, counts: bool
) -> None:
    setting = Setting("gpu", gpus, SIZES["full"], str(tmp_path), 0.0)
    graphs = cast(Preparation, SimpleNamespace(wait=lambda *which: None))
    steps = {"launches": 10.0, "syncs": 7.0, "seconds": 1.0, "idle": 0.1, "graphs": 0.0}
    budget = cast(Budget, _Measured(setting, {"anderson": steps}))
    found = {check.name: check.verdict for check in launch_counts.look(budget, graphs)}
    shared = "ok" if counts else "measured"
    assert found["anderson, 1 ranks: launches per evaluation"] == "ok"
    assert found["anderson, 2 ranks: launches per evaluation"] == shared
    assert found["anderson, 1 ranks: syncs per evaluation"] == "failed"
    assert found["anderson, 2 ranks: syncs per evaluation"] == ("failed" if counts else "measured")
    assert (kept(setting, "asked") is not None) == counts

    sent = {"rates": {}, "alone": 1.0, "added": {"fp32": 0.1, "int4": 0.0}, "chosen": "fp32"}
    budget = cast(Budget, _Measured(setting, sent))
    assert [check.verdict for check in exchange_speed.look(budget, graphs)][-1] == shared


def test_what_is_compared_is_found() -> None:
    expected = {"case": {"loss": torch.tensor([1.0, 2.0]), "solver": torch.tensor([0.0])}}
    found = {"case": {"loss": torch.tensor([1.0, 2.1]), "solver": torch.tensor([9.0])}}
    case, name, error = worst(expected, found)
    assert (case, name) == ("case", "loss")
    assert error == pytest.approx(0.05)
    nothing = {"case": {"loss": torch.tensor([1.0, torch.nan]), "solver": torch.zeros(1)}}
    assert not worst(expected, nothing)[2] <= 1.0
    assert expected_copy("NVIDIA H200") == pytest.approx(0.9 * 4.8e12)
    assert expected_copy("some other device") is None
    assert _covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)]) == 4.0
    whole = Setting("gpu", 8, SIZES["full"], "", 0.0)
    assert (whole.worlds(), whole.doubling()) == ([1, 2, 8], [1, 2, 4, 8])
    assert [whole.backend(ranks) for ranks in (1, 2)] == ["alone", "nccl"]
    alone = Setting("gpu", 1, SIZES["full"], "", 0.0)
    assert (alone.worlds(), alone.backend(2)) == ([1, 2], "gloo")
