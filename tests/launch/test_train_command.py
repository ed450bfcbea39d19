"""The training command: what it writes, alone and under torchrun, and what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed_ignn.commands.train import main
from distributed_ignn.config import absolute_paths, load_yaml, parse_args
from distributed_ignn.graph.storage.shard_store import read_manifest
from distributed_ignn.runs.checkpoints.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 100

UNSOLVED = shlex.split("""
    --dataset chains --device cpu --partition.method contiguous
    --data.chains.length 6 --data.chains.chains-per-class 15 --data.chains.features 5
    --data.chains.noise 0.5 --data.chains.train-fraction 0.2
    --model.hidden 8 --model.dropout 0
    --forward.tolerance 1e-11 --forward.max-steps 300
    --adjoint.tolerance 1e-11 --adjoint.max-steps 300
    --train.dtype float64 --train.epochs 5 --train.checkpoint-every 2 --train.threads 1
""")
"""A small run without what is to be said of its solver."""
SMALL = UNSOLVED + shlex.split("""
    --forward.method neural
    --solver.steps 4 --solver.hidden 4 --solver.compress 2 --solver.network mlp
    --solver.target-tolerance 1e-12
    --schedule.warmup-epochs 2 --schedule.warmup-solver-steps 2 --schedule.model-steps 2
""")
METRICS = {
    "epoch",
    "loss",
    "train_metric",
    "val_metric",
    "seconds",
    "evaluations_forward",
    "evaluations_adjoint",
    "residual",
    "bytes_sent",
}
SUMMARY = {
    "dataset",
    "nodes",
    "edges",
    "classes",
    "metric",
    "world_size",
    "device",
    "seed",
    "epochs",
    "best_epoch",
    "best_val",
    "test_at_best_val",
    "test_last",
    "seconds_total",
    "seconds_solver_training",
    "evaluations_forward_mean",
    "evaluations_adjoint_mean",
    "residual_last",
    "halo_bytes_per_exchange",
    "peak_memory_bytes",
    "memory_budget_bytes",
    "memory_bound_bytes",
    "parameters",
}


def _start(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program; at the time limit it ends with everything that it has started."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=kept | settings,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _records(output: Path) -> list[dict[str, Any]]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def _summary(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process, started as a user would."""
    output = tmp_path_factory.mktemp("alone") / "run"
    script = [sys.executable, str(ROOT / "launch" / "train.py")]
    found = _start([*script, *SMALL, "--output", str(output)])
    assert found.returncode == 0, found.stderr
    assert "chains: finished" in found.stdout
    return output


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run on two ranks."""
    output = tmp_path_factory.mktemp("torchrun") / "run"
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc-per-node", "2", str(ROOT / "launch" / "train.py")]
    found = _start([*starter, *script, *SMALL, "--output", str(output)])
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("chains: finished") == 1
    return output


@pytest.fixture(params=["alone", "torchrun"])
def output(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_settings_reload_equal(output: Path) -> None:
    asked = absolute_paths(parse_args([*SMALL, "--output", str(output)]))
    assert load_yaml(output / "config.yaml") == asked


def test_metrics_hold_one_object_per_epoch(output: Path) -> None:
    records = _records(output)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    for record in records:
        assert record.keys() >= METRICS
        assert record["seconds"] > 0
        assert record["evaluations_forward"] >= 1
        assert record["evaluations_adjoint"] >= 1
        assert 0 <= record["residual"] <= 1e-11
    assert [record["solver_steps"] for record in records] == [0, 0, 2, 0, 2]


def test_summary_has_the_promised_keys(output: Path) -> None:
    summary, records = _summary(output), _records(output)
    assert summary.keys() >= SUMMARY
    assert (summary["nodes"], summary["edges"], summary["classes"]) == (180, 150, 2)
    assert (summary["dataset"], summary["metric"], summary["device"]) == (
        "chains",
        "accuracy",
        "cpu",
    )
    assert summary["epochs"] == 5
    best = max(record["val_metric"] for record in records)
    first = next(record["epoch"] for record in records if record["val_metric"] == best)
    assert (summary["best_epoch"], summary["best_val"]) == (first, best)
    forward = [record["evaluations_forward"] for record in records]
    assert summary["evaluations_forward_mean"] == pytest.approx(sum(forward) / 5)
    assert 0 < summary["seconds_solver_training"] < summary["seconds_total"]
    # W, Omega_1, Omega_2, bias; readout
    assert summary["parameters"]["model"] == 64 + 2 * 5 * 8 + 8 + 8 * 2 + 2
    assert summary["parameters"]["initialiser"] == 2 * 8 + 8 * 2
    assert summary["parameters"]["solver"] > 0
    assert summary["peak_memory_bytes"] > 2**20


def test_checkpoints_and_events_are_there(output: Path) -> None:
    names = [path.name for path in list_checkpoints(output / "checkpoints")]
    assert names == ["epoch-000004", "epoch-000005"]
    assert len(list(output.glob("events.out.tfevents.*"))) == 1
    leftovers = [path for path in output.rglob("*") if path.name.endswith(".tmp")]
    assert leftovers == []


def test_two_ranks_send_and_one_does_not(alone: Path, torchrun: Path) -> None:
    assert (_summary(alone)["world_size"], _summary(torchrun)["world_size"]) == (1, 2)
    assert _summary(alone)["halo_bytes_per_exchange"] == 0
    assert all(record["bytes_sent"] == 0 for record in _records(alone))
    # contiguous parts of the chains: one chain at most is cut, and two rows travel
    (shards,) = (torchrun / "shards").iterdir()
    rows = read_manifest(shards, parts=2).statistics.halo_rows
    assert _summary(torchrun)["halo_bytes_per_exchange"] == rows * 8 * 8
    assert all(record["bytes_sent"] > 0 for record in _records(torchrun))


def test_two_ranks_train_as_one(alone: Path, torchrun: Path) -> None:
    for one, two in zip(_records(alone), _records(torchrun), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-9)
        assert two["val_metric"] == one["val_metric"]
    losses = [record["loss"] for record in _records(alone)]
    assert losses[-1] < losses[0]


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    return captured.err


def test_a_folder_with_a_run_is_refused_and_then_resumed(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (alone / "metrics.jsonl").read_bytes()
    line = _refused(capsys, *SMALL, "--output", alone)
    assert str(alone) in line
    assert "--resume auto" in line
    assert (alone / "metrics.jsonl").read_bytes() == before
    arguments = [*SMALL, "--output", str(alone), "--resume", "auto", "--train.epochs", "7"]
    arguments += ["--train.lr", "0.004"]
    with (alone / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 6, "los')  # as after a kill
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "resumed after epoch 5 of 7" in printed.out
    assert "from here on with other settings: train.lr = 0.004 (was " in printed.err
    assert printed.err.count(" (was ") == 1
    records = _records(alone)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert (alone / "metrics.jsonl").read_bytes().startswith(before)
    assert _summary(alone)["epochs"] == 7
    assert load_yaml(alone / "config.yaml").train.epochs == 7


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "²", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = '²'"),
        ({"RANK": "1", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}, "WORLD_SIZE = 'two'"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "few"},
            "LOCAL_WORLD_SIZE = 'few'",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
            "LOCAL_RANK = 1 in the environment is not below LOCAL_WORLD_SIZE = 1",
        ),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun has started 4 tasks"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun has started 2 tasks"),
    ],
)
def test_a_meaningless_rank_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    expected: str,
) -> None:
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in own:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert expected in _refused(capsys, "--dataset", "chains", "--device", "cpu")


def test_only_the_first_rank_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(["--dataset", "nothing"]) == 2
        assert capsys.readouterr().err.count("\n") == lines


@pytest.mark.parametrize(("epochs", "said"), [(2, True), (3, False)])
def test_a_solver_that_is_never_trained_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: int, said: bool
) -> None:
    """The warm-up takes two epochs."""
    assert main([*SMALL, "--train.epochs", str(epochs), "--output", str(tmp_path / "run")]) == 0
    line = f"the solver is not trained in {epochs} epochs, since its first phase comes after 2: "
    assert (line in capsys.readouterr().err) == said


def test_accuracy_stands_beside_another_metric(tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = ["--train.metric", "macro_f1", "--train.epochs", "1", "--output", str(output)]
    assert main([*SMALL, *arguments]) == 0
    summary = _summary(output)
    assert summary["metric"] == "macro_f1"
    assert 0.0 < summary["val_accuracy"] <= 1.0
    assert 0.0 < summary["test_accuracy"] <= 1.0
