"""Explicit networks beside the implicit model on one graph: what validation chooses counts."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest

from distributed_ignn.commands.reproduce import main
from distributed_ignn.config import parse_args
from distributed_ignn.lab.studies import rivals

SMALL = shlex.split("""
    --dataset heterophilous --device cpu --data.heterophilous.nodes 150
    --data.heterophilous.features 6 --data.heterophilous.signal 3
    --data.heterophilous.homophily 0.9 --model.hidden 8
    --train.epochs 2 --train.threads 1 --train.eval-every 1
    --schedule.warmup-epochs 1 --schedule.model-steps 3
""")


def test_all_models_are_trained_once_with_every_seed_and_compared(
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
    for row, folder in ((rows[-1], "seed1"), (rows[0], "GCN-seed0")):
        summary = json.loads((tmp_path / "runs" / folder / "summary.json").read_text())
        assert float(row["test"]) == summary["test_at_best_val"]
    statement = json.loads((tmp_path / "rivals.json").read_text())
    mean = 50 * sum(float(row["test"]) for row in rows if row["model"] == "GCN")
    assert statement["ours"]["GCN"]["test"].startswith(f"{mean:.1f} ± ")
    assert "accuracy in per cent" in printed
    assert (tmp_path / "rivals.png").stat().st_size > 1000
    assert "epoch 1/4" in printed
    assert main(["rivals", *SMALL, "--seeds", "0,1", "--out", str(tmp_path)]) == 0
    assert "epoch 1/4" not in capsys.readouterr().out


@pytest.mark.cheap
def test_a_rival_has_one_setting_whatever_the_implicit_model_has() -> None:
    flags = ["--train.label-smoothing", "0.1", "--data.knn", "3", "--train.metric", "macro_f1"]
    given = parse_args([*SMALL, *flags, "--forward.memory", "3", "--train.consistency", "1"])
    for name in rivals.RIVALS:
        config = rivals.settings_of_rival(name, given)
        plain = rivals.settings_of_rival(name, parse_args([*SMALL, "--train.metric", "macro_f1"]))
        assert config == plain
        assert config.data.heterophilous == given.data.heterophilous
        assert (config.model.hidden, config.train.epochs, config.train.patience) == (64, 300, 100)
        assert (config.train.metric, config.train.label_smoothing) == ("macro_f1", 0.0)
    assert rivals.settings_of_rival("APPNP", given).explicit.layers == 10
