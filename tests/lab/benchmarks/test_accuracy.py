"""Time to accuracy: who is trained, what is counted, and how a course is judged."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.benchmark import main
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks import accuracy, benchmark_graph, explicit_peers
from distributed_ignn.lab.benchmarks.accuracy import AccuracyOptions
from distributed_ignn.lab.benchmarks.benchmark_graph import open_workload
from distributed_ignn.lab.benchmarks.courses import Course, Effort, Limits, Point, follow
from distributed_ignn.lab.benchmarks.study import tell_nobody
from tests.ranks import run_ranks

_CONFIG = RunConfig.model_validate(
    {
        "dataset": "synthetic-products",
        "device": "cpu",
        "data": {"synthetic": {"scale": 0.0005, "features": 8}},
        "model": {"hidden": 8, "dropout": 0.2},
        "train": {"epochs": 3, "local_steps": 2, "lr": 0.02},
    }
)
_LIMITS = Limits(minutes=1.0, epochs=2, patience=5)
_EVERYWHERE = ("local", "exact", "gcn", "sage", "sgc", "clusters")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph in one part and in two, made here: a process of its own takes seconds to start."""
    folder = tmp_path_factory.mktemp("shards")
    config = _CONFIG.model_copy(update={"data_root": Path("data").absolute()})
    benchmark_graph._write(config, folder, (1, 2))
    return folder


def test_a_study_has_a_course_for_every_contender(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explicit_peers, "CLUSTERS", 2)
    with open_workload(_CONFIG, Communicator(), rounds=1, shards=shards) as workload:
        study = accuracy.run(workload, AccuracyOptions(0.01, _LIMITS, _EVERYWHERE))
    names = [accuracy.CONTENDERS[key] for key in _EVERYWHERE]
    assert list(dict.fromkeys(row["contender"] for row in study.rows)) == names
    epochs = {name: sum(row["contender"] == name for row in study.rows) for name in names}
    assert epochs == dict.fromkeys(names, 2) | {accuracy.LOCAL: 3}
    tested = [row for row in study.rows if row["test_metric"] is not None]
    assert len(tested) == len(names)  # the test nodes are read once for each
    evaluations = {row["contender"]: row["evaluations"] for row in study.rows}
    assert evaluations[accuracy.GCN] == 2 * 2 * explicit_peers.LAYERS
    assert 0.0 < evaluations[accuracy.CLUSTERED] < evaluations[accuracy.SAGE]  # edges are cut
    assert {figure.baseline for figure in study.report.figures} == {accuracy.EXACT}
    study.report.write(tmp_path / "found.json")
    study.write_csv(tmp_path / "found.csv")
    study.write_plot(tmp_path / "found.png")
    assert len(json.loads((tmp_path / "found.json").read_text())["rows"]) == len(study.rows)
    with (tmp_path / "found.csv").open() as lines:
        assert [row["contender"] for row in csv.DictReader(lines)][-1] == accuracy.CLUSTERED
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_a_library_that_is_missing_is_said_and_its_row_is_missing(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_geometric.typing.WITH_PYG_LIB", False)
    monkeypatch.setattr("torch_geometric.typing.WITH_TORCH_SPARSE", False)
    told: list[str] = []
    with open_workload(
        _CONFIG, Communicator(), rounds=1, shards=shards, tell=told.append
    ) as workload:
        study = accuracy.run(workload, AccuracyOptions(0.5, _LIMITS, ("gcn", "sampled")))
    assert {row["contender"] for row in study.rows} == {accuracy.GCN}
    assert "pyg-lib or torch-sparse" in study.notes[0]
    assert study.notes[0] in told


def test_local_steps_that_auto_does_not_take_are_left_out(shards: Path) -> None:
    train = _CONFIG.train.model_copy(update={"local_steps": 0})
    config = _CONFIG.model_copy(update={"train": train})
    with open_workload(config, Communicator(), rounds=1, shards=shards) as workload:
        study = accuracy.run(workload, AccuracyOptions(0.5, _LIMITS, ("local", "gcn")))
    assert {row["contender"] for row in study.rows} == {accuracy.GCN}
    assert "set --train.local-steps N" in study.notes[0]


def _courses(comm: Communicator, shards: Path) -> list[tuple[Any, ...]]:
    only = ("sage", "clusters")
    with open_workload(_CONFIG, comm, rounds=1, shards=shards) as workload:
        study = accuracy.run(workload, AccuracyOptions(0.5, _LIMITS, only))
    keys = ("contender", "val_metric", "evaluations", "bytes_sent")
    return [tuple(row[key] for key in keys) for row in study.rows]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_train_the_same_networks_and_count_what_they_send(shards: Path) -> None:
    alone = _courses(Communicator(), shards)
    first, second = run_ranks(_courses, 2, shards, timeout=200)
    assert first == second
    for found, expected in zip(first, alone, strict=True):
        assert found[0] == expected[0]
        assert found[3] > 0 == expected[3]
        if found[0] != accuracy.CLUSTERED:  # whose batches are other ones
            assert found[1] == pytest.approx(expected[1], abs=0.02)
            assert found[2] == pytest.approx(expected[2])


def _course(name: str, *values: float, seconds: float = 1.0) -> Course:
    spent = [Effort(seconds * epoch, 2.0 * epoch, 10 * epoch) for epoch in range(1, 9)]
    points = [Point(e, s, v) for e, (s, v) in enumerate(zip(spent, values, strict=False), start=1)]
    return Course(name, points, test=0.5, ended="after 2 epochs")


def test_a_target_is_reached_in_the_first_epoch_that_has_it() -> None:
    quick, slow = _course("quick", 0.2, 0.7, 0.6), _course("slow", 0.1, 0.2, 0.3, 0.7, seconds=3.0)
    never = _course("never", 0.1, 0.2)
    reached = quick.reaching(0.6)
    assert reached is not None
    assert (reached.epoch, reached.spent.seconds) == (2, 2.0)
    assert quick.best is quick.points[1]
    assert never.reaching(0.6) is None
    assert accuracy.sooner(quick, slow, 0.6) == "6.00"
    assert accuracy.sooner(quick, never, 0.6) == "> 1.00"
    assert accuracy.sooner(never, quick, 0.6) == "-"
    figures = {(f.name, f.unit): f for f in accuracy._figures([never, quick], 0.6)}
    assert figures == {}  # neither is a baseline


def test_figures_stand_against_a_baseline_and_are_infinite_where_nothing_is_reached() -> None:
    base, never = _course(accuracy.EXACT, 0.2, 0.7), _course("never", 0.1)
    figures = {(f.name, f.section, f.unit): f for f in accuracy._figures([base, never], target=0.6)}
    assert figures["never", "to 0.6", "seconds"].value == math.inf
    assert figures["never", "to 0.6", "seconds"].ratio == 0.0
    assert figures["never", "validation error", "error"].ratio == pytest.approx(0.3 / 0.9)


class _Scripted:
    """A contender whose validations are given; a negative one fails."""

    def __init__(self, *values: float) -> None:
        self._values = list(values)

    def epoch(self) -> Effort:
        if self._values[0] < 0.0:
            raise UserError("epoch 3: the training loss is nan")
        return Effort(30.0, 1.0, 1)

    def validate(self) -> float:
        return self._values.pop(0)

    def test(self) -> float:
        return 0.4


@pytest.mark.parametrize(
    ("values", "limits", "epochs", "ended"),
    [
        ((0.1, 0.2, 0.3), Limits(9.0, 2, 9), 2, "after 2 epochs"),
        ((0.1, 0.2, 0.3), Limits(1.0, 9, 9), 2, "after 1 minutes"),
        ((0.3, 0.2, 0.3, 0.9), Limits(9.0, 9, 2), 3, "2 epochs without a better one"),
        ((0.3, 0.4, -1.0), Limits(9.0, 9, 9), 2, "epoch 3: the training loss is nan"),
    ],
)
def test_a_course_ends(values: tuple[float, ...], limits: Limits, epochs: int, ended: str) -> None:
    course = follow("scripted", _Scripted(*values), limits, Communicator(), tell_nobody)
    assert (len(course.points), course.ended, course.test) == (epochs, ended, 0.4)


@pytest.mark.skipif(
    isinstance(explicit_peers.missing_sampler(), str), reason="no library that samples neighbours"
)
def test_sampled_batches_are_trained_on(shards: Path) -> None:
    with open_workload(_CONFIG, Communicator(), rounds=1, shards=shards) as workload:
        study = accuracy.run(workload, AccuracyOptions(0.5, _LIMITS, ("sampled",)))
    assert [row["epoch"] for row in study.rows] == [1, 2]


def test_flags_of_other_benchmarks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", "--run", "runs/x"]) == 2
    assert "--run has no effect on accuracy" in capsys.readouterr().err
    assert main(["accuracy", "--only", "gnc"]) == 2
    assert "--only gnc must be 'local'" in capsys.readouterr().err
