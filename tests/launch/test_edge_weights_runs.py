"""Runs on a graph whose edges have weights: any number of ranks, predictions, what is ignored."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import parse_args
from distributed_ignn.errors import UserError
from distributed_ignn.graph.storage.shard_store import read_manifest
from distributed_ignn.runs.predict import PredictOptions, predict
from distributed_ignn.runs.run import run_training
from distributed_ignn.runs.shard_record import read_record
from launch.partition import main as partition
from launch.plan import main as plan
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

N = 60
SMALL = shlex.split("""
    --device cpu --partition.objective cut --partition.edge-weights true
    --model.hidden 8 --model.input-dropout 0.2 --forward.method neural
    --forward.tolerance 1e-10 --forward.max-steps 60 --model.kappa 0.7
    --adjoint.tolerance 1e-10 --adjoint.max-steps 60 --solver.compress 2
    --schedule.warmup-epochs 1 --schedule.model-steps 1
    --train.dtype float64 --train.epochs 3 --train.checkpoint-every 2 --train.threads 1
""")
FREE = [word for word in SMALL if word not in ("--partition.edge-weights", "true")]


def _graph(folder: Path, name: str, weights: str | None) -> str:
    """A ring with chords, both directions; heavy between nodes of one class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, N)
    ring = np.stack([np.arange(N), (np.arange(N) + 1) % N])
    pairs = np.concatenate([ring, rng.integers(0, N, (2, 90))], axis=1)
    pairs = np.unique(np.sort(pairs[:, pairs[0] != pairs[1]], axis=0), axis=1)
    each = np.where(y[pairs[0]] == y[pairs[1]], 4.0, 0.1) * (0.5 + rng.random(pairs.shape[1]))
    order = rng.permutation(N)
    arrays: dict[str, Any] = {
        "edge_index": np.concatenate([pairs, pairs[::-1]], axis=1),
        "x": (np.eye(3)[y] + rng.standard_normal((N, 3))).astype(np.float32),
        "y": y,
        "train_idx": order[:20],
        "val_idx": order[20:40],
        "test_idx": order[40:],
    }
    if weights is not None:
        arrays["edge_weight"] = np.tile(each if weights == "own" else np.ones_like(each), 2)
    np.savez(folder / f"{name}.npz", **arrays)
    return str(folder / f"{name}.npz")


def _train(comm: Communicator, path: str, output: Path, arguments: Sequence[str]) -> dict[str, Any]:
    settings = ["--dataset", path, *arguments, "--output", str(output)]
    return run_training(parse_args(settings), comm)


def _train_and_predict(comm: Communicator, path: str, output: Path) -> None:
    _train(comm, path, output, SMALL)
    predict(PredictOptions(output, output.with_suffix(".parquet")), comm)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one and of two ranks on the same weighted graph, with their predictions."""
    folder = tmp_path_factory.mktemp("weights")
    path = _graph(folder, "mine", "own")
    _train_and_predict(Communicator(), path, folder / "ranks-1")
    run_ranks(_train_and_predict, 2, path, folder / "ranks-2", timeout=100)
    return folder


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]


def _probabilities(path: Path) -> np.ndarray:
    return np.stack(pq.read_table(path)["probabilities"].to_numpy())


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_train_and_predict_what_one_does(folder: Path, ranks: int) -> None:
    if not (folder / f"ranks-{ranks}").exists():
        path = str(folder / "mine.npz")
        run_ranks(_train_and_predict, ranks, path, folder / f"ranks-{ranks}", timeout=150)
    one, many = _metrics(folder / "ranks-1"), _metrics(folder / f"ranks-{ranks}")
    assert len(one) == len(many) == 3
    for left, right in zip(one, many, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-9)
        assert left["val_metric"] == right["val_metric"]
    manifest = read_manifest(read_record(folder / f"ranks-{ranks}").path(folder / f"ranks-{ranks}"))
    assert manifest.whole.weighted == (True,)
    assert manifest.statistics.halo_rows > 0
    alone = _probabilities(folder / "ranks-1.parquet")
    assert np.allclose(alone, _probabilities(folder / f"ranks-{ranks}.parquet"), rtol=0, atol=1e-7)


def test_one_rank_predicts_from_the_shards_of_two(folder: Path, tmp_path: Path) -> None:
    predict(PredictOptions(folder / "ranks-2", tmp_path / "p.parquet"), Communicator())
    merged, two = (_probabilities(p) for p in (tmp_path / "p.parquet", folder / "ranks-2.parquet"))
    assert np.allclose(merged, two, rtol=0, atol=1e-7)
    content = pq.read_schema(tmp_path / "p.parquet").metadata[b"distributed_ignn"]
    assert json.loads(content)["certified_distance"] < 1e-6


def test_weights_change_the_run_and_ignored_ones_or_ones_do_not(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit for bit."""
    comm = Communicator()
    runs = {
        "none": (_graph(folder, "none", None), []),
        "ones": (_graph(folder, "ones", "ones"), []),
        "ignored": (str(folder / "mine.npz"), ["--data.edge-weights", "ignore"]),
        "own": (str(folder / "mine.npz"), []),
    }
    with caplog.at_level("INFO"):
        for name, (path, arguments) in runs.items():
            _train(comm, path, tmp_path / name, [*FREE, *arguments])
    assert "edge_weight is ignored, every edge weighs 1" in caplog.text
    found = {name: _metrics(tmp_path / name) for name in runs}
    assert found["none"] == found["ones"] == found["ignored"]
    assert abs(found["own"][-1]["loss"] - found["none"][-1]["loss"]) > 1e-3


def test_a_run_goes_on_with_its_weights_alone(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder / "ranks-1", tmp_path / "run"))
    more = [*SMALL, "--resume", "auto", "--train.epochs", "4"]
    path, comm = str(folder / "mine.npz"), Communicator()
    summary = _train(comm, path, run, more)
    assert (summary["epochs"], len(_metrics(run))) == (4, 4)
    other = [*FREE, "--resume", "auto", "--train.epochs", "5", "--data.edge-weights", "ignore"]
    with pytest.raises(UserError, match="1 channels with edge weights, here 0") as caught:
        _train(comm, path, run, other)
    assert "\n" not in str(caught.value)


def test_shards_without_weights_are_not_those_that_must_have_some(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _graph(folder, "ones", "ones")
    shards = ["--partition.method", "contiguous"]
    given = ["--dataset", path, "--parts", "1", "--out", str(tmp_path / "s")]
    assert partition([*given, *shards]) == 0
    capsys.readouterr()
    use = ["--partition.dir", str(tmp_path / "s"), "--data.edge-weights", "use", *FREE]
    with pytest.raises(UserError, match="have no weights"):
        _train(Communicator(), path, tmp_path / "run", use)


def test_the_partition_command_says_what_its_cut_weighs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cuts = {}
    for name, asked in (("heavy", "true"), ("plain", "false")):
        arguments = f"--dataset {folder}/mine.npz --parts 3 --out {tmp_path}/{name}"
        arguments += f" --partition.objective cut --partition.edge-weights {asked}"
        assert partition(arguments.split()) == 0
        cuts[name] = read_manifest(tmp_path / name).statistics.cut_weight
        assert "cut weight" in capsys.readouterr().out
    assert cuts["heavy"] is not None
    assert cuts["plain"] is not None
    assert cuts["heavy"] < 0.8 * cuts["plain"]
    assert plan(["--shards", str(tmp_path / "heavy"), "--ranks", "3"]) == 0
