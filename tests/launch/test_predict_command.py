"""The predict command: the run's own numbers again, on any number of ranks."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.predict import main
from distributed_ignn.config import load_yaml, parse_args
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.runs.node_rows import NodeRows
from distributed_ignn.runs.predict import PredictOptions, predict
from distributed_ignn.runs.prediction import Prediction
from distributed_ignn.runs.prediction_file import METADATA_KEY, write_predictions
from distributed_ignn.runs.run import run_training
from distributed_ignn.runs.shard_record import read_record
from tests.launch.test_train_command import SMALL
from tests.ranks import run_ranks

# a patience that ends the run between two checkpoints
HASTY = ["--train.epochs", "40", "--train.patience", "3", "--train.checkpoint-every", "25"]


def _train_and_predict(comm: Communicator, folder: Path) -> dict[str, Any]:
    run_training(parse_args([*SMALL, "--output", str(folder / "two")]), comm)
    options = PredictOptions(folder / "two", folder / "two.parquet")
    solution = predict(options, comm)
    return {"steps": solution.evaluations, "converged": solution.converged}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one and of two ranks, and the predictions of the two ranks."""
    folder = tmp_path_factory.mktemp("predict")
    reports = run_ranks(_train_and_predict, 2, folder, timeout=110)
    assert reports[0] == reports[1]
    assert reports[0]["converged"]
    for name, arguments in (("one", []), ("hasty", HASTY)):
        config = parse_args([*SMALL, *arguments, "--output", str(folder / name)])
        run_training(config, Communicator())
    return folder


def _predict(run: Path, out: Path, *arguments: str) -> dict[str, np.ndarray]:
    options: Sequence[str] = ["--out", str(out), str(run), "--device", "cpu"]
    assert main([*options, *arguments]) == 0
    return _read(out)


def _read(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    assert table.column_names == ["node", "prediction", "probabilities"]
    return {
        "node": table["node"].to_numpy(),
        "prediction": table["prediction"].to_numpy(),
        "probabilities": np.stack(table["probabilities"].to_numpy()),
    }


def _quality(path: Path) -> dict[str, Any]:
    """What the file says about the solve behind it."""
    found: dict[str, Any] = json.loads(pq.read_schema(path).metadata[METADATA_KEY.encode()])
    return found


def _data(run: Path) -> GraphData:
    config = load_yaml(run / "config.yaml")
    return load_dataset(config.dataset, config.data_root, config.data)


@pytest.mark.parametrize("name", ["one", "two", "hasty"])
def test_predictions_repeat_the_summary(folder: Path, tmp_path: Path, name: str) -> None:
    run = folder / name
    summary = json.loads((run / "summary.json").read_text())
    if name == "hasty":
        assert summary["best_epoch"] < summary["epochs"] < 25
    assert 0.5 < summary["test_at_best_val"] < 1.0
    data = _data(run)
    found = _predict(run, tmp_path / "new" / "p.parquet")
    assert found["node"].tolist() == list(range(data.num_nodes))
    probabilities = found["probabilities"]
    assert probabilities.shape == (data.num_nodes, 2)
    assert np.allclose(probabilities.sum(axis=1), 1.0, rtol=0, atol=1e-6)
    assert probabilities.min() >= 0.0
    assert probabilities.std(axis=0).min() > 1e-3
    assert np.array_equal(found["prediction"], probabilities.argmax(axis=1))
    hits = found["prediction"] == data.labels.numpy()
    for split, key in ((data.test_nodes, "test_at_best_val"), (data.val_nodes, "best_val")):
        assert hits[split.numpy()].mean() == summary[key]


def test_every_kind_of_file_says_the_same(folder: Path, tmp_path: Path) -> None:
    parquet = _predict(folder / "one", tmp_path / "p.parquet")
    for kind in ("csv", "npz"):
        out = tmp_path / f"p.{kind}"
        assert main([str(folder / "one"), "--out", str(out), "--device", "cpu"]) == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["node", "prediction", "probability_0", "probability_1"]
    table = np.array(rows, dtype=np.float64)
    assert np.array_equal(table[:, :2].T, [parquet["node"], parquet["prediction"]])
    assert np.array_equal(table[:, 2:].astype(np.float32), parquet["probabilities"])
    arrays = np.load(tmp_path / "p.npz", allow_pickle=False)
    for name, expected in parquet.items():
        assert np.array_equal(arrays[name], expected)
    quality = _quality(tmp_path / "p.parquet")
    assert quality["converged"]
    assert json.loads((tmp_path / "p.csv.json").read_text()) == quality
    assert json.loads(str(arrays[METADATA_KEY])) == quality


def test_several_labels_of_a_node_are_kept(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, -1.0, 3.0], [-1.0, -2.0, -3.0]])
    found = Prediction(
        logits, True, None, 1, 0, 0.0, 1.0, None, None, None, None, None, "micro_f1", {}, False
    )
    for kind in ("csv", "npz", "parquet"):
        write_predictions(tmp_path / f"p.{kind}", found, NodeRows.of_one(logits))
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == ["0 2", ""]
    chosen = np.load(tmp_path / "p.npz", allow_pickle=False)["prediction"]
    assert chosen.tolist() == [[True, False, True], [False, False, False]]
    assert pq.read_table(tmp_path / "p.parquet")["prediction"].to_pylist() == [[0, 2], []]


def test_one_rank_predicts_from_the_shards_of_two(folder: Path, tmp_path: Path) -> None:
    merged = _predict(folder / "two", tmp_path / "merged.parquet")
    two, one = _read(folder / "two.parquet"), _predict(folder / "one", tmp_path / "one.parquet")
    for other in (two, one):
        assert np.array_equal(merged["node"], other["node"])
        assert np.allclose(merged["probabilities"], other["probabilities"], rtol=0, atol=1e-6)
    assert not np.allclose(merged["probabilities"][0], merged["probabilities"][-1])


def test_a_run_resumed_on_another_number_of_ranks_predicts(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder / "two", tmp_path / "run"))
    assert read_record(run).parts == 2
    config = parse_args([*SMALL, "--output", str(run), "--resume", "auto", "--train.epochs", "6"])
    summary = run_training(config, Communicator())
    assert summary["epochs"] == 6
    assert read_record(run).parts == 1
    assert len(list((run / "shards").iterdir())) == 2
    found = _predict(run, tmp_path / "p.parquet")
    data = _data(run)
    hits = found["prediction"] == data.labels.numpy()
    assert hits[data.test_nodes.numpy()].mean() == summary["test_at_best_val"]


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_steps_are_exactly_so_many_evaluations(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    options = PredictOptions(folder / "one", tmp_path / "p.parquet", steps=steps)
    assert predict(options, Communicator()).evaluations == steps
    printed = capsys.readouterr().out
    assert "did not reach its tolerance" not in printed


def test_tolerance_decides_how_far_a_solve_goes(folder: Path, tmp_path: Path) -> None:
    steps = []
    for tolerance in (1e-1, 1e-6):
        options = PredictOptions(folder / "one", tmp_path / "p.parquet", tolerance=tolerance)
        solution = predict(options, Communicator())
        assert solution.converged
        assert solution.residual <= tolerance
        steps.append(solution.evaluations)
    assert steps[0] < steps[1]


def test_an_unconverged_solve_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _predict(folder / "one", tmp_path / "p.parquet")
    assert capsys.readouterr().err == ""
    good = _quality(tmp_path / "p.parquet")
    assert good["converged"]
    assert good["residual"] <= good["tolerance"] <= 1e-11
    for arguments in (["--tolerance", "1e-300"], ["--steps", "1"]):
        _predict(folder / "one", tmp_path / "p.parquet", *arguments)
        found = capsys.readouterr()
        assert "warning: the predictions come from a solve that did not reach" in found.err
        assert "NOT REACHED" in found.out
        assert not _quality(tmp_path / "p.parquet")["converged"]
    rough = _quality(tmp_path / "p.parquet")
    assert rough["evaluations"] == 1
    assert rough["residual"] > rough["tolerance"]
    assert rough["certified_distance"] > 100 * good["certified_distance"] > 0
    assert good["contraction"] == rough["contraction"] < 1
    assert good["norm"] == "max_ij |Z_ij| / w_i"
    assert good["settled_nodes"] == _data(folder / "one").num_nodes


def test_nothing_is_written_unless_it_converged_if_that_is_required(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--run", folder / "one", "--device", "cpu", "--require-converged", "--out"]
    line = _refused(capsys, *options, tmp_path / "p.parquet", "--steps", "1")
    assert "has not converged (relative residual" in line
    assert "--require-converged" in line
    assert list(tmp_path.iterdir()) == []
    _predict(folder / "one", tmp_path / "p.parquet", "--require-converged")
    assert _quality(tmp_path / "p.parquet")["converged"]


def test_two_ranks_certify_what_one_does(folder: Path, tmp_path: Path) -> None:
    two = _quality(folder / "two.parquet")
    _predict(folder / "two", tmp_path / "p.parquet")
    one = _quality(tmp_path / "p.parquet")
    assert two["certified_distance"] == pytest.approx(one["certified_distance"], rel=0.5)
    assert two["contraction"] == pytest.approx(one["contraction"], rel=1e-9)
    assert two["settled_nodes"] == one["settled_nodes"]


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_folder_without_a_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _refused(capsys, "--run", tmp_path, "--out", tmp_path / "p.parquet")
    assert f"{tmp_path} is not a run folder" in line
    assert not (tmp_path / "p.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "p"], "RUN is missing; name one, as in ignn predict runs/acm"),
        (["--run", "r", "--out", "p", "--steps", "0"], "--steps 0 must be at least 1"),
        (["--run", "r", "--out", "p", "--tolerance", "2"], "between 0 and 1"),
        (["--run", "r", "--out", "p", "--tolerance", "0.1", "--steps", "2"], "one of them"),
        (["r", "--run", "s", "--out", "p"], "r and --run s name two of the same"),
        (["r", "s", "--out", "p"], "unexpected argument 's'"),
        (["--run", "r", "--out", "p", "--stepz", "2"], "--steps"),
        (["r", "--out", "p.xlsx"], "out = p.xlsx says no kind of file; end it in .parquet, .csv,"),
    ],
)
def test_wrong_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert expected in _refused(capsys, *arguments)
