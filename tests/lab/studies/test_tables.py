"""Tables 1 and 3 and their figures: what a cell is, what is written, and what is trained again."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.reproduce import main
from distributed_ignn.config import parse_args
from distributed_ignn.errors import IncompleteError, Stopped, UserError
from distributed_ignn.graph.datasets import download
from distributed_ignn.lab.studies.tables import cell_training, ray_cells
from distributed_ignn.lab.studies.tables import standings as places
from distributed_ignn.lab.studies.tables.cell_training import CellTrainer
from distributed_ignn.lab.studies.tables.inference import mean_curve
from distributed_ignn.lab.studies.tables.paper_figures import COLUMNS, PRINTED, printed
from distributed_ignn.lab.studies.tables.result_notes import differences, gaps
from distributed_ignn.lab.studies.tables.standings import Standing, standings
from distributed_ignn.lab.studies.tables.table_cells import TableRequest, plan_cells
from distributed_ignn.lab.studies.tables.table_files import TableText
from distributed_ignn.lab.studies.tables.table_models import MODELS, overridden, settings_of
from distributed_ignn.lab.studies.tables.written_results import write_table
from tests.graph.test_datasets_amgcn import _contents, _write_zip
from tests.jobs import environment
from tests.ranks import run_ranks

_CHAINS = ["--dataset", "chains", "--device", "cpu"]
FLAGS = {
    "device": "cpu",
    "data.chains.length": "6",
    "data.chains.chains_per_class": "6",
    "data.chains.features": "4",
    "data.chains.train_fraction": "0.2",
    "partition.method": "contiguous",
    "model.hidden": "6",
    "train.epochs": "2",
    "train.threads": "1",
}
ARGUMENTS = [part for name, value in FLAGS.items() for part in (f"--{name}", value)]


@pytest.mark.cheap
@pytest.mark.parametrize(
    ("dataset", "model", "digits"),
    [
        ("amazon-all", "gcn", "79.12 ± 1.11"),
        ("reddit2", "ignn-solver", "93.91 ± 0.31"),
        ("reddit", "sgc", "91.44 ± 0.41"),
        ("ogbn-arxiv", "mignn", "71.95 ± 0.44"),
        ("ogbn-products", "appnp", "74.46 ± 0.64"),
        ("citeseer", "ignn-aa", "75.28 ± 0.38"),
        ("acm", "jknet", "64.96 ± 5.47"),
        ("corafull", "demonet", "61.74 ± 3.65"),
        ("blogcatalog", "acmgcn", "78.18 ± 1.75"),
        ("flickr", "ignn-nn", "78.55 ± 0.4"),
        ("flickr", "gcnii", "79.92 ± 2.1"),
    ],
)
def test_the_papers_figures_are_its_own(dataset: str, model: str, digits: str) -> None:
    found = printed(dataset, model)
    assert found is not None
    assert found.digits == digits
    assert digits == f"{found.mean:.2f} ± {digits.rpartition(' ')[2]}"


@pytest.mark.cheap
def test_the_paper_has_fifteen_models_on_nine_datasets_and_none_of_ours() -> None:
    models = {model for _, model in PRINTED}
    assert len(PRINTED) == len(models) * 9 == 15 * 9
    assert set(MODELS) - models == {"graphsage", "mlp", "ours"}
    assert printed("chains", "gcn") is printed("citeseer", "ours") is None


@pytest.mark.cheap
def test_every_model_has_the_settings_of_its_own_files() -> None:
    def found(model: str, dataset: str = "citeseer", size: str = "small") -> Any:
        return settings_of(model, dataset, size)

    assert found("ours") == parse_args(["--dataset", "citeseer"])
    gcn = found("gcn")
    # the paper's width; the rest is configs/baselines/gcn.yaml
    assert (gcn.model.hidden, gcn.train.lr, gcn.model.input_dropout) == (128, 0.01, 0.5)
    assert found("amgcn").data.knn == 7
    assert [found("jknet", d).explicit.layers for d in ("acm", "ogbn-arxiv")] == [1, 8]
    assert [found("acmgcn", "chains", s).explicit.layers for s in ("small", "large")] == [1, 4]
    solver, plain = found("ignn-solver"), found("ignn")
    assert (solver.solver.kind, solver.solver.graph_layer, solver.train.epochs) == (
        *("paper", True, 100),
    )
    assert found("ignn-nn").solver.graph_layer is False
    assert [found(m).forward.method for m in ("ignn", "ignn-aa")] == ["picard", "anderson"]
    alike = ("model", "train", "data", "adjoint")
    for model in ("ignn", "ignn-aa", "ignn-nn"):
        assert all(getattr(found(model), s) == getattr(solver, s) for s in alike)
    eignn = found("eignn")
    assert (eignn.model.cell, eignn.model.kappa, eignn.train) == ("eignn", 0.8, plain.train)
    # a dataset that the paper has not: its own graph, width and epochs
    own = found("ignn-solver", "synthetic-products", "large")
    assert (own.solver.kind, own.solver.steps, own.train.epochs) == ("paper", 20, 30)
    for dataset in (*COLUMNS["large"], *COLUMNS["small"], "reddit", "chains"):
        assert {found(model, dataset).dataset for model in ("gcn", "mignn", "ours")} == {dataset}


@pytest.mark.cheap
def test_settings_of_the_command_line_hold_where_they_have_an_effect() -> None:
    flags = {"train.epochs": "3", "explicit.heads": "2", "solver.keep": "0.5", "forward.beta": ".5"}

    def taken(model: str) -> set[str]:
        config, names = overridden(settings_of(model, "citeseer", "small"), flags)
        assert config.train.epochs == 3
        return set(names) - {"train.epochs"}

    assert taken("gat") == {"explicit.heads"}
    assert taken("gcn") == set()
    assert taken("ignn") == {"forward.beta"}
    assert taken("ignn-solver") == {"solver.keep", "forward.beta"}
    assert taken("ignn-nn") == {"forward.beta"}
    with pytest.raises(UserError, match=r"train\.epochs = '0' must be at least 1"):
        overridden(settings_of("gcn", "citeseer", "small"), {"train.epochs": "0"})
    request = TableRequest("table3", "small", ("citeseer",), ("gcn",), (0,), flags, Path("out"))
    with pytest.raises(UserError, match=r"explicit\.heads = 2 has no effect on any of gcn; drop"):
        plan_cells(request)


def _rows(dataset: str, **figures: tuple[float, ...]) -> list[dict[str, Any]]:
    return [
        {"dataset": dataset, "model": model, "test": value, "seconds": 1.0, "parameters": 1234}
        | {"missing": ""}
        for model, values in figures.items()
        for value in values
    ]


@pytest.mark.cheap
def test_the_best_and_the_runner_up_are_marked_and_rivals_ahead_are_told() -> None:
    column = standings(_rows("acm", gcn=(0.8, 0.9), mlp=(0.7, 0.7), sgc=(0.85, 0.85)))["acm"]
    assert (column["gcn"].text, column["sgc"].text) == ("85.00 ± 7.07", "85.00 ± 0.00")
    assert [column[m].place for m in ("gcn", "sgc", "mlp")] == [1, 1, 2]
    rows = _rows("acm", gcn=(0.80, 0.82), sgc=(0.90, 0.90), ours=(0.79, 0.81), mlp=(0.5, 0.6))
    assert places.rivals_ahead(standings(rows)) == [
        "acm: SGC 90.00 ± 0.00 is ahead of ours, 80.00 ± 1.41, by 10.00, by more than one "
        "deviation (1.41).",
        "acm: GCN 81.00 ± 1.41 is ahead of ours, 80.00 ± 1.41, by 1.00, within one deviation "
        "(1.41).",
    ]
    (line,) = places.rivals_ahead(standings(_rows("acm", gcn=(0.9,), ours=(0.8,))))
    assert line.endswith("by 10.00; one seed has no deviation.")
    (line,) = places.rivals_ahead(standings(_rows("acm", gcn=(0.7,), ours=(0.8,))))
    assert line == "acm: nothing is ahead of ours, 80.00."


@pytest.mark.cheap
def test_files_say_what_was_found_and_latex_is_whole() -> None:
    found = standings(_rows("acm", gcn=(0.9, 0.9), ours=(0.8, 0.8)))
    models = ("gcn", "sgc", "ours")
    text = TableText("table3", ("acm", "a_b.npz"), models, found, "50 % & more", ["x_y: 3 %"])
    latex = text.latex()
    assert "GCN & \\textbf{90.00 $\\pm$ 0.00} & 83.78 $\\pm$ 3.95 & - & - \\\\" in latex
    assert "ours & \\underline{80.00 $\\pm$ 0.00} & - & - & - \\\\" in latex
    assert "SGC & - & 85.40 $\\pm$ 1.23 & - & - \\\\" in latex
    assert "{a\\_b}" in latex
    assert "50 \\% \\& more" in latex
    assert latex.count("\\midrule") == 4
    _check_latex(latex)
    markdown = text.markdown()
    assert "| GCN | **90.00 ± 0.00** | 83.78 ± 3.95 | - | - |" in markdown
    assert "| ours | <u>80.00 ± 0.00</u> | - | - | - |" in markdown
    assert "| GCN | 1.0 | 1,234 |  |  |" in markdown
    cells = text.statement()
    assert cells["acm"]["sgc"] == {"here": None, "paper": {"mean": 85.4, "deviation": 1.23}}
    assert cells["acm"]["gcn"]["here"]["place"] == 1


def _check_latex(latex: str) -> None:
    """Environments and braces close, and every row has as many cells as the tabular has columns."""
    opened = re.findall(r"\\begin\{([^}]+)\}", latex)
    assert sorted(opened) == sorted(re.findall(r"\\end\{([^}]+)\}", latex))
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
    plain = re.sub(r"\\[{}%&_#$]", "", body)
    assert plain.count("{") == plain.count("}")
    columns = re.findall(r"\\begin\{tabular\}\{(\w+)\}", plain)
    tables = plain.split("\\begin{tabular}")[1:]
    for spec, table in zip(columns, tables, strict=True):
        rows = [line for line in table.splitlines() if line.endswith("\\\\")]
        assert {row.count("&") for row in rows[1:]} == {len(spec) - 1}


@pytest.mark.cheap
def test_a_seed_whose_solve_has_ended_stays_where_it_is() -> None:
    def rows(*points: tuple[float, float]) -> list[dict[str, float]]:
        return [{"milliseconds": t, "metric": m} for t, m in points]

    curve = mean_curve([rows((1.0, 0.5), (2.0, 0.6), (4.0, 0.7)), rows((3.0, 0.9))])
    assert curve == [(2.0, 70.0), (2.5, 75.0), (3.5, pytest.approx(80.0))]


def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(download, "transfer", refuse)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_cells_are_trained_once_and_what_is_missing_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _offline(monkeypatch)
    _write_zip(tmp_path, _contents())
    out = tmp_path / "out"
    datasets = ["--datasets", "citeseer,corafull,chains", "--models", "gcn,ours"]
    common = [*ARGUMENTS, *datasets, "--data-root", str(tmp_path), "--out", str(out)]
    common += ["--seeds", "0,1"]
    assert main(["table3", *common, "--finished"]) == 3
    told = capsys.readouterr().err
    assert "12 of 12 runs are missing" in told
    assert "the same command without --finished tries them again" in told
    assert main(["table3", *common]) == 3
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: 4 of 12 runs are missing, for the reasons above")
    assert "run 5 of 12: corafull, GCN, seed 0; " in captured.out
    for model in ("GCN", "ours"):  # which read unlike graphs
        assert f"citeseer ({model}) is left out: citeseer.zip is neither in" in captured.out
    assert "CoraFull's nodes that are in both" in captured.out
    rows = _read(out / "table3.csv")
    assert [row["dataset"] for row in rows] == [d for d in datasets[1].split(",") for _ in range(4)]
    assert {bool(row["missing"]) for row in rows[:4]} == {True}
    for row in rows[4:]:
        folder = out / "runs" / row["dataset"] / f"{row['model']}-seed{row['seed']}"
        summary = json.loads((folder / "summary.json").read_text())
        assert float(row["test"]) == summary["test_at_best_val"]
        assert int(row["parameters"]) == sum(summary["parameters"].values())
    statement = json.loads((out / "table3.json").read_text())
    cell = statement["cells"]["corafull"]["gcn"]
    assert cell["paper"]["mean"] == 35.98
    assert cell["here"]["runs"] == 2
    assert statement["settings"]["train.epochs"] == "2"
    _check_latex((out / "table3.tex").read_text())
    markdown = (out / "table3.md").read_text()
    assert "test nodes are read once" in markdown
    assert "mean and standard deviation over seeds 0, 1; the best in bold" in markdown
    # a finished run keeps one checkpoint, from which the figure below reads it
    assert {len(list(found.iterdir())) for found in out.glob("runs/chains/*/checkpoints")} == {1}
    # one run is lost: it alone is trained again; of another, stopped at its end, more is left
    (out / "runs" / "chains" / "gcn-seed1" / "summary.json").unlink()
    kept = out / "runs" / "chains" / "gcn-seed0" / "checkpoints" / "epoch-000002"
    shutil.copytree(kept, kept.with_name("epoch-000001"))
    assert main(["table3", *common]) == 3
    assert list(kept.parent.iterdir()) == [kept]
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run ")]
    assert [line.partition(";")[0] for line in shown] == ["run 10 of 12: chains, GCN, seed 1"]
    assert _same_figures(_read(out / "table3.csv"), rows)
    _check_figure(out, common, capsys)
    # runs of other settings are refused before anything is trained
    assert main(["table3", *common, "--train.lr", "0.5"]) == 2
    assert "holds a run with other settings (train.lr " in capsys.readouterr().err


def _same_figures(rows: list[dict[str, str]], others: list[dict[str, str]]) -> bool:
    return [row | {"seconds": ""} for row in rows] == [row | {"seconds": ""} for row in others]


def _check_figure(out: Path, common: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The figure of the same runs, without training."""
    assert main(["figure6", *common, "--finished"]) == 3
    assert "measuring chains, seed 1: 2 models in turn" in capsys.readouterr().out
    assert (out / "figure6.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "figure6.svg").read_text()[:1000]
    points: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in _read(out / "figure6.csv"):
        if row["dataset"] == "chains":
            points.setdefault((row["model"], row["seed"]), []).append(row)
    assert {len(points["gcn", seed]) for seed in "01"} == {1}
    for seed in "01":
        curve = points["ours", seed]
        assert [row["evaluations"] for row in curve] == [str(k) for k in range(len(curve))]
        assert float(curve[-1]["residual"]) <= 1e-3 < float(curve[0]["residual"])
        summary = json.loads((out / f"runs/chains/ours-seed{seed}/summary.json").read_text())
        assert float(curve[-1]["metric"]) == pytest.approx(summary["test_at_best_val"], abs=0.02)
        times = [float(row["milliseconds"]) for row in (*curve, *points["gcn", seed])]
        assert min(times) > 0
    curves = json.loads((out / "figure6.json").read_text())["cells"]["chains"]
    assert {model: len(curve) for model, curve in curves.items()} == {
        "gcn": 1,
        "ours": max(len(points["ours", seed]) for seed in "01"),
    }


def test_several_at_once_need_ray_and_no_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["table3", "--datasets", "chains", "--workers", "2", "--out", str(tmp_path / "out")]
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    assert main(asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train several runs at once through Ray, which is missing; install it with" in line
    monkeypatch.setenv("RANK", "0")
    assert main(asked) == 2
    assert "start without torchrun" in capsys.readouterr().err


def _request(out: Path) -> TableRequest:
    return TableRequest("table3", "small", ("chains",), ("gcn", "ours"), (0,), FLAGS, out)


def _table_on_a_rank(comm: Communicator, out: Path) -> tuple[int, str]:
    request = _request(out)
    cells = plan_cells(request)
    trainer = CellTrainer(cells, out, shows=False)
    trainer.train(comm)
    write_table(request, trainer, comm)
    trainer.cells = plan_cells(TableRequest(**_fields(request) | {"seeds": (0, 1)}))
    with pytest.raises(IncompleteError) as raised:
        write_table(request, trainer, comm)
    return raised.value.exit_code, str(raised.value)


def _fields(request: TableRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in TableRequest.__dataclass_fields__}


@pytest.mark.slow
def test_two_ranks_train_a_table_and_end_alike(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    first, second = run_ranks(_table_on_a_rank, 2, out, timeout=100)
    assert first == second
    assert first[0] == 3
    assert first[1].startswith("2 of 4 runs are missing")
    rows = _read(out / "table3.csv")
    assert [row["ranks"] for row in rows] == ["2", "", "2", ""]


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed; pip install 'distributed-ignn[ray]'",
)
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
def test_cells_on_a_cluster_are_those_of_one_process(tmp_path: Path) -> None:
    def table(out: str, *more: str) -> list[dict[str, str]]:
        asked = ["table3", "--datasets", "chains", "--models", "gcn,ours", "--out", out, *more]
        done = subprocess.run(
            [sys.executable, "-m", "distributed_ignn", "reproduce", *asked, *ARGUMENTS],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=140,
        )
        assert done.returncode == 0, done.stderr
        return _read(tmp_path / out / "table3.csv")

    assert _same_figures(table("ray", "--workers", "2"), table("here"))


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed; pip install 'distributed-ignn[ray]'",
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_table_on_a_cluster_is_stopped_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    """Ray takes SIGTERM for itself, and would end the process with a trace."""

    def told(*anything: object) -> None:
        os.kill(os.getpid(), signum)

    monkeypatch.setattr(ray_cells.cluster, "prepare", lambda asked: None)
    monkeypatch.setattr(ray_cells.cluster, "joined", nullcontext)
    monkeypatch.setattr(ray_cells, "check_lasting", told)
    with pytest.raises(Stopped, match=f"^stopped by {signum.name}; the same command goes on"):
        ray_cells.train_on_ray(CellTrainer([], tmp_path, shows=False), parse_args(_CHAINS))


@pytest.mark.cheap
def test_a_standing_of_one_run_shows_no_deviation() -> None:
    assert Standing(81.234, 0.0, 1, 1, 1.0, 2).text == "81.23"


@pytest.mark.cheap
def test_a_cell_whose_seeds_are_not_all_there_says_so() -> None:
    gone = {"missing": "lost", "test": None, "model": "gcn", "dataset": "acm"}
    rows = [
        *_rows("acm", gcn=(0.8, 0.9), mlp=(0.7,)),
        gone | {"seed": 2},
        gone | {"model": "mlp", "seed": 1},
        gone | {"model": "mlp", "seed": 2},
    ]
    found = standings(rows)["acm"]
    assert found["gcn"].text == "85.00 ± 7.07 (2 of 3)"
    assert found["mlp"].text == "70.00 (1 of 3)"
    assert list(gaps(rows)) == ["acm: 3 runs are missing (gcn seed 2, mlp seeds 1 2): lost"]
    assert standings([gone]) == {}


@pytest.mark.cheap
def test_models_are_compared_as_they_are_printed() -> None:
    alike = standings(_rows("acm", gcn=(0.764549,), ours=(0.764451,)))
    assert [each.text for each in alike["acm"].values()] == ["76.45", "76.45"]
    assert [each.place for each in alike["acm"].values()] == [1, 1]
    assert places.rivals_ahead(alike) == ["acm: nothing is ahead of ours, 76.45."]
    (line,) = places.rivals_ahead(standings(_rows("acm", gcn=(0.764451,), ours=(0.764449,))))
    assert "GCN 76.45 is ahead of ours, 76.44, by 0.01" in line


@pytest.mark.cheap
def test_names_that_a_table_prints_are_escaped() -> None:
    name = "a|b^c~[x].npz"
    text = TableText("table3", (name,), ("gcn",), {}, "of [all]", [])
    assert "| model | a\\|b^c~[x] | paper |" in text.markdown()
    assert "{a|b\\textasciicircum{}c\\textasciitilde{}[x]}" in text.latex()
    shown = io.StringIO()
    text.show(Console(file=shown, width=80))
    assert "a|b^c~[x]" in shown.getvalue()
    assert "[all]" in shown.getvalue()


@pytest.mark.cheap
def test_files_of_one_name_are_refused() -> None:
    """Their runs would be one, and the second graph would get the figures of the first."""
    for datasets in (("a/graph.npz", "b/graph.npz"), ("citeseer", "own/citeseer.npz")):
        request = TableRequest("table3", "small", datasets, ("gcn",), (0,), {}, Path("out"))
        with pytest.raises(UserError, match=r"both are called (graph|citeseer), as are"):
            plan_cells(request)


@pytest.mark.cheap
def test_notes_name_what_the_command_line_set() -> None:
    def told(**flags: Any) -> str:
        dotted = {name.replace("__", "."): value for name, value in flags.items()}
        request = TableRequest("table1", "large", ("reddit",), ("gcn",), (0,), dotted, Path("out"))
        return "\n".join(differences(request))

    plain = told(train__epochs=2)
    assert "Set for all runs on which it has an effect: train.epochs = 2.\n" in plain
    assert "\nReddit is the whole graph" in plain
    assert "binary cross-entropy" in plain
    assert "log-odds" in plain
    other = told(train__loss="cross_entropy", train__prior_bias=False)
    assert "binary cross-entropy" not in other
    assert "log-odds" not in other


def test_memory_that_runs_out_in_one_cell_ends_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(cell_training, "complete_run", run_out)
    (cell,) = plan_cells(TableRequest(**_fields(_request(tmp_path)) | {"models": ("gcn",)}))
    reason = cell_training.train_cell(Communicator(), cell.run)
    assert reason == "out of memory: CUDA out of memory. Tried to allocate 2 GiB"


def _write_own(path: Path, labels: int) -> None:
    path.parent.mkdir(exist_ok=True)
    ring = np.arange(24)
    edges = np.stack([ring, np.roll(ring, 1)])
    np.savez(path, edge_index=edges, x=np.eye(24, dtype=np.float32), y=ring % labels)


def test_a_file_that_has_changed_is_no_more_the_graph_of_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = tmp_path / "graph.npz"
    asked = ["table3", "--datasets", str(graph), "--models", "mlp", "--device", "cpu"]
    asked += ["--train.epochs", "2", "--data.split", "random", "--out", str(tmp_path / "out")]
    _write_own(graph, labels=2)
    assert main(asked) == 0
    first = _read(tmp_path / "out" / "table3.csv")
    # written once more with the same content: nothing is trained again
    os.utime(graph, ns=(1, 1))
    assert main([*asked, "--seeds", "0,1"]) == 0
    printed = capsys.readouterr().out
    assert "run 2 of 2: graph, MLP, seed 1" in printed
    assert "run 1 of 2" not in printed
    assert _read(tmp_path / "out" / "table3.csv")[0] == first[0]
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 1
    _write_own(graph, labels=3)
    for more in ([], ["--finished"]):
        assert main([*asked, *more]) == 2
        told = capsys.readouterr().err
        assert f"holds a run on what {graph} was before it changed; choose another --out" in told
    shutil.rmtree(tmp_path / "out" / "runs")
    assert main(asked) == 0  # with shards of its own
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 2


def test_a_run_is_taken_whatever_device_and_log_level_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["table3", "--datasets", "chains", "--models", "gcn", "--out", str(tmp_path / "out")]
    assert main([*asked, *ARGUMENTS]) == 0
    others = [*asked, *ARGUMENTS[2:], "--train.log-level", "debug"]
    assert main(others) == 0
    assert "run 1 of 1" in capsys.readouterr().out
    assert main([*others, "--train.lr", "0.5"]) == 2
    assert "give those, choose another --out, or remove it" in capsys.readouterr().err


def test_a_stopped_run_goes_on_with_its_ranks_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (cell,) = plan_cells(TableRequest(**_fields(_request(out)) | {"models": ("gcn",)}))
    CellTrainer([cell], out, shows=False).train(Communicator())
    (cell.run.output / "summary.json").unlink()
    record = json.loads((cell.run.output / "shards.json").read_text())
    (cell.run.output / "shards.json").write_text(json.dumps(record | {"parts": 3}))
    trainer = CellTrainer([cell], out, shows=False)
    trainer.train(Communicator())
    (reason,) = trainer.missing.values()
    assert "was begun with ranks = 3, and this job has 1; start as many as then" in reason
