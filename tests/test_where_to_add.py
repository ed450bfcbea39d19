"""Where would I add it? One of each, by a trial: how many files change, and that it then works.

What is added lies in ``tests/additions``. It is entered into the public lists of a running program,
and written into a copy of the package as somebody who adds it would.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.codecs import CODECS
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig, RunConfig, load_yaml, parse_args
from distributed_ignn.config import choices as homes
from distributed_ignn.config.choices import Choice
from distributed_ignn.graph.datasets import DATASETS, load_dataset
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.cells import CELLS
from distributed_ignn.models.kinds import KINDS
from distributed_ignn.runs.memory.budget import budget
from distributed_ignn.solvers.base import SolveSizes
from distributed_ignn.solvers.methods import METHODS, Method, SolverSettings
from distributed_ignn.training.trainer import Trainer
from tests.additions.half import Half
from tests.additions.momentum import Momentum
from tests.additions.plain_kind import Plain
from tests.additions.ring import load_ring
from tests.additions.tanh_cell import TanhWeights
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[1]
ADDITIONS = ROOT / "tests" / "additions"
PACKAGE = "distributed_ignn"


def _enter() -> None:
    """Into the lists of this process."""
    METHODS["momentum"] = Method(Momentum, ("beta",), "heavy ball")
    CODECS["fp16"] = Half
    CELLS["tanh"] = TanhWeights
    DATASETS["ring"] = load_ring
    KINDS["plain"] = Plain


@pytest.fixture
def _entered() -> Iterator[None]:
    _enter()
    yield
    for listed, name in (
        (METHODS, "momentum"),
        (CODECS, "fp16"),
        (CELLS, "tanh"),
        (DATASETS, "ring"),
        (KINDS, "plain"),
    ):
        del listed[name]


def _train(comm: Communicator) -> dict[str, Tensor]:
    """The ring with everything that was added; losses, accuracy and evaluations."""
    _enter()
    config = load_yaml(ADDITIONS / "ring.yaml")
    data = load_dataset(config.dataset, config.data_root, config.data)
    part = (torch.arange(data.num_nodes) * comm.world_size) // data.num_nodes
    shard = list(build_shards(data, part, comm.world_size))[comm.rank]
    trainer = Trainer(config, shard, comm)
    assert isinstance(trainer.planner.method(), Momentum)
    assert isinstance(trainer.implicit.cell_weights, TanhWeights)
    records = [trainer.train_epoch() for _ in range(config.train.epochs)]
    assert all(record.converged for record in records)
    sent = comm.traffic.exchange_bytes
    return {
        "losses": torch.tensor([record.loss for record in records]),
        "accuracy": torch.tensor([record.val_metric or 0.0 for record in records]),
        "sent": torch.tensor(sent),
    }


@pytest.mark.slow
def test_what_is_entered_at_run_time_trains() -> None:
    """In processes of their own, so that the lists of this one stay as they are."""
    (one,) = run_ranks(_train, 1)
    two = run_ranks(_train, 2)
    assert float(one["losses"][-1]) < 0.5 * float(one["losses"][0])
    assert float(one["accuracy"][-1]) > 0.8
    assert int(one["sent"]) == 0
    for rank in two:
        assert int(rank["sent"]) > 0
        assert torch.allclose(rank["losses"], one["losses"], rtol=0, atol=1e-3)


@pytest.mark.usefixtures("_entered")
def test_what_is_entered_can_be_chosen_counts_its_memory_and_is_in_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def total(method: str) -> int:
        solve = {"method": method}
        run = {"dataset": "ring", "forward": solve, "adjoint": solve, "comm": {"halo": "fp16"}}
        sizes = PartSizes(100, 0, 0, 0, 500, 0, features=4)
        return sum(budget(sizes, RunConfig.model_validate(run)).values())

    state = 100 * ModelConfig().hidden * 4
    held = METHODS["momentum"].solver(SolverSettings()).held_bytes(SolveSizes(state, 4, 9))
    assert held["solve"] == state
    assert total("momentum") == total("picard") + state
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse_args(["--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert "{picard,anderson,broyden,neural,momentum}" in text
    assert "momentum: heavy ball" in text
    assert "tanh: IGNN's weights under tanh" in text
    assert "int2,fp16}" in text
    assert ", ring, or your own graph" in text
    assert "plain: one hop and a head" in text


@pytest.mark.usefixtures("_entered")
def test_a_kind_that_is_entered_trains_and_counts_its_memory() -> None:
    line = f"--config {ADDITIONS / 'plain.yaml'} --data.chains.length 4"
    config = parse_args(line.split())
    data = load_dataset(config.dataset, config.data_root, config.data)
    (shard,) = build_shards(data, torch.zeros(data.num_nodes, dtype=torch.int64), 1)
    trainer = Trainer(config, shard, Communicator())
    losses = [trainer.train_epoch().loss for _ in range(config.train.epochs)]
    assert losses[-1] < 0.9 * losses[0]
    held = budget(PartSizes.from_shard(shard), config)
    assert held["states of layers"] == 4 * config.model.hidden * 4 * data.num_nodes


def _after(path: Path, anchor: str, text: str) -> None:
    """Write ``text`` after the only place where a file has ``anchor``."""
    content = path.read_text()
    assert content.count(anchor) == 1, (path, anchor)
    path.write_text(content.replace(anchor, anchor + text))


def _add_solver(tree: Path) -> None:
    shutil.copy(ADDITIONS / "momentum.py", tree / PACKAGE / "solvers" / "momentum.py")
    methods = tree / PACKAGE / "solvers" / "methods.py"
    _after(methods, "import Broyden\n", f"from {PACKAGE}.solvers.momentum import Momentum\n")
    _after(methods, '"plain iteration"),\n', '    "momentum": Method(Momentum, ("beta",)),\n')


def _add_codec(tree: Path) -> None:
    codecs = tree / PACKAGE / "comm" / "codecs.py"
    source = (ADDITIONS / "half.py").read_text()
    text = codecs.read_text()
    begin = text.index("CODECS: dict")
    codecs.write_text(text[:begin] + source[source.index("class Half") :] + "\n\n" + text[begin:])
    _after(codecs, '    "fp32": None,\n', '    "fp16": Half,\n')


def _add_cell(tree: Path) -> None:
    cells = tree / PACKAGE / "models" / "cells"
    shutil.copy(ADDITIONS / "tanh_cell.py", cells / "tanh_cell.py")
    listed = cells / "__init__.py"
    module = f"{PACKAGE}.models.cells.tanh_cell"
    _after(listed, "import MignnWeights\n", f"from {module} import TanhWeights\n")
    _after(listed, '    "ignn": IgnnWeights,\n', '    "tanh": TanhWeights,\n')


def _add_kind(tree: Path) -> None:
    kinds = tree / PACKAGE / "models" / "kinds"
    shutil.copy(ADDITIONS / "plain_kind.py", kinds / "plain_kind.py")
    listed = kinds / "__init__.py"
    module = f"{PACKAGE}.models.kinds.plain_kind"
    _after(listed, "import MLP\n", f"from {module} import Plain\n")
    _after(listed, '    "mlp": MLP,\n', '    "plain": Plain,\n')


def _add_dataset(tree: Path) -> None:
    datasets = tree / PACKAGE / "graph" / "datasets"
    shutil.copy(ADDITIONS / "ring.py", datasets / "ring.py")
    listed = datasets / "__init__.py"
    _after(listed, "import load_amazon\n", f"from {PACKAGE}.graph.datasets.ring import load_ring\n")
    _after(listed, "DATASETS: dict[str, Loader] = {\n", '    "ring": load_ring,\n')
    shutil.copy(ADDITIONS / "ring.yaml", tree / "configs" / "ring.yaml")


def _files(tree: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in tree.rglob("*.*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_so_many_files_change_and_the_command_line_trains_with_it(tmp_path: Path) -> None:
    """A solver is 2 files, a codec 1, a cell 2, a kind of model 2, a dataset 3."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=skip)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    counts = {}
    for kind, add in (
        ("solver", _add_solver),
        ("codec", _add_codec),
        ("cell", _add_cell),
        ("kind", _add_kind),
        ("dataset", _add_dataset),
    ):
        before = _files(tmp_path)
        add(tmp_path)
        after = _files(tmp_path)
        counts[kind] = sum(before.get(path) != content for path, content in after.items())
    assert counts == {"solver": 2, "codec": 1, "cell": 2, "kind": 2, "dataset": 3}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ["-m", PACKAGE, "train", "--dataset", "ring", "--device", "cpu", "--output", "out"]
    done = subprocess.run(
        [sys.executable, *command, *settings],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config = (tmp_path / "out" / "config.yaml").read_text()
    for line in ("cell: tanh", "method: momentum", "halo: fp16"):
        assert line in config
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.5 * losses[0]


_SELECTION = f"{PACKAGE}/lab/studies/dynamics.py"  # a figure that compares three methods
_LISTS = {
    name: Choice(home)
    for name, home in vars(homes).items()
    # settings of data are no choices: old shards lack the same ones that few datasets read
    if name.isupper() and isinstance(home, str) and name != "DATA_READ_BY"
}


def _texts(node: ast.AST) -> set[str]:
    """The strings that a display, or a Literal, lists."""
    if isinstance(node, ast.Dict):
        members: list[ast.expr] = [key for key in node.keys if key is not None]
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        members = node.elts
    else:
        return set()
    return {
        member.value
        for member in members
        if isinstance(member, ast.Constant) and isinstance(member.value, str)
    }


@pytest.mark.parametrize("name", _LISTS)
def test_each_list_of_choices_stands_once(name: str) -> None:
    """Nowhere else in the package do the names stand side by side, all of them or all but one."""
    choice = _LISTS[name]
    names = set(choice.names())
    if len(names) < 3:
        pytest.skip("two names may meet by chance")
    home = choice.home.partition(":")[0].replace(".", "/")
    elsewhere = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in (ROOT / PACKAGE).rglob("*.py")
        if str(path.relative_to(ROOT)) not in (f"{home}.py", f"{home}/__init__.py", _SELECTION)
        for node in ast.walk(ast.parse(path.read_text()))
        if len(names - _texts(node)) <= 1
    ]
    assert elsewhere == []
