"""Errors of Python's functions name settings as Python has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import distributed_ignn as di
from distributed_ignn.commands.train import main as train_command
from distributed_ignn.config import PartitionConfig
from distributed_ignn.config.keywords import in_python, told_in_python
from tests.api.small_data import small_data


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("add --train.on-bad-numbers rollback", "add train.on_bad_numbers = rollback"),
        ("lower --schedule.warmup-epochs, or", "lower schedule.warmup_epochs, or"),
        ("as in --data.split-train 0.2 (a share)", "as in data.split_train = 0.2 (a share)"),
        ("choose another --output, or go on", "choose another output, or go on"),
        ("name the --output of one", "name the output of one"),
        ("in a column id: --data.nodes nodes.csv", "in a column id: data.nodes = nodes.csv"),
        ("give it more with --steps N", "give it more with steps = N"),
    ],
)
def test_settings_are_named_as_in_python(message: str, expected: str) -> None:
    assert in_python(message, ["steps"]) == expected


@pytest.mark.parametrize(
    "message",
    [
        "write new ones with ignn partition --partition.clusters 4",
        "start 2, as with torchrun --nproc-per-node 2",
        "give it --network-gbit 400",
    ],
)
def test_commands_and_flags_that_are_no_settings_stay(message: str) -> None:
    assert in_python(message, ["steps"]) == message


def test_a_command_is_followed_by_a_setting() -> None:
    said = "run pip install 'ray[train]' --upgrade, or take --engine torch"
    assert in_python(said) == "run pip install 'ray[train]' --upgrade, or take engine = torch"


def test_a_lost_rank_too() -> None:
    @told_in_python()
    def train() -> None:
        raise di.JobError("lost; go on with --resume auto", told=True)

    with pytest.raises(di.JobError, match="lost; go on with resume = auto") as caught:
        train()
    assert caught.value.told


def test_fit_says_it_so_and_the_command_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"model.kind": "amgcn", "data.knn": 0}
    with pytest.raises(di.UserError, match=r"add data\.knn = 5"):
        di.fit(small_data(), settings)
    command = ["--dataset", "chains", "--model.kind", "amgcn", "--data.knn", "0"]
    assert train_command(command) == 2
    assert "add --data.knn 5" in capsys.readouterr().err


def test_a_graph_of_ones_own_says_it_so() -> None:
    data = small_data()
    data.y = None
    with pytest.raises(di.UserError, match=r"say which it is, as in data\.label = NAME"):
        di.DistributedGraph.divide(data, partition=PartitionConfig(method="contiguous"))


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            di.load,
            "load opens a folder; copy what is there .* or use ignn predict URL, which reads s3:",
        ),
        (di.DistributedGraph.open, "open reads shards in a folder; copy .* every machine and open"),
        (di.fit, "fit reads a graph by its path; copy the file .* or train with ignn train$"),
        (di.Run(Path("absent")).predict, "predict reads a graph by its path; copy the file"),
        (di.Run(Path("absent")).embeddings, "predict reads a graph by its path; copy the file"),
    ],
)
def test_a_url_is_refused_with_a_way_out(call: Callable[[str], object], line: str) -> None:
    for url in ("s3://bucket/run", "https://host/graph.npz"):
        with pytest.raises(di.UserError, match=f"^{url} is a URL, and {line}"):
            call(url)


def test_a_folder_without_a_run_says_it_so(tmp_path: Path) -> None:
    with pytest.raises(di.UserError, match="name the output of one"):
        di.load(tmp_path)
