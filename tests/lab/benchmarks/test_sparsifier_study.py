"""The sparsifier study: what it trains, what it says, and that it leaves the run as it was."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks import sparsifier
from distributed_ignn.lab.benchmarks.problem import load_problem
from distributed_ignn.lab.benchmarks.sparsifier import (
    Choice,
    Quality,
    SparsifierOptions,
    choices,
    verdict,
)
from distributed_ignn.lab.benchmarks.sparsifier_speed import Speed
from distributed_ignn.lab.benchmarks.study import Study
from distributed_ignn.lab.benchmarks.tracing import Step
from distributed_ignn.lab.benchmarks.variants import train_variant
from distributed_ignn.propagation.sparsify import sparsify
from distributed_ignn.runs.run import run_training
from tests.lab.benchmarks.tiny_run import tiny_run
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(300)


def _options(folder: Path) -> SparsifierOptions:
    return SparsifierOptions(
        folder,
        keeps=(0.4,),
        seeds=2,
        rounds=1,
        max_steps=20,
        scales=(0.0001, 0.0002),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparsifier-study") / "run"
    run_training(tiny_run(folder), Communicator())
    return folder


@pytest.fixture(scope="module")
def study(trained: Path) -> Study:
    return sparsifier.run(_options(trained), Communicator())


def test_every_method_is_fitted_at_every_share_to_every_draw(study: Study) -> None:
    edges = {row["edges"] for row in study.rows}
    chosen = {f"{m} {k}" for m in ("pri", "degree", "random") for k in (0.4,)}
    controls = {sparsifier.NO_GRAPH, sparsifier.CHANNELS, sparsifier.WHOLE}
    assert edges == chosen | controls
    assert {(row["edges"], row["seed"]) for row in study.rows} == {
        *((name, draw) for name in chosen for draw in (0, 1)),
        *((name, 0) for name in controls),
    }
    kept = {row["edges"]: row["kept_entries"] for row in study.rows}
    assert kept[sparsifier.WHOLE] == kept[sparsifier.CHANNELS] == 1.0
    assert kept[sparsifier.NO_GRAPH] == 0.0
    for name in chosen:
        assert abs(kept[name] - float(name.split()[1])) < 0.3, name
        assert kept[name] < 1.0


def test_solvers_differ_where_edges_or_draws_do(study: Study) -> None:
    """A study whose rows are all alike would measure nothing."""
    last = {
        (row["edges"], row["seed"]): row["distance"]
        for row in study.rows
        if row["evaluations"] == 3
    }
    assert last["pri 0.4", 0] != last["pri 0.4", 1]
    assert last["pri 0.4", 0] != last[sparsifier.NO_GRAPH, 0]
    assert last[sparsifier.CHANNELS, 0] != last[sparsifier.NO_GRAPH, 0]


def test_a_chosen_graph_is_what_the_estimator_reads(trained: Path) -> None:
    """Also the whole one, which is one channel where the model may have several."""
    problem = load_problem(trained, Communicator())
    model, shard = problem.trainer.implicit, problem.trainer.shard
    whole = sparsify(shard, problem.comm, "none", 1.0, problem.injection.dtype)
    model.layer = replace(model.layer, sparsified=whole)
    for choice in choices((0.4,)):
        beta = train_variant(problem, choice.variant, None, 0).estimator
        assert beta is not None
        assert beta.sparsified == choice.thinned, choice.name
        assert (beta.hops == 0) == (choice.name == sparsifier.NO_GRAPH)
    thinned = {choice.name: choice.thinned for choice in choices((0.4,))}
    assert thinned[sparsifier.WHOLE]
    assert not thinned[sparsifier.CHANNELS]


def test_it_is_shown_and_drawn(study: Study, tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    study.show(console)
    text = console.export_text()
    assert "kept edges and the error estimator, 2 draws" in text
    assert "CPU seconds grow as entries to the power" in text
    assert "for the quality of this solver" in text.replace("\n", " ")
    study.write_plot(tmp_path / "plot.png")
    study.write_csv(tmp_path / "rows.csv")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def _quality(name: str, *distances: float) -> Quality:
    runs = tuple([Step(0, d, d, 0.5)] for d in distances)
    return Quality(Choice(name, "pri", 0.5), 0.5, 1.0, runs)


def test_the_verdict_compares_choices_with_draws() -> None:
    alike = [_quality("a", 0.1, 0.2), _quality("b", 0.2, 0.1), _quality("c", 0.12, 0.17)]
    assert "do not matter" in verdict(alike, 1)
    apart = [_quality("a", 0.1, 0.11), _quality("b", 0.01, 0.011), _quality("c", 0.5, 0.51)]
    assert "edges matter" in verdict(apart, 1)
    assert "cannot be told" in verdict([_quality("a", 0.1)], 1)
    # controls have one draw and no say
    whole = replace(_quality("none", 1e-9), choice=Choice("none", "none", 1.0))
    assert verdict([whole, *alike], 1) == verdict(alike, 1)


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    square = Speed("pri", (10, 100, 1000), (1e-4, 1e-2, 1.0))
    assert square.exponent == pytest.approx(2.0)
    assert "to the power 2.00" in square.sentence()


def test_a_run_without_learned_solver_is_refused(tmp_path: Path) -> None:
    run_training(tiny_run(tmp_path / "run", method="anderson"), Communicator())
    with pytest.raises(UserError, match="this study needs a run with neural"):
        sparsifier.run(_options(tmp_path / "run"), Communicator())


def _rows(comm: Communicator, folder: Path) -> list[dict[str, object]]:
    return [dict(row) for row in sparsifier.run(_options(folder), comm).rows]


def test_two_ranks_find_what_one_finds(trained: Path, study: Study) -> None:
    found = run_ranks(_rows, 2, trained, timeout=150)[0]
    assert len({row["edges"] for row in found}) == 6
    mine = {(row["edges"], row["seed"], row["evaluations"]): row for row in study.rows}
    for row in found:
        own = mine[row["edges"], row["seed"], row["evaluations"]]
        assert row["kept_entries"] == own["kept_entries"]
        if row["evaluations"] <= 2:  # later ones end in float32's last digits
            assert row["distance"] == pytest.approx(own["distance"], rel=1e-2)
