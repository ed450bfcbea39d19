"""Explicit networks beside the implicit model on one graph: what validation chooses counts."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.reproduce import main
from distributed_ignn.config import parse_args
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.lab.studies import rivals
from distributed_ignn.lab.studies.outcome import Request
from distributed_ignn.training.losses.objective import Objective

SMALL = shlex.split("""
    --dataset heterophilous --device cpu --data.heterophilous.nodes 150
    --data.heterophilous.features 6 --data.heterophilous.signal 3
    --data.heterophilous.homophily 0.9 --model.hidden 8
    --train.epochs 2 --train.threads 1 --train.eval-every 1
    --schedule.warmup-epochs 1 --schedule.model-steps 3
""")


def test_all_models_are_trained_with_every_seed_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "EPOCHS", 4)
    assert main(["rivals", *SMALL, "--seeds", "0,1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    with (tmp_path / "rivals.csv").open() as file:
        rows = list(csv.DictReader(file))
    models = [*rivals.RIVALS, rivals.IMPLICIT]
    assert [(row["model"], row["seed"]) for row in rows] == [(m, s) for m in models for s in "01"]
    assert all(int(row["best_epoch"]) <= int(row["epochs"]) <= 4 for row in rows)
    summary = json.loads((tmp_path / "runs" / "seed1" / "summary.json").read_text())
    assert float(rows[-1]["test"]) == summary["test_at_best_val"]
    statement = json.loads((tmp_path / "rivals.json").read_text())
    mean = 50 * sum(float(row["test"]) for row in rows if row["model"] == "GCN")
    assert statement["ours"]["GCN"]["test"].startswith(f"{mean:.1f} ± ")
    assert "accuracy in per cent" in printed
    assert (tmp_path / "rivals.png").stat().st_size > 1000


@pytest.mark.cheap
@pytest.mark.parametrize("name", list(rivals.RIVALS))
def test_a_rival_learns_and_its_test_nodes_are_read_once_where_validation_is_best(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "EPOCHS", 25)
    read: list[tuple[str, float]] = []
    measure = Objective.metrics

    def noted(self: Objective, logits: Tensor, splits: tuple[str, ...]) -> dict[str, float]:
        found = measure(self, logits, splits)
        read.extend(found.items())
        return found

    monkeypatch.setattr(Objective, "metrics", noted)
    config = parse_args(SMALL)
    graph = rivals._whole(config, Communicator())
    ended = rivals.train_rival(name, graph, config, 0)
    assert [split for split, _ in read] == ["val"] * 25 + ["test"]
    figures = [value for split, value in read if split == "val"]
    assert ended.val == max(figures) == figures[ended.best_epoch - 1]
    assert ended.val > 0.45  # five classes: chance is .2
    again = rivals.train_rival(name, graph, config, 0)
    assert (again.val, again.test) == (ended.val, ended.test)


@pytest.mark.cheap
def test_a_rival_ends_when_validation_gets_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "PATIENCE", 2)
    monkeypatch.setattr(Objective, "metrics", lambda self, logits, splits: {splits[0]: 0.5})
    config = parse_args(SMALL)
    ended = rivals.train_rival("MLP", rivals._whole(config, Communicator()), config, 0)
    assert (ended.best_epoch, ended.epochs) == (1, 3)


@pytest.mark.cheap
def test_what_rivals_cannot_do_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_args(SMALL)

    two = Communicator()
    two.world_size = 2
    with pytest.raises(UserError, match="start it without torchrun"):
        rivals.run(Request(config, (0,), tmp_path), two)
    data = load_dataset(config.dataset, Path(), config.data)
    bare = dataclasses.replace(data, features=None)
    monkeypatch.setattr(rivals, "load_dataset", lambda *given: bare)
    with pytest.raises(UserError, match="rivals needs features, and heterophilous has none"):
        rivals.run(Request(config, (0,), tmp_path), Communicator())
