"""The solver study agrees with what it measures; no test depends on time."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.benchmark import main
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks import solver
from distributed_ignn.lab.benchmarks.goals import Goal, distance_goal, metric_goal
from distributed_ignn.lab.benchmarks.peers import torchdeq_drives
from distributed_ignn.lab.benchmarks.problem import Problem, load_problem
from distributed_ignn.lab.benchmarks.study import Study
from distributed_ignn.lab.benchmarks.tracing import (
    Method,
    Step,
    _Observed,
    drive_solver,
    time_steps,
    trace,
)
from distributed_ignn.lab.benchmarks.variants import Variant, all_variants, train_variant
from distributed_ignn.runs.run import run_training
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver
from distributed_ignn.solvers.estimator import StructuredMap
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve
from tests.lab.benchmarks.tiny_run import tiny_run
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("solver-study") / "run"
    run_training(tiny_run(folder), Communicator())
    return folder


@pytest.fixture(scope="module")
def problem(trained: Path) -> Problem:
    return load_problem(trained, Communicator())


@pytest.fixture(scope="module")
def study(trained: Path) -> Study:
    options = solver.SolverOptions(trained, rounds=1, max_steps=40, solver_steps=2)
    return solver.run(options, Communicator())


def _steps(*distances: float) -> list[Step]:
    return [Step(k, d, math.nan, 1.0 - d, 0.5 * k) for k, d in enumerate(distances)]


def test_a_goal_counts_only_once_it_is_kept() -> None:
    steps = _steps(0.5, 0.05, 0.2, 0.04, 0.01)
    goal = distance_goal(0.1)
    assert goal.name == "1e-1"
    assert (goal.evaluations(steps), goal.seconds(steps)) == (3.0, 1.5)
    assert goal.evaluations(steps[:3]) == math.inf
    assert goal.evaluations([]) == math.inf
    assert goal.evaluations(steps[3:]) == 3.0
    assert distance_goal(0.5).evaluations(steps) == 0.0


def test_the_metric_goal_is_a_tenth_of_a_point_below_convergence() -> None:
    goal: Goal = metric_goal(0.756)
    steps = [replace(step, metric=m) for step, m in zip(_steps(1, 1), (0.754, 0.755), strict=True)]
    assert goal.evaluations(steps) == 1.0


def test_the_target_is_a_fixed_point_to_float64(problem: Problem) -> None:
    assert problem.target.dtype is torch.float64
    assert problem.injection.dtype is torch.float32
    assert problem.target_residual <= 1e-12
    image = problem.cell()(problem.target.float(), None).image
    assert problem.distance(image)[0] < 1e-6
    assert problem.distance(torch.zeros_like(problem.target)) == [pytest.approx(1.0)]


def test_after_k_evaluations_picard_is_at_its_kth_image(problem: Problem) -> None:
    """Z_0 is the start; distance, residual and metric are all of Z_k itself."""
    z, cell = torch.relu(problem.injection), problem.cell()
    method = Method("picard", "f(0)", cell.form.activate, drive_solver(Picard()))
    steps = trace(problem, method, 6)
    assert [step.evaluations for step in steps] == list(range(7))
    norm = problem.target.norm()
    for step in steps:
        assert step.distance == pytest.approx(float((z.double() - problem.target).norm() / norm))
        assert step.metric == problem.test_metric(z)
        image = cell(z, None).image
        assert step.residual == pytest.approx(float((image - z).norm() / image.norm()), rel=1e-5)
        z = image


@pytest.mark.parametrize("method", [Anderson(3), Picard()], ids=["anderson", "picard"])
def test_a_trace_visits_the_points_that_solve_evaluates(
    problem: Problem, method: AnySolver
) -> None:
    steps = trace(problem, Method("m", "zero", torch.zeros_like, drive_solver(method)), 8)
    assert _residuals(steps) == pytest.approx(_solved(problem, method), rel=1e-5)
    assert steps[0].distance == pytest.approx(1.0)
    assert steps[0].residual == 1.0


def _residuals(steps: list[Step]) -> list[float]:
    return [step.residual for step in steps]


def _solved(problem: Problem, method: AnySolver) -> list[float]:
    """Residuals of the first nine points from zero, without anything between solver and map."""
    start = torch.zeros_like(problem.injection)
    return list(
        solve(
            problem.cell(), start, method, lambda sums: sums, tolerance=0.0, max_steps=9
        ).residuals
    )


def test_an_observed_map_has_what_the_learned_solver_reads(problem: Problem) -> None:
    """Nothing is changed on the way: the solver takes the same steps through it."""
    learned = problem.trainer.learned
    assert learned is not None
    assert learned.estimator is not None
    observed, cell = _Observed(problem), problem.cell()
    assert isinstance(observed, StructuredMap)
    assert all(map(torch.equal, observed.weights, cell.weights))
    image = cell(torch.zeros_like(problem.injection), None).image
    gated, expected = (m.gate(torch.ones_like(image), image) for m in (observed, cell))
    assert torch.equal(gated, expected)
    assert 0.0 < float(gated.mean()) < 1.0
    columns = torch.randn(len(image), 2)
    for found, product in zip(
        observed.propagate(columns, False), cell.propagate(columns, False), strict=True
    ):
        assert torch.equal(found, product)
    with pytest.raises(ValueError, match="no sparsified graph"):
        observed.propagate(columns, True)
    method = solver.learned_method("learned", "zero", torch.zeros_like, learned)
    steps = trace(problem, method, 8)
    with torch.no_grad():
        own = _solved(problem, learned.solver())
    assert _residuals(steps) == pytest.approx(own, rel=1e-5)
    assert own[2] != pytest.approx(_solved(problem, Anderson(learned.memory))[2], rel=1e-3)


@pytest.fixture(scope="module")
def exact_problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A run in float64, with the sparsified graph that networks read."""
    folder = tmp_path_factory.mktemp("solver-study") / "exact"
    config = tiny_run(folder)
    changes = {
        "train": config.train.model_copy(update={"dtype": "float64"}),
        "solver": config.solver.model_copy(update={"sparsifier": "pri"}),
    }
    run_training(config.model_copy(update=changes), Communicator())
    return load_problem(folder, Communicator())


# without the safeguard nothing makes sure of it
SAFE = [variant for variant in all_variants() if variant.changes["safeguard"]]


@pytest.mark.parametrize("variant", SAFE, ids=lambda variant: variant.name)
def test_every_variant_ends_at_the_fixed_point(exact_problem: Problem, variant: Variant) -> None:
    learned = train_variant(exact_problem, variant, None, 2)
    start = exact_problem.cell().form.activate
    method = solver.learned_method(variant.name, solver.AT_ZERO, start, learned)
    steps = trace(exact_problem, method, 300, 1e-10)
    assert steps[-1].distance <= 1e-10
    assert steps[0].distance > 1e-2


def test_a_trace_ends_at_its_floor_and_timing_repeats_its_length(problem: Problem) -> None:
    method = Method("a", "zero", torch.zeros_like, drive_solver(Anderson()))
    steps = trace(problem, method, 60, 1e-3)
    assert steps[-1].distance <= 1e-3 < steps[-2].distance
    (times,) = time_steps(problem, {"a": method}, {"a": len(steps)}, 2).values()
    assert len(times) == len(steps)
    assert all(0 < a < b for a, b in pairwise(times))


def test_time_contains_the_start(problem: Problem) -> None:
    """A start that waits is late at Z_0 already."""

    def late(injection: Tensor) -> Tensor:
        time.sleep(0.2)
        return torch.zeros_like(injection)

    method = Method("a", "late", late, drive_solver(Picard()))
    assert time_steps(problem, {"a": method}, {"a": 1}, 1)["a"][0] >= 0.2
    assert time_steps(problem, {"a": method}, {"a": 1}, 1, time.process_time)["a"][0] < 0.2


def test_processor_time_is_refused_where_ranks_wait_for_each_other(trained: Path) -> None:
    options = solver.SolverOptions(trained, cpu_time=True)
    with pytest.raises(UserError, match=r"--cpu-time: 2 ranks on cpu wait .* leave it out"):
        solver.run(options, Communicator(0, 2))


def test_the_learned_solver_is_told_the_run_s_tolerance_and_the_goals_below(
    problem: Problem,
) -> None:
    own = problem.trainer.config.forward.tolerance
    contest = solver.enlist(problem, (10 * own, own, 1e-7), None)
    told = {
        method.name: method.solver.tolerance
        for method in contest.methods.values()
        if isinstance(method.solver, NeuralSolver)
    }
    assert told == {"learned": own, "learned to 1e-7": 1e-7}


def test_the_study_has_every_method_and_every_goal(study: Study) -> None:
    labels = {(row["method"], row["start"]) for row in study.rows}
    classical = {"picard", "anderson 3", "anderson 5", "anderson 8", "broyden"}
    learned = {"learned"} | {variant.name for variant in all_variants()}
    assert len(learned) == 1 + 3 + 9 + 1 + 2
    named = {start: {name for name, own in labels if own == start} for _, start in labels}
    assert set(named) == {solver.ZERO, solver.AT_ZERO, solver.INITIALISER}
    assert named[solver.ZERO] >= classical
    assert not named[solver.ZERO] & learned
    assert named[solver.AT_ZERO] == learned
    assert named[solver.INITIALISER] >= classical | learned
    sections = dict.fromkeys(figure.section for figure in study.report.figures)
    assert list(sections) == ["1e-1", "1e-2", "1e-3", "1e-4", "metric"]
    assert len(study.report.figures) == len(labels) * 5 * 4
    for figure in study.report.figures:
        base = next(
            other
            for other in study.report.figures
            if (other.name, other.unit, other.section, other.baseline)
            == (figure.baseline, figure.unit, figure.section, figure.baseline)
        )
        if figure.value == 0.0:  # the start meets the goal
            assert figure.ratio == (1.0 if base.value == 0.0 else math.inf)
        elif math.isfinite(figure.value):
            assert figure.ratio == pytest.approx(base.value / figure.value)


def test_figures_agree_with_the_rows(study: Study) -> None:
    values = {
        figure.name: figure.value
        for figure in study.report.figures
        if (figure.section, figure.unit, figure.baseline) == ("1e-2", "evaluations", solver.PICARD)
    }
    for label, value in values.items():
        rows = [row for row in study.rows if f"{row['method']}, {row['start']}" == label]
        assert [row["evaluations"] for row in rows] == list(range(len(rows)))
        late = [row["evaluations"] for row in rows if row["distance"] > 1e-2]
        expected = max(late, default=-1) + 1
        assert value == (expected if expected < len(rows) else math.inf), label
    assert values[solver.ANDERSON] <= values[solver.PICARD] < math.inf


def test_the_study_is_written_whole(study: Study, tmp_path: Path) -> None:
    study.write_csv(tmp_path / "new" / "steps.csv")
    with (tmp_path / "new" / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study.rows)
    assert float(rows[0]["distance"]) == study.rows[0]["distance"]
    study.write_plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    study.report.write(tmp_path / "study.json")
    stored = json.loads((tmp_path / "study.json").read_text())
    assert stored["settings"]["residual_of_target"] <= 1e-12
    console = Console(width=100, record=True, file=io.StringIO())
    study.show(console)
    text = console.export_text()
    assert "evaluations to reach and keep" in text
    assert "table global, initialiser: 2 network steps" in text
    assert "graph estimator, f(0): fitted in" in text


def _copies(modules: Mapping[str, torch.nn.Module]) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": parameter.detach().clone()
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def test_variants_learn_from_a_start_that_stays_and_move_nothing_else(problem: Problem) -> None:
    own, model = problem.trainer.learned, problem.trainer.implicit
    assert own is not None
    assert own.initialiser is not None
    everything = {**own.modules(), "model": model}
    before = _copies(everything)
    variants = {variant.name: variant for variant in all_variants()}
    coefficients = []
    for start in (own.initialiser, None):
        learned = train_variant(problem, variants["graph estimator"], start, 3)
        assert learned.ready
        assert learned.initialiser is start
        assert list(learned.modules())[-1] == "estimator"
        assert learned.estimator is not None
        coefficients.append(learned.estimator.coefficients)
        assert bool(coefficients[-1].any()), "nothing was learned"
        table = train_variant(problem, variants["table global"], start, 3)
        assert table.estimator is None
        assert table.predictor is not None
        assert any(bool(p.any()) for p in table.predictor.parameters()), "nothing was learned"
    assert not torch.equal(*coefficients), "the start makes no difference"
    for name, now in _copies(everything).items():
        assert torch.equal(now, before[name]), name
    assert problem.trainer.planner.states == {}


def test_a_run_without_learned_solver_is_measured_from_zero(tmp_path: Path) -> None:
    run_training(tiny_run(tmp_path / "run", method="anderson"), Communicator())
    options = solver.SolverOptions(tmp_path / "run", rounds=1, max_steps=20)
    study = solver.run(options, Communicator())
    assert {row["start"] for row in study.rows} == {solver.ZERO}
    assert "learned" not in {row["method"] for row in study.rows}
    assert study.notes[0] == "the run has no trained solver: nothing starts from an initialiser"
    trained = solver.run(replace(options, solver_steps=1), Communicator())
    at_zero = {row["method"] for row in trained.rows if row["start"] == solver.AT_ZERO}
    assert at_zero == {variant.name for variant in all_variants()}
    assert {row["start"] for row in trained.rows} == {solver.ZERO, solver.AT_ZERO}


def test_two_ranks_find_what_one_finds(trained: Path, study: Study) -> None:
    rows, notes = run_ranks(_study_rows, 2, trained, timeout=200)[0]
    assert any("single process only" in note for note in notes)
    mine = {_key(row): row for row in study.rows}
    assert len({key[0] for key in map(_key, rows)}) >= 15
    for row in rows:
        if row["evaluations"] <= 3:  # later ones end in float32's last digits
            assert row["distance"] == pytest.approx(mine[_key(row)]["distance"], rel=1e-2), row


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["start"], row["evaluations"]


def _study_rows(comm: Communicator, folder: Path) -> tuple[list[Any], tuple[str, ...]]:
    options = solver.SolverOptions(folder, rounds=1, max_steps=40, solver_steps=2)
    study = solver.run(options, comm)
    return list(study.rows), study.notes


def test_torchdeq_is_left_out_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdeq.solver.anderson", None)
    drives, note = torchdeq_drives(Communicator())
    assert drives == {}
    assert "pip install torchdeq" in note


@pytest.mark.skipif(importlib.util.find_spec("torchdeq") is None, reason="needs torchdeq")
def test_torchdeq_solves_the_same_problem(problem: Problem) -> None:
    drives, note = torchdeq_drives(Communicator())
    assert note == ""
    for name, drive in drives.items():
        steps = trace(problem, Method(name, "zero", torch.zeros_like, drive), 40, 1e-4)
        assert steps[-1].distance <= 1e-4, name
        assert len(steps) < 40


def test_a_bad_path_or_flag_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cases: list[tuple[list[str], str]] = [
        (["solver"], "needs a trained run"),
        (["solver", "--run", str(tmp_path / "none")], "is not a run folder"),
        (["iteration", "--csv", "x.csv"], "--csv has no effect on iteration"),
        (["solver", "--run", str(tmp_path), "--solver-steps", "0"], "must be at least 1"),
    ]
    for argv, message in cases:
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert message in captured.err + captured.out
        assert len((captured.err + captured.out).strip().splitlines()) == 1
