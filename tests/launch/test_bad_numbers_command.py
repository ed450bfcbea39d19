"""Runs whose numbers go bad, started as a user starts them."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.predict import main as predict_main
from distributed_ignn.commands.train import main
from distributed_ignn.config import parse_args
from distributed_ignn.runs.checkpoints.checkpoint import list_checkpoints
from distributed_ignn.runs.predict import PredictOptions, predict
from distributed_ignn.runs.run import run_training
from distributed_ignn.solvers.base import Outcome, Solution
from distributed_ignn.training.engines.torch import Check, TorchEngine
from distributed_ignn.training.epoch_record import EpochRecord
from distributed_ignn.training.plans import EVALUATE, SolveLog
from tests.launch.test_train_command import ROOT, SMALL, UNSOLVED, _records, _start, _summary

# explodes in the second epoch; a thousandth of the learning rate does not
EXPLODING = [*SMALL, "--train.lr", "1e4"]
ROLLBACK = ["--train.on-bad-numbers", "rollback", "--train.rollback-lr-factor", "1e-5"]


def _torchrun(output: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit code and standard error of two ranks; none of them is left."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc-per-node", "2", str(ROOT / "launch" / "train.py")]
    found = _start([*starter, *script, *EXPLODING, *arguments, "--output", str(output)])
    logs = [path.read_text().splitlines() for path in sorted((output / "logs").iterdir())]
    pids = {json.loads(line)["pid"] for lines in logs for line in lines}
    assert len(logs) == len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    messages = [
        [r["message"] for r in map(json.loads, lines) if r["level"] == "warning"] for lines in logs
    ]
    assert messages[0] == messages[1]
    return found.returncode, found.stderr.splitlines()


CAUSE = "epoch 2: the training loss is "


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_ranks_stop(tmp_path: Path) -> None:
    code, lines = _torchrun(tmp_path / "stop")
    assert code != 0
    assert next(line for line in lines if line.startswith("error:")).startswith(f"error: {CAUSE}")
    assert any("exitcode  : 2" in line for line in lines)
    # torchrun's own
    assert sum("Traceback" in line for line in lines) == 1
    assert [record["epoch"] for record in _records(tmp_path / "stop")] == [1]


@pytest.mark.long  # tests/training/test_numbers.py has two ranks that skip
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_ranks_skip(tmp_path: Path) -> None:
    skip = "--train.on-bad-numbers", "skip", "--train.max-bad-steps", "2"
    code, lines = _torchrun(tmp_path / "skip", *skip)
    assert code != 0
    warnings = [line for line in lines if line.startswith("warning:")]
    assert len(warnings) == 2
    assert all(line.endswith("(epoch skipped)") for line in warnings)
    assert any(line.startswith("error: epoch 4: ") for line in lines)
    records = _records(tmp_path / "skip")
    assert [(r["epoch"], r["skipped"], r["loss"] is None) for r in records] == [
        (1, False, False),
        (2, True, True),
        (3, True, True),
    ]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_ranks_go_back(tmp_path: Path) -> None:
    code, lines = _torchrun(tmp_path / "rollback", *ROLLBACK)
    assert code == 0
    warnings = [line for line in lines if line.startswith("warning:")]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: {CAUSE}")
    assert warnings[0].endswith("(back to epoch 0, with train.lr = 0.1)")
    _check_rolled_back(tmp_path / "rollback")


def _check_rolled_back(output: Path) -> None:
    records = _records(output)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(record["loss"]) for record in records)
    assert {record["rollbacks"] for record in records} == {1}
    summary = _summary(output)
    assert (summary["rollbacks"], summary["epochs_skipped"]) == (1, 0)
    assert summary["lr_last"] == pytest.approx(0.1)
    assert summary["converged"]


class _KilledError(Exception):
    """Stands for a kill: nothing is tidied up for it."""


def test_a_run_killed_after_a_rollback_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    """It has one checkpoint, the initial state with a smaller step."""
    arguments = [*EXPLODING, *ROLLBACK, "--train.checkpoint-every", "10"]

    def kill(record: EpochRecord, checkpoint: Path | None) -> None:
        if record.epoch == 3:
            raise _KilledError

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_training(parse_args([*arguments, "--output", str(whole)]), Communicator())
    _check_rolled_back(whole)
    with pytest.raises(_KilledError):
        run_training(parse_args([*arguments, "--output", str(killed)]), Communicator(), kill)
    assert [path.name for path in list_checkpoints(killed / "checkpoints")] == ["epoch-000000"]
    again = [*arguments, "--output", str(killed), "--resume", "auto"]
    run_training(parse_args(again), Communicator())
    assert _timeless(killed) == _timeless(whole)
    # it did not have to find out again
    log = (killed / "logs" / "rank-00000.jsonl").read_text()
    assert log.count("back to epoch 0") == 1


@pytest.mark.parametrize("background", ["false", "true"])
def test_a_rollback_keeps_what_was_good(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    background: str,
) -> None:
    """One bad gradient in epoch 4, after the checkpoint of epoch 2: two epochs are repeated."""
    step, calls = TorchEngine.step, [0]

    def spoiled(engine: TorchEngine, share: Tensor, check: Check) -> None:
        calls[0] += 1
        step(engine, share * (math.nan if calls[0] == 4 else 1.0), check)

    monkeypatch.setattr(TorchEngine, "step", spoiled)
    output = tmp_path / "run"
    settings = ["--train.on-bad-numbers", "rollback", "--train.rollback-kappa-factor", "0.8"]
    settings += ["--train.async-checkpoints", background]
    assert main([*SMALL, *settings, "--output", str(output)]) == 0
    assert calls[0] == 4 + 3
    warning = capsys.readouterr().err
    assert "epoch 4: the backward solve diverges" in warning
    assert "(back to epoch 2, with train.lr = 0.005 and kappa times 0.8)" in warning
    records = _records(output)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["rollbacks"] for record in records] == [0, 0, 1, 1, 1]
    assert _summary(output)["contraction"] in (0.98, pytest.approx(0.8 * 0.98))
    # predictions are made under the bound that the weights were trained with
    assert predict(PredictOptions(output, tmp_path / "p.parquet"), Communicator()).converged


def test_a_rollback_passes_over_epochs_whose_solves_did_not_converge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of epochs 3 and 4 stop short and epoch 5 has a bad gradient: back to epoch 2."""
    step, calls = TorchEngine.step, [0]

    def spoiled(engine: TorchEngine, share: Tensor, check: Check) -> None:
        calls[0] += 1
        step(engine, share * (math.nan if calls[0] == 5 else 1.0), check)

    add = SolveLog.add

    def short(log: SolveLog, purpose: str, solution: Solution) -> None:
        unfinished = calls[0] in (3, 4) and purpose == EVALUATE
        add(log, purpose, replace(solution, outcome=Outcome.MAX_STEPS) if unfinished else solution)

    monkeypatch.setattr(TorchEngine, "step", spoiled)
    monkeypatch.setattr(SolveLog, "add", short)
    output = tmp_path / "run"
    settings = ["--train.on-bad-numbers", "rollback", "--train.checkpoint-every", "1"]
    assert main([*SMALL, *settings, "--output", str(output), "--train.keep-checkpoints", "1"]) == 0
    assert "(back to epoch 2, with train.lr = 0.005)" in capsys.readouterr().err
    records = _records(output)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["converged"] for record in records] == [True] * 5  # those of the second course
    assert calls[0] == 5 + 3


def _timeless(output: Path) -> list[dict[str, Any]]:
    """All that a second run must repeat."""
    return [
        {k: v for k, v in record.items() if not k.endswith("seconds")}
        for record in _records(output)
    ]


def test_features_that_overflow_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finite as they are stored, so that the loader lets them pass; their squares are not."""
    nodes = np.arange(40)
    features = np.ones((40, 4), dtype=np.float32)
    features[7] = 1e37
    masks = {
        f"{name}_mask": nodes % 4 == part for part, name in enumerate(("train", "val", "test"))
    }
    edges = np.stack([nodes, (nodes + 1) % 40])
    path = tmp_path / "graph.npz"
    np.savez(path, edge_index=edges, x=features, y=nodes % 2, **masks)
    output = tmp_path / "run"
    arguments = ["--dataset", str(path), "--device", "cpu", "--output", str(output)]
    plain = ["--data.feature-norm", "none", "--model.input-dropout", "0"]
    assert main([*arguments, *plain, "--train.epochs", "2"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert line.startswith("error: epoch 1: the forward solve diverges in 1 evaluation; largest: ")
    assert line.endswith(f"features on rank 0 (1e+37); correct the dataset ({path})")


def test_an_unconverged_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    limits = ["--forward.max-steps", "5", "--forward.tolerance", "1e-13", "--train.epochs", "2"]
    assert main([*SMALL, *limits, "--output", str(output)]) == 0
    captured = capsys.readouterr()
    summary = _summary(output)
    assert summary["converged"] is False
    assert summary["epochs_unconverged"] == 2
    assert summary["residual_last"] > summary["tolerance"] == 1e-13
    assert "NOT CONVERGED to 1e-13" in captured.out
    (line,) = [x for x in captured.err.splitlines() if x.startswith("warning: ")]
    assert line.startswith("warning: the final metrics (relative residual ")
    assert "and the validation of 2 epochs came from solves that did not reach" in line
    assert line.endswith("raise forward.max_steps = 5, or the tolerance")
    assert [record["converged"] for record in _records(output)] == [False, False]


def test_a_diverging_solve_leaves_no_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights without a bound, trained with solves too short to show where they lead."""
    output, out = tmp_path / "run", tmp_path / "p.parquet"
    free = [
        "--model.constraint",
        "none",
        "--forward.method",
        "picard",
        "--adjoint.method",
        "picard",
    ]
    short = ["--forward.max-steps", "4", "--adjoint.max-steps", "4", "--train.explode-factor", "0"]
    assert main([*UNSOLVED, *free, *short, "--train.lr", "0.3", "--output", str(output)]) == 0
    command = ["--run", str(output), "--device", "cpu", "--out", str(out)]
    assert predict_main([*command, "--steps", "3"]) == 0
    assert "none: these weights are no contraction" in capsys.readouterr().out
    out.unlink()
    assert predict_main([*command, "--steps", "100000"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert f"the solve of {output} diverges (map evaluations " in line
    assert "train with model.constraint projection" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--train.on-bad-numbers", "retry"],
            "train.on_bad_numbers = 'retry' must be 'stop', 'rollback' or 'skip'",
        ),
        (["--train.explode-factor", "0.5"], "train.explode_factor = 0.5 must be above 1, or 0"),
        (["--train.rollback-lr-factor", "0"], "train.rollback_lr_factor = '0' must be above 0"),
        (
            ["--train.rollback-lr-factor", "0.1"],
            "train.rollback_lr_factor = 0.1 has no effect with train.on_bad_numbers = stop; add "
            "--train.on-bad-numbers rollback or drop it",
        ),
        (
            ["--train.on-bad-numbers", "rollback", "--train.rollback-lr-factor", "1"],
            "would repeat the same numbers after every rollback; lower one of them",
        ),
        (
            [*ROLLBACK, "--train.rollback-kappa-factor", "0.5", "--model.constraint", "none"],
            "tightens a bound that model.constraint = none switches off",
        ),
        (["--train.max-bad-steps", "0"], "train.max_bad_steps = '0' must be at least 1"),
    ],
)
def test_contradictions_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    output = tmp_path / "run"
    assert main(["--dataset", "chains", *arguments, "--output", str(output)]) == 2
    line = capsys.readouterr().err
    assert expected in line
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert not output.exists()
