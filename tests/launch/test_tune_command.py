"""The kept solver, and the command that fits it again without labels."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.tune_solver import main
from distributed_ignn.config import parse_args
from distributed_ignn.errors import UserError
from distributed_ignn.runs.kept_solver import save_solver
from distributed_ignn.runs.layout import KEPT_SOLVER
from distributed_ignn.runs.predict import load_run
from distributed_ignn.runs.run import run_training
from distributed_ignn.runs.tune import TuneOptions, TuneResult, tune
from distributed_ignn.training.losses.objective import Objective
from tests.launch.test_train_command import SMALL, UNSOLVED
from tests.ranks import run_ranks

# as users train: a tolerance that a start close by reaches sooner
USUAL = [*SMALL, "--forward.tolerance", "1e-4", "--adjoint.method", "neural"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tune") / "run"
    run_training(parse_args([*USUAL, "--output", str(output)]), Communicator())
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def _kept(run: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(run / KEPT_SOLVER, framework="pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        return tensors, file.metadata()


def _rewrite(run: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    save_file(tensors, run / KEPT_SOLVER, metadata)


def _summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def test_a_run_keeps_the_solver_of_its_best_weights(run: Path) -> None:
    tensors, metadata = _kept(run)
    summary = _summary(run)
    assert metadata["epoch"] == str(summary["best_epoch"])
    trainer = load_run(run, Communicator())
    assert trainer.learned is not None
    assert trainer.learned.ready
    for name, value in trainer.learned.named_parameters().items():
        assert torch.equal(value, tensors[name]), name
    assert {name.split(".")[0] for name in tensors} == {
        "initialiser",
        "estimator",
        "adjoint",
        "predictor",
    }
    assert trainer.evaluation.at_initialiser(("val", "test")) == {
        "val": summary["val_at_initialiser"],
        "test": summary["test_at_initialiser"],
    }
    assert summary["test_at_f0"] <= summary["test_at_best_val"]
    assert summary["seconds_solver_training"] <= summary["seconds_total"]
    assert not list(run.glob(".*"))


def test_the_last_fit_counts_as_solver_training(tmp_path: Path) -> None:
    """A run whose schedule has no phase at all still fits the solver that it keeps."""
    arguments = [*USUAL, "--schedule.warmup-epochs", "50", "--output", str(tmp_path / "run")]
    summary = run_training(parse_args(arguments), Communicator())
    assert summary["seconds_solver_training"] > 0.0
    trainer = load_run(tmp_path / "run", Communicator())
    assert trainer.learned is not None
    assert trainer.learned.ready
    assert trainer.learned.estimator is not None
    assert float(trainer.learned.estimator.coefficients[:, 1:].abs().max()) > 0.0


def test_without_a_learned_solver_none_is_kept(tmp_path: Path) -> None:
    arguments = [*UNSOLVED, "--forward.method", "anderson", "--output", str(tmp_path / "run")]
    summary = run_training(parse_args(arguments), Communicator())
    assert summary["test_at_initialiser"] is None
    assert not (tmp_path / "run" / KEPT_SOLVER).exists()
    with pytest.raises(UserError, match="no learned solver") as error:
        tune(TuneOptions(tmp_path / "run"), Communicator())
    assert "\n" not in str(error.value)


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Up to the target's precision, relative to the largest number."""
    scale = max(1.0, float(expected.abs().max()))
    return torch.allclose(found, expected, rtol=0, atol=1e-6 * scale)


def test_it_fits_again_and_shows_what_that_changed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a solver that has forgotten everything, in place and without a half-written file."""
    expected, metadata = _kept(run)
    _forget(run)
    assert main([str(run), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    (row,) = re.findall(r"relative distance after 1 evaluation .*", printed)
    before, after = map(float, re.findall(r"\d\.\de[-+]\d+", row))
    assert after < 0.7 * before
    assert str(run / KEPT_SOLVER) in printed.replace("\n", "")
    found, metadata_after = _kept(run)
    assert metadata_after.keys() == metadata.keys()
    assert metadata_after["epoch"] == metadata["epoch"]
    for name, value in expected.items():
        if not name.startswith(("adjoint", "predictor")):
            assert _alike(found[name], value), name
    assert not list(run.glob(".*"))


def _forget(run: Path) -> None:
    """Overwrite the kept solver with an untrained one, checksum included."""
    trainer = load_run(run, Communicator())
    assert trainer.learned is not None
    for name, parameter in trainer.learned.named_parameters().items():
        if name.endswith("coefficients"):
            parameter.data.zero_()
            parameter.data[:, 0] = 1.0
        elif name.endswith("readout"):
            parameter.data.zero_()
    save_solver(run, trainer.learned, trainer.best.epoch, trainer.comm)


def test_it_reads_no_label(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(TuneOptions(run), Communicator())
    expected, _ = _kept(run)

    def refuse(self: Objective, *arguments: Any) -> Any:
        raise AssertionError("labels were read")

    monkeypatch.setattr(Objective, "loss", refuse)
    monkeypatch.setattr(Objective, "metrics", refuse)
    tune(TuneOptions(run), Communicator())
    found, _ = _kept(run)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # the second fit starts from the first one's fixed point, found to 1e-12
        assert _alike(found[name], value), name


def _tune(comm: Communicator, run: Path) -> TuneResult:
    return tune(TuneOptions(run), comm)


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_two_ranks_tune_what_one_has_trained(run: Path) -> None:
    one = tune(TuneOptions(run), Communicator())
    alone, _ = _kept(run)
    first, second = run_ranks(_tune, 2, run, timeout=100)
    together, _ = _kept(run)
    assert first.after.evaluations == second.after.evaluations == one.after.evaluations
    assert first.after.distances == second.after.distances
    assert first.after.distances == pytest.approx(one.after.distances, rel=1e-3)
    for name, value in alone.items():
        assert torch.allclose(together[name], value, rtol=0, atol=1e-6), name


def test_network_steps_train_the_network(run: Path) -> None:
    before, _ = _kept(run)
    tune(TuneOptions(run, steps=2), Communicator())
    after, _ = _kept(run)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("predictor.head") for name in moved)
    assert not any(name.startswith("adjoint") for name in moved)


def test_a_solver_of_another_epoch_is_not_used(run: Path) -> None:
    """The run was resumed since; its checkpoint is newer."""
    tensors, metadata = _kept(run)
    _rewrite(run, tensors, metadata | {"epoch": "4711"})
    trainer = load_run(run, Communicator())
    assert trainer.learned is not None
    named = trainer.learned.named_parameters()
    assert any(not torch.equal(named[name], value) for name, value in tensors.items())


def _refused(run: Path) -> str:
    with pytest.raises(UserError) as error:
        load_run(run, Communicator())
    line = str(error.value)
    assert "\n" not in line
    assert str(run / KEPT_SOLVER) in line
    assert f"ignn tune {run}" in line
    return line


def test_a_damaged_solver_is_one_line_and_tuning_is_the_way_out(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run / KEPT_SOLVER).read_bytes()
    (run / KEPT_SOLVER).write_bytes(whole[: len(whole) // 2])
    assert "damaged" in _refused(run)
    (run / KEPT_SOLVER).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "its checksum differs" in _refused(run)
    assert main(["--run", str(run), "--device", "cpu"]) == 0
    assert "checksum differs" in capsys.readouterr().out.replace("\n", " ")
    load_run(run, Communicator())


def test_a_foreign_solver_is_one_line(run: Path, tmp_path: Path) -> None:
    _rewrite(run, {"a": torch.zeros(1)}, {"format": "something else"})
    assert "does not hold a learned solver" in _refused(run)
    other = tmp_path / "other"
    arguments = [*USUAL, "--solver.compress", "1", "--output", str(other)]
    run_training(parse_args(arguments), Communicator())
    epoch = _summary(run)["best_epoch"]
    trainer = load_run(other, Communicator())
    assert trainer.learned is not None
    save_solver(run, trainer.learned, epoch, trainer.comm)
    assert "other solver settings" in _refused(run)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "RUN is missing; name one, as in ignn tune runs/acm"),
        (["--run", "nowhere"], "nowhere is not a run folder"),
        (["--run", "nowhere", "--steps", "-1"], "--steps -1 must be at least 0"),
        (["--run", "nowhere", "--stepz", "1"], "--steps"),
    ],
)
def test_wrong_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err


def test_steps_without_a_network_are_refused(tmp_path: Path) -> None:
    arguments = [*UNSOLVED, "--forward.method", "neural", "--output", str(tmp_path / "run")]
    run_training(parse_args(arguments), Communicator())
    with pytest.raises(UserError, match="--steps 3 is for the network of the solver"):
        tune(TuneOptions(tmp_path / "run", steps=3), Communicator())
