"""The reproduce command on tiny chains: what each study writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands import reproduce
from distributed_ignn.commands.reproduce import NAMES, main
from distributed_ignn.config import RunConfig, parse_args
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.variants import all_variants
from distributed_ignn.lab.studies import (
    beyond_k,
    convergence,
    cost,
    dynamics,
    epochs_in_turn,
    long_range,
    outcome,
    rivals,
)
from distributed_ignn.lab.studies.outcome import Outcome, Request, show_outcome, spread
from distributed_ignn.lab.studies.solver_variants import paper_steps
from distributed_ignn.lab.studies.text_tables import escaped
from distributed_ignn.plots import Picture
from distributed_ignn.training.epoch_record import EpochRecord
from distributed_ignn.training.learned.paper_training import PaperTrainer
from distributed_ignn.training.trainer import Trainer
from tests.ranks import run_ranks

TINY = shlex.split("""
    --dataset chains --device cpu --partition.method contiguous
    --data.chains.length 8 --data.chains.chains-per-class 6 --data.chains.features 4
    --data.chains.train-fraction 0.2 --model.hidden 6 --model.kappa 0.9
    --forward.tolerance 1e-3 --adjoint.tolerance 1e-3
    --solver.compress 2 --schedule.warmup-epochs 1 --schedule.model-steps 2
    --train.epochs 4 --train.threads 1
""")
NETWORKS = shlex.split("--solver.steps 3 --solver.hidden 4 --schedule.warmup-solver-steps 2")
LONG_RANGE = shlex.split("""
    --device cpu --data.chains.chains-per-class 4 --data.chains.train-fraction 0.3
    --model.hidden 16 --model.kappa 0.95 --train.epochs 8 --lengths 4,6 --depths 2,8
""")
PNG = b"\x89PNG\r\n\x1a\n"


class Written(NamedTuple):
    """What a study left behind."""

    rows: list[dict[str, str]]
    statement: dict[str, Any]
    printed: str


def _read(study: str, out: Path, printed: str) -> Written:
    for suffix in ("csv", "md", "tex", "json", "png", "svg", "pdf"):
        assert (out / f"{study}.{suffix}").is_file()
    assert (out / f"{study}.png").read_bytes().startswith(PNG)
    assert not list(out.glob(".*"))
    with (out / f"{study}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert not {"nan", "inf", "-inf"} & set(row.values())
    statement = json.loads((out / f"{study}.json").read_text())
    table, latex = (out / f"{study}.md").read_text(), (out / f"{study}.tex").read_text()
    for label in statement["ours"]:
        assert f"| {label} |" in table
        assert f"{escaped(label)} & " in latex
    return Written(rows, statement, printed)


def _reproduce(
    study: str, out: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> Written:
    assert main([study, "--out", str(out), *arguments]) == 0
    written = _read(study, out, capsys.readouterr().out)
    statement = written.statement
    assert statement["study"] == study
    assert statement["dataset"] == "chains"
    assert "test nodes are read once" in statement["protocol"]
    assert "authors choose on the test nodes" in statement["protocol"]
    assert statement["paper"]
    assert statement["differs"]
    assert statement["settings"]["dataset"] == "chains"
    assert f"{study}: chains, seeds" in written.printed
    return written


def test_figure3_divides_parameters_and_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _reproduce("figure3", tmp_path, capsys, *TINY, "--seeds", "3,0")
    assert [row["seed"] for row in found.rows] == ["3", "0"]
    assert found.statement["seeds"] == [3, 0]
    for row in found.rows:
        summary = _summary(tmp_path / "runs" / f"neural-seed{row['seed']}")
        assert summary["seed"] == int(row["seed"])
        parts = summary["parameters"]
        assert int(row["parameters_model"]) == parts["model"] > 0
        learned = int(row["parameters_solver"]) + int(row["parameters_initialiser"])
        assert learned == parts["solver"] + parts["initialiser"] > 0
        assert float(row["parameter_share"]) == learned / (learned + parts["model"])
        assert 0 < float(row["seconds_solver_training"]) < float(row["seconds_epochs"])
        share = float(row["seconds_solver_training"]) / float(row["seconds_epochs"])
        assert float(row["time_share"]) == pytest.approx(share)
    assert "1.6 minutes" in found.statement["paper"]


def _summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


CLASSICAL = {"picard, zero", "anderson, zero", "anderson, initialiser"}


def _curves(rows: list[dict[str, str]]) -> dict[tuple[str, str], list[dict[str, float]]]:
    curves: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in rows:
        point = {key: float(row[key]) for key in ("evaluations", "residual", "distance", "metric")}
        curves.setdefault((row["seed"], row["method"]), []).append(point)
    return curves


def _check_curves(found: Written, methods: set[str], seeds: set[str]) -> None:
    """Every method reaches the fixed point to 1e-6 and stops there."""
    curves = _curves(found.rows)
    assert set(curves) == {(seed, method) for seed in seeds for method in methods}
    for (_, method), points in curves.items():
        assert [p["evaluations"] for p in points] == list(range(len(points)))
        assert points[-1]["distance"] <= 1e-6 < min(p["distance"] for p in points[:-1])
        # f(Z) - Z is at most 1 + 0.9 distances, in a norm that differs by a factor of sqrt(3)
        assert points[-1]["residual"] <= 1e-6 * (1 + 0.9 * 3**0.5) * 1.01
        if method.endswith(", zero"):
            assert [points[0]["residual"], points[0]["distance"]] == pytest.approx([1.0, 1.0])
        else:  # two steps do not train the MLP that the paper's own solver starts from
            own = method.startswith(("paper, ", "paper with"))
            assert points[0]["distance"] < (1.5 if own else 1.0)
    for seed in seeds:
        # at the fixed point all methods predict the same
        assert len({curves[seed, method][-1]["metric"] for method in methods}) == 1
    assert set(found.statement["ours"]) == methods
    for method, levels in found.statement["ours"].items():
        assert list(levels) == ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6"]
        for level, mean in levels.items():
            reached = [_first_for_good(curves[seed, method], float(level)) for seed in seeds]
            assert mean == pytest.approx(sum(reached) / len(reached))


def _first_for_good(points: list[dict[str, float]], distance: float) -> float:
    above = [p["evaluations"] for p in points if p["distance"] > distance]
    return max(above, default=-1.0) + 1


def _distances(found: Written) -> dict[str, tuple[float, ...]]:
    """Of all points, by method; for one seed."""
    curves = _curves(found.rows).items()
    return {method: tuple(p["distance"] for p in points) for (_, method), points in curves}


def test_figure4_goes_on_past_k_to_a_distance_of_1e_6(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _reproduce("figure4", tmp_path, capsys, *TINY, *NETWORKS, "--seeds", "0,1")
    # the closed form is fitted for one step, the networks for solver.steps = 3
    horizons = {
        "learned, initialiser": 1,
        "graph network, initialiser": 3,
        "paper with its own, initialiser": 3,
    }
    _check_curves(found, CLASSICAL | set(horizons), {"0", "1"})
    for row in found.rows:
        steps = horizons.get(row["method"])
        beyond = "" if steps is None else str(int(row["evaluations"]) > steps)
        assert row["beyond_k"] == beyond
    for method in horizons:
        shown = {row["beyond_k"] for row in found.rows if row["method"] == method}
        assert shown == {"True", "False"}
    assert "K = 6" in found.statement["paper"]
    # the same call takes the finished runs and finds the same numbers
    again = _reproduce("figure4", tmp_path, capsys, *TINY, *NETWORKS, "--seeds", "0,1")
    assert again.rows == found.rows
    assert "epoch 1/4" in found.printed
    assert "epoch 1/4" not in again.printed


def test_figure5_switches_each_term_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _reproduce("figure5", tmp_path, capsys, *TINY, *NETWORKS)
    closed = [
        "closed form, all terms, initialiser",
        "closed form, lambda1 = 0 (no distances), initialiser",
        "closed form, lambda2 = 0 (untrained initialiser), initialiser",
    ]
    network = [name.replace("closed form", "graph network") for name in closed]
    network.append("graph network, lambda3 = 0 (no mixed residuals), initialiser")
    paper = [name.replace("graph network", "paper") for name in network]
    schemes = {f"paper, lambda1 {scheme}, initialiser" for scheme in ("constant", "last")}
    _check_curves(found, CLASSICAL.union(closed, network, paper, schemes), {"0"})
    curves = _distances(found)
    starts = {name: curves[name][0] for name in (*closed, *network, *paper)}
    assert len({curves[name] for name in (paper[0], *schemes)}) == 3
    for kind in (closed, network, paper):
        # without lambda2 the start is farther away, without lambda1 the steps are others
        assert starts[kind[1]] == starts[kind[0]] != starts[kind[2]]
        assert kind is paper or starts[kind[0]] < starts[kind[2]]
        assert curves[kind[1]] != curves[kind[0]]
    assert curves[network[3]] != curves[network[0]]
    # the estimator untrained is Anderson; later points magnify the last digits of the two starts
    expected = pytest.approx(curves["anderson, initialiser"][:3], rel=1e-3)
    assert curves[closed[1]][:3] == expected
    assert curves[closed[0]][:3] != expected


def test_figure7_compares_every_variant_from_one_start_with_and_without_safeguard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    phase = PaperTrainer.phase

    def counted(self: PaperTrainer, model: Any, planner: Any, steps: int, *rest: Any) -> Any:
        taken.append(steps)
        return phase(self, model, planner, steps, *rest)

    monkeypatch.setattr(PaperTrainer, "phase", counted)
    found = _reproduce("figure7", tmp_path, capsys, *TINY, *NETWORKS, "--solver-steps", "3")
    assert taken == [3, 3]  # and not the schedule's: one from the run's start, one from its own
    guarded = [row for row in found.rows if row["safeguard"] != "False"]
    free = [row for row in found.rows if row["safeguard"] != "True"]
    names = {variant.name for variant in all_variants() if variant.changes["safeguard"]}
    variants = {f"{name}, initialiser" for name in names}
    assert "graph global, initialiser" in variants
    methods = CLASSICAL | variants | {"paper with its own, initialiser"}
    levels = found.statement["ours"]
    ours = {name: value for name, value in levels.items() if "no safeguard" not in name}
    statement = found.statement | {"ours": ours}
    _check_curves(found._replace(rows=guarded, statement=statement), methods, {"0"})
    both = [_distances(found._replace(rows=rows)) for rows in (guarded, free)]
    for curves in both:
        starts = {curves[name][0] for name in variants}
        assert starts == {curves["anderson, initialiser"][0]}
        assert len({curves[name] for name in variants}) > len(variants) // 2
    on, off = both
    assert set(off) == methods
    assert any(on[name] != off[name] for name in variants)
    assert {f"{name}, no safeguard" for name in methods - CLASSICAL} == set(levels) - set(ours)
    assert "networks of 3 steps" in found.statement["caption"]


def test_the_paper_has_its_steps_by_dataset() -> None:
    found = {name: paper_steps(name) for name in ("citeseer", "flickr", "amazon-all", "chains")}
    assert found == {"citeseer": 100, "flickr": 200, "amazon-all": 1000, "chains": 100}


def test_a_panel_shows_what_converges_and_names_k_inside() -> None:
    row = {"seed": 0, "metric": 0.5, "safeguard": None}

    def curve(method: str, factor: float, steps: int) -> list[dict[str, Any]]:
        return [
            {
                **row,
                "method": method,
                "evaluations": k,
                "distance": factor**k,
                "residual": factor**k,
            }
            for k in range(steps)
        ]

    rows = [*curve("fast", 1e-2, 4), *curve("slow", 1e-1, 9), *curve("lost", 10.0, 300)]
    # the limits are those of the longer panel
    panels = {"off": [*rows, *curve(convergence.PICARD, 0.5, 40)], "on": [*rows[:4], *rows[4:8]]}
    marks = {"ours": 1, "a network": 4, "paper": 4, "far": 40}
    figure = convergence.draw_side_by_side(panels, "residual", "title", marks)
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low < 1e-8
        assert 1.0 < high < 100.0  # what diverges does not squeeze the others
        assert 8.0 <= axes.get_xlim()[1] < 10.0
        names = [text for text in axes.texts if text.get_text()]
        assert [text.get_text() for text in names] == ["K = 1: ours", "K = 4: a network, paper"]
        for text in names:
            box = text.get_window_extent()
            assert axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1
            assert axes.bbox.x0 <= box.x0 <= box.x1 <= axes.bbox.x1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "fast",
        "slow",
        "lost",
        "picard, zero",
    ]
    assert all(legend.get_window_extent().y1 <= axes.bbox.y0 for axes in figure.axes)


def test_a_schedule_without_network_steps_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _refused(
        capsys,
        "figure5",
        *TINY,
        *NETWORKS,
        "--schedule.warmup-epochs",
        "9",
        "--out",
        tmp_path / "late",
    )
    assert "schedule.warmup_epochs = 9" in line
    assert "train.epochs = 4" in line


def test_figure8_follows_training_with_each_solver_and_times_epochs_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int, float]] = []
    train_epoch = Trainer.train_epoch

    def noted(self: Trainer) -> EpochRecord:
        record = train_epoch(self)
        trained.append((self.config.forward.method, record.epoch, record.loss))
        return record

    monkeypatch.setattr(Trainer, "train_epoch", noted)
    found = _reproduce("figure8", tmp_path, capsys, *TINY)
    runs, in_turn = trained[:12], trained[12:]
    order = [(method, epoch) for epoch in (1, 2, 3, 4) for method in dynamics.METHODS]
    assert [(method, epoch) for method, epoch, _ in in_turn] == order
    assert sorted(in_turn) == sorted(runs)  # the same training, to the last digit
    kept = json.loads((tmp_path / "runs" / "seconds-seed0.json").read_text())["found"]
    for row in found.rows:
        seconds = kept[row["method"]][int(row["epoch"]) - 1]
        assert float(row["seconds"]) == seconds["seconds"] > seconds["solver_seconds"]
    for method, epochs in kept.items():
        shown = found.statement["ours"][method]["seconds/epoch"]
        assert shown == epochs_in_turn.typical_epoch(epochs)
    again = _reproduce("figure8", tmp_path, capsys, *TINY)
    assert again.rows == found.rows
    assert len(trained) == 24  # nothing is trained or timed again
    assert list(found.rows[0]) == [
        "seed",
        "method",
        "epoch",
        "loss",
        "val_metric",
        "seconds",
        "evaluations_forward",
        "evaluations_validation",
        "evaluations_adjoint",
        "solver_seconds",
    ]
    for method in ("neural", "anderson", "picard"):
        rows = [row for row in found.rows if row["method"] == method]
        assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
        records = (tmp_path / "runs" / f"{method}-seed0" / "metrics.jsonl").read_text()
        for row, line in zip(rows, records.splitlines(), strict=True):
            record = json.loads(line)
            assert float(row["loss"]) == record["loss"]
            assert int(row["evaluations_forward"]) == record["evaluations_forward"]
        ours = found.statement["ours"][method]
        forward = [int(row["evaluations_forward"]) for row in rows]
        assert ours["forward"] == pytest.approx(sum(forward) / 4)
        assert ours["test"] == _summary(tmp_path / "runs" / f"{method}-seed0")["test_at_best_val"]
        spent = sum(float(row["solver_seconds"]) for row in rows)
        assert (spent > 0) == (method == "neural")
    assert (
        found.statement["ours"]["picard"]["forward"]
        > (found.statement["ours"]["anderson"]["forward"])
    )


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True])
def test_long_range_chooses_depth_on_validation_and_reads_test_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hard: bool
) -> None:
    options = [*LONG_RANGE, "--seeds", "0,1", *(["--hard"] if hard else [])]
    found = _reproduce("long-range", tmp_path, capsys, *options)
    chains = found.statement["settings"]["data"]["chains"]
    assert (chains["classes"] > 2, chains["noise"] > 0) == (hard, hard)
    models = {"implicit", "GCN", "SGC", "APPNP", "GCNII"}
    for length in ("4", "6"):
        for model in models:
            _check_choice(found, length, model)
    assert set(found.statement["ours"]) == models
    for seed in ("0", "1"):
        summary = _summary(tmp_path / "runs" / f"length6-seed{seed}")
        (row,) = (
            r for r in found.rows if (r["model"], r["length"], r["seed"]) == ("implicit", "6", seed)
        )
        assert float(row["test"]) == summary["test_at_best_val"]
        assert summary["nodes"] == 6 * 4 * chains["classes"]
    if not hard:
        # the implicit model reaches the end of a chain
        assert found.statement["ours"]["implicit"]["6"] == "100.0 ± 0.0"


def _check_choice(found: Written, length: str, model: str) -> None:
    rows = [r for r in found.rows if (r["length"], r["model"]) == (length, model)]
    chosen = [row for row in rows if row["chosen"] == "True"]
    assert [row["seed"] for row in chosen] == ["0", "1"]
    assert all((row["test"] == "") == (row["chosen"] == "False") for row in rows)
    assert {row["seed"] for row in rows if row["chosen"] == "False"} <= {"0"}
    own = (chosen[0]["depth"], chosen[0]["alpha"])
    assert (chosen[1]["depth"], chosen[1]["alpha"]) == own
    best = max(float(row["val"]) for row in rows if row["seed"] == "0")
    assert float(chosen[0]["val"]) == best
    mean = math.fsum(float(row["test"]) for row in chosen) / 2
    shown = found.statement["ours"][model][length]
    assert shown.startswith(f"{100 * mean:.1f} ± ")
    if model == "implicit":
        assert own == ("", "")
        return
    assert shown.endswith(f"({own[0]})")
    depths = {row["depth"] for row in rows}
    assert depths == {"2", "8"} if best < 1.0 else depths <= {"2", "8"}


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    *progress, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not any("error" in earlier or "Traceback" in earlier for earlier in progress)
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "STUDY is missing; --help shows examples"),
        (["figure9"], "STUDY figure9 must be 'table1', 'table3'"),
        (["figure3", "--dataset", "citeser"], "did you mean"),
        (["figure3", "--seeds", "0,x"], "--seeds 0,x must be whole numbers from 0 on"),
        (["figure3", "--seeds", "-1"], "--seeds"),
        (["figure3", "--seeds", "1,1"], "--seeds 1,1 names a number twice"),
        (["figure3", "--seeds", ""], "must be whole numbers"),
        (["figure3", "--seed", "1"], "it takes --seeds and --out"),
        (["figure3", "--output", "o"], "--output is set by the study"),
        (["figure3", "--workers", "2"], "--workers is set by the study"),
        (["figure3", "--hard"], "has no effect on figure3; drop it (long-range reads it)"),
        (["figure3", "--lengths", "10"], "has no effect on figure3; drop it (long-range reads it)"),
        (
            ["figure3", "--solver-steps", "10"],
            "--solver-steps has no effect on figure3; drop it (fig",
        ),
        (["figure7", "--solver-steps", "0"], "--solver-steps 0"),
        (["figure3", "--train.epochs", "0"], "train.epochs"),
        (
            ["figure3", "--dataset", "chains", "--data.synthetic.scale", "2", "--model.skew", "3"],
            "data.synthetic.scale = 2.0 has no effect with dataset = chains; drop it (and 1 more)",
        ),
        (["figure8", "--solver.steps", "3"], "solver.steps = 3 has no effect with solver.kind"),
        (["long-range", "--solver.lambda1", "2"], "lambda1 = 2.0 has no effect with forward.meth"),
        (["rivals", "--model.skew", "3"], "model.skew = 3.0 has no effect with model.cell = ignn"),
        (["long-range", "--dataset", "acm"], "long-range needs a dataset whose range can be set"),
        (["long-range", "--lengths", "1"], "must be whole numbers from 2 on"),
        (["long-range", "--depths", "0"], "must be whole numbers from 1 on"),
        (["long-range", "--hard", "--config", "c.yaml"], "give one of them"),
        (["table3", "--models", "gcn,gcn"], "--models gcn,gcn names one twice; leave one out"),
        (["table3", "--dataset", "acm"], "table3 takes --datasets, with names or files"),
        (["table3", "--datasets", "file"], "table3 takes --datasets, with names or files"),
        (["table3", "--config", "c.yaml"], "table3 takes the settings that come with each model"),
        (["table3", "--model.kind", "gcn"], "--model.kind is set by the study; it takes --models"),
        (["table3", "--seed", "1"], "--seed is set by the study; it takes --models, --seeds"),
        (["table3", "--train.lr", "x"], "train.lr = 'x' must be a number"),
        (
            ["figure3", "--models", "gcn"],
            "--models has no effect on figure3; drop it (table1, table3",
        ),
        (["table3", "--hard"], "--hard has no effect on table3"),
        (["figure3", "--datasets", "acm"], "--datasets has no effect on figure3; use --dataset"),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in _refused(capsys, *arguments)
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["figure4", "--solver.steps", "3", "--solver.lambda3", "1", "--schedule.solver-steps", "9"],
        ["figure5", "--solver.training", "one_step", "--solver.keep", "0.5"],
        ["figure8", "--dataset", "chains", "--solver.compress", "4"],
        ["figure3", "--config", "long-range.yaml", "--solver.compress", "4"],  # of Anderson
        ["long-range", "--forward.method", "neural", "--solver.compress", "4"],
        ["rivals", "--model.cell", "mignn", "--model.skew", "3"],
    ],
)
def test_what_one_run_of_a_study_reads_is_taken(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(reproduce, "on_this_rank", lambda *found: begun.append(found))
    assert main(arguments) == 0
    assert begun


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    line = _refused(capsys, "figure3", *TINY, "--out", tmp_path / "file" / "new")
    assert f"--out {tmp_path / 'file' / 'new'} cannot be written" in line


@pytest.mark.parametrize("study", ["figure4", "figure5"])
def test_a_schedule_without_steps_is_refused_before_anything_is_trained(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = ("--schedule.warmup-epochs", "100", "--out", tmp_path)
    line = _refused(capsys, study, *TINY, *NETWORKS, *without)
    assert "the schedule holds no steps to train a network with; raise schedule.warm" in line
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_runs_with_other_settings_are_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _reproduce("figure3", tmp_path, capsys, *TINY)
    line = _refused(capsys, "figure3", *TINY, "--train.lr", "0.5", "--out", tmp_path)
    assert (
        "holds a run with other settings (train.lr 0.01 there, 0.5 here); give those, choose"
        in line
    )


def test_every_study_has_its_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {study} " in text for study in NAMES)


def _curves_on_a_rank(comm: Communicator, out: Path) -> list[dict[str, Any]]:
    flags = shlex.split(
        "--model.kappa 0.5 --train.epochs 2 --solver.network mlp --forward.method neural"
    )
    config = parse_args([*TINY, *flags])
    request = outcome.Request(config, (0,), out)
    if comm.world_size > 1:
        with pytest.raises(UserError, match="start it without torchrun"):
            long_range.run(request, comm)
    return [dict(row) for row in beyond_k.run(request, comm).rows]


@pytest.mark.slow
@pytest.mark.long  # tables and a search have two ranks with every change
@pytest.mark.timeout(240)
def test_two_ranks_find_the_same_curves_and_no_long_range(tmp_path: Path) -> None:
    first, second = run_ranks(_curves_on_a_rank, 2, tmp_path / "two", timeout=200)
    assert first == second
    alone = _curves_on_a_rank(Communicator(), tmp_path / "one")
    for row, other in zip(first[:6], alone[:6], strict=True):
        # Picard's first points; trained in float32, whose sums differ in the last digit
        assert row["distance"] == pytest.approx(other["distance"], rel=1e-3)


def test_seconds_of_figures_are_not_those_of_a_disturbed_epoch() -> None:
    quiet = [{"seconds": 1.0, "solver_seconds": 0.0, "solver_steps": 0} for _ in range(8)]
    phases = [
        {"seconds": 1.0 + taken, "solver_seconds": taken, "solver_steps": steps}
        for taken, steps in ((9.0, 100), (0.5, 10), (0.5, 10), (7.0, 10))
    ]
    disturbed = [*quiet, *phases, {"seconds": 60.0, "solver_seconds": 0.0, "solver_steps": 0}]
    assert cost._typical_seconds(disturbed) == (13.0, 9.0 + 3 * 0.5)
    assert epochs_in_turn.typical_epoch(disturbed) == pytest.approx(1.0 + 17.0 / 13)


def test_csv_leaves_cells_without_a_number_empty() -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": math.inf}, {"a": math.nan, "b": None}]
    assert outcome.to_csv(rows) == "a,b\n1,\n,\n"


def test_spread_is_mean_and_sample_deviation() -> None:
    assert outcome.spread([1.0, 3.0]) == (2.0, math.sqrt(2.0))
    assert outcome.spread([5.0]) == (5.0, 0.0)


def test_a_value_that_is_called_like_a_study_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[str, str]] = []

    def take(name: str, study: object, request: Request, comm: Communicator) -> None:
        taken.append((name, request.config.dataset))

    monkeypatch.setattr(reproduce, "_conduct", take)
    monkeypatch.chdir(tmp_path)
    for out in ("table1", "long-range"):
        assert main(["figure8", "--out", out, "--device", "cpu"]) == 0
    assert main(["--out", "figure8", "long-range", "--device", "cpu"]) == 0
    assert taken == [("figure8", "citeseer")] * 2 + [("long-range", "chains")]


def test_a_figure_without_a_test_metric_is_a_dash() -> None:
    assert math.isnan(spread([None])[0])
    assert spread([None, 2.0]) == (2.0, 0.0)
    summary = dict.fromkeys(("best_val", "best_epoch", "epochs", "seconds_total"), 1.0)
    rows = [
        rivals._row(model, 0, {**summary, "test_at_best_val": None})
        for model in (*rivals.RIVALS, rivals.IMPLICIT)
    ]
    assert rivals._table(rows)["GCN"] == {"val": "100.0", "test": "-", "seconds": "1.0"}
    rivals._draw(rows, "chains", "roc_auc")


def test_a_table_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a figure of a long name {k}" for k in range(6)]
    found = Outcome([], {"[all]": dict.fromkeys(names, 1.0)}, "", "", "", Picture(1, 1))
    request = Request(RunConfig(dataset="chains"), (0,), Path("out"))
    show_outcome("figure8", request, found, Console(width=80))
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*names, "[all]"])
