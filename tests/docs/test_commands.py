"""Every command of the pages is understood by what it calls, and run or excused with a reason."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from distributed_ignn.commands.main import main as ignn
from tests.docs.command_lines import Command, all_commands, check, commands_of, spoken_commands
from tests.docs.pages import ROOT, Block
from tests.docs.runs import EXCUSES, RUNS, Run
from tests.jobs import environment

_NODES = 90
_RANKS_SECONDS = 180  # on a machine that others use


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages take for granted; the working directory meanwhile."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "launch", "examples"):
        (folder / name).symlink_to(ROOT / name)
    _write_graphs(folder)
    (folder / "runs" / "search-graph").mkdir(parents=True)
    (folder / "runs" / "search-graph" / "best.yaml").write_text("dataset: graph.npz\n")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        quick = "--device cpu --train.epochs 2 --train.checkpoint-every 1"
        chains = "--dataset chains --data.chains.chains-per-class 5"
        warm = "--schedule.warmup-epochs 1 --output runs/citeseer"
        _ignn(f"train {chains} {quick} {warm}")
        products = "--dataset synthetic-products --data.synthetic.scale 0.0005"
        _ignn(f"partition {products} --parts 8 --out shards/products-8")
        yield folder


def _write_graphs(folder: Path) -> None:
    """One small graph in the forms that the pages name."""
    rng = np.random.default_rng(0)
    y = np.arange(_NODES) % 3
    edges = rng.integers(_NODES, size=(2, 400))
    x = (np.eye(3)[y] + rng.normal(size=(_NODES, 3))).astype("float32")
    np.savez(folder / "graph.npz", edge_index=edges, x=x, y=y)
    rows = [f"{a},{b}" for a, b in edges.T.tolist()]
    (folder / "edges.csv").write_text("\n".join(["source,target", *rows]))
    nodes = [f"{k},{y[k]},{x[k, 0]},{x[k, 1]}" for k in range(_NODES)]
    (folder / "nodes.csv").write_text("\n".join(["id,label,a,b", *nodes]))
    (folder / "saved").mkdir()
    data = Data(x=torch.tensor(x), edge_index=torch.tensor(edges), y=torch.tensor(y))
    torch.save(data, folder / "saved" / "data.pth")


def _ignn(arguments: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = ignn(shlex.split(arguments))
    assert code == 0, said.getvalue()


def _excuses(command: Command) -> list[str]:
    return [pattern for pattern in EXCUSES if re.fullmatch(pattern, command.text)]


@pytest.mark.parametrize("command", all_commands(), ids=lambda c: f"{c.page}:{c.line}")
@pytest.mark.usefixtures("place")
def test_its_parser_accepts_it(command: Command) -> None:
    check(command.words)


@pytest.mark.parametrize("command", spoken_commands(), ids=lambda c: f"{c.page}:{c.line}")
@pytest.mark.usefixtures("place")
def test_a_command_in_a_sentence_is_understood(command: Command) -> None:
    check(command.words)


@pytest.mark.parametrize("command", all_commands(), ids=lambda c: f"{c.page}:{c.line}")
def test_it_is_run_or_excused(command: Command) -> None:
    runs = [run for run in RUNS if run.text == command.text]
    assert len(runs) + len(_excuses(command)) >= 1, f"{command.text}: neither run nor excused"
    assert not (runs and _excuses(command)), f"{command.text}: run and excused"


def test_runs_and_excuses_are_of_commands_that_are_there() -> None:
    commands = all_commands()
    texts = [command.text for command in commands]
    assert [run.text for run in RUNS if run.text not in texts] == []
    used = {pattern for command in commands for pattern in _excuses(command)}
    assert [pattern for pattern in EXCUSES if pattern not in used] == []


def test_tests_that_excuses_name_are_there() -> None:
    named = {path for reason in EXCUSES.values() for path in re.findall(r"tests/[\w/.]+", reason)}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path.rstrip(".")).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_commands_do_what_the_pages_say(place: Path) -> None:
    """In order, in one folder: later ones go on from what earlier ones have left."""
    for run in RUNS:
        left = place / run.leaves
        if run.leaves and left.is_file() and "runs/citeseer" not in run.leaves:
            left.unlink()
        _run(run, place)
        assert not run.leaves or left.is_file(), run.text


def _run(run: Run, place: Path) -> None:
    program, *words = [*shlex.split(run.text), *shlex.split(run.shorter)]
    if program == "torchrun":
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words],
            cwd=place,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=_RANKS_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = ignn(words)
        except SystemExit as stopped:  # after --help
            code = int(stopped.code or 0)
    assert (code, run.text) == (0, run.text), said.getvalue()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ignn train --dataset chains --train.epoch 3", "unknown flag --train.epoch"),
        ("torchrun --nproc-per-node 2 launch/train.py --dataset nowhere", "nowhere"),
        ("ignn search graph.npz --grid model.hiden=3", "is no setting"),
        ("python launch/trian.py --dataset chains", "launch/trian.py is not there"),
        ("make trian", "the Makefile has no trian"),
        ("pip install 'distributed-ignn[rai]'", "no such extra"),
        ("ray job submit -- python launch/train.py --dataset chains --gpu 8", "unknown flag"),
        ("sbatch configs/slurm/train.sbatch --dataset chains --epochs 8", "unknown flag"),
        ("ignn link --rate 1gbit train --dataset chains --epochs 8", "unknown flag"),
    ],
)
@pytest.mark.usefixtures("place")
def test_a_command_that_is_wrong_is_found(text: str, message: str) -> None:
    (command,) = commands_of(Block("page", 1, "bash", text))
    with pytest.raises(AssertionError, match=re.escape(message)):
        check(command.words)


def test_a_shell_block_holds_commands_alone() -> None:
    with pytest.raises(ValueError, match="page:3: no command: igmn train"):
        list(commands_of(Block("page", 1, "bash", "ignn --help\nigmn train")))
    lines = "X=1 ignn train --dataset \\\n  chains  # a remark\nignn --help"
    first, second = commands_of(Block("page", 1, "bash", lines))
    assert (first.words, second.line) == (["ignn", "train", "--dataset", "chains"], 4)


def test_there_are_commands_on_most_guides() -> None:
    pages = {command.page for command in all_commands()}
    assert len(pages) >= 20
    assert "README.md" in pages
    assert len(spoken_commands()) >= 10
