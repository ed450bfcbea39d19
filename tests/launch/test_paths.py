"""Paths mean the same to every command, however they are spelled and wherever a process runs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from distributed_ignn.commands.partition import main as partition
from distributed_ignn.commands.train import main as train
from distributed_ignn.config import RunConfig, absolute_paths, load_yaml


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a graph of eight nodes in ``mine.npz``."""
    monkeypatch.chdir(tmp_path)
    nodes = np.arange(8)
    np.savez(
        "mine.npz",
        edge_index=np.stack([nodes, (nodes + 1) % 8]),  # directed
        x=np.eye(8, dtype=np.float32),
        y=nodes % 2,
        train_idx=nodes[:4],
        val_idx=nodes[4:6],
        test_idx=nodes[6:],
    )
    return tmp_path


def test_paths_no_longer_depend_on_the_folder(here: Path) -> None:
    raw = {
        "dataset": "mine.npz",
        "output": "out",
        "partition": {"dir": "parts"},
        "resume": "auto",
        "engine": "deepspeed",
        "deepspeed_config": "ds.json",
    }
    run = absolute_paths(RunConfig.model_validate(raw))
    assert run.dataset == str(here / "mine.npz")
    assert run.output == here / "out"
    assert run.data_root == here / "data"
    assert run.partition.dir == here / "parts"
    assert (run.resume, run.deepspeed_config) == ("auto", here / "ds.json")
    own = {"dataset": "file", "data": {"path": "mine.npz"}, "resume": "runs/c"}
    run = absolute_paths(RunConfig.model_validate(own))
    assert (run.dataset, run.data.path, run.resume) == ("file", here / "mine.npz", here / "runs/c")
    assert absolute_paths(run) == run


def test_every_spelling_of_a_path_is_one(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "elsewhere" / "deep").mkdir(parents=True)
    (here / "link").symlink_to(here / "elsewhere" / "deep")
    for name in ("mine.npz", "./mine.npz", "sub/../mine.npz", str(here / "mine.npz")):
        assert absolute_paths(RunConfig(dataset=name)).dataset == str(here / "mine.npz")
    # a link leads on only where the path climbs out of it
    found = absolute_paths(RunConfig(dataset="link/../mine.npz")).dataset
    assert found == str(here / "elsewhere" / "mine.npz")
    assert absolute_paths(RunConfig(dataset="link/x.npz")).dataset == str(here / "link" / "x.npz")


def test_shards_fit_a_run_that_spells_the_file_otherwise(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert partition(["--dataset", "mine.npz", "--parts", "1", "--out", "parts"]) == 0
    # what reading the file has to say is shown, once
    line = f"{here / 'mine.npz'}: 100.0 % of the edges have no way back; "
    assert capsys.readouterr().err.count(line) == 1
    small = ["--device", "cpu", "--train.epochs", "1", "--train.threads", "1"]
    arguments = [*small, "--partition.dir", "parts", "--output", "out"]
    assert train(["--dataset", "./mine.npz", *arguments]) == 0
    assert "results: out\n" in capsys.readouterr().out
    config = load_yaml(here / "out" / "config.yaml")
    assert (config.output, config.partition.dir) == (here / "out", here / "parts")
    os.link("mine.npz", "other.npz")
    assert train(["--dataset", "other.npz", *arguments[:-1], "other"]) == 2
    assert f"dataset = {here / 'mine.npz'}, not {here / 'other.npz'}" in capsys.readouterr().err
