"""Bad numbers: found, named and handled alike on every rank; the faults are real ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.runs.checkpoints.recovery import roll_back
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.training.engines.torch import TorchEngine
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.trainer import Trainer
from tests.ranks import run_ranks
from tests.training.small_trainers import (
    assert_equal,
    everything,
    numbers,
    small_config,
    small_trainer,
    train,
)

WAY_OUT = (
    "; lower train.lr = 0.01, or lower model.kappa = 0.9, or add --train.on-bad-numbers rollback"
)
PLAIN: dict[str, Any] = {"model": {"input_dropout": 0.0}, "forward": {"method": "anderson"}}


def _spoil(tensor: Tensor, value: float = math.nan, count: int = 1) -> None:
    with torch.no_grad():
        tensor.view(-1)[:count] = value


def _spoil_gradient(parameter: Tensor, value: float, count: int) -> None:
    def hook(gradient: Tensor) -> Tensor:
        spoiled = gradient.clone()
        _spoil(spoiled, value, count)
        return spoiled

    parameter.register_hook(hook)


def _spoil_incoming(trainer: Trainer) -> None:
    """NaN in dL/dZ*, so that the backward solve has nothing to start from."""

    def hook(module: Any, given: Any, made: Tensor) -> None:
        made.register_hook(lambda gradient: torch.full_like(gradient, math.nan))

    trainer.implicit.head.register_forward_hook(hook)


def _weights(trainer: Trainer, name: str) -> Tensor:
    return dict(trainer.model.named_parameters())[name]


def _features(trainer: Trainer) -> Tensor:
    return trainer.implicit.encoder.constants()[0][1]


FAULTS: dict[str, tuple[str, Callable[[Trainer], None], str]] = {
    "weights": (
        "plain",
        lambda trainer: _spoil(trainer.implicit.head.bias, math.inf),
        "the training loss is nan: NaN or Inf in weights head.bias on rank 1 (1 of 3 entries)",
    ),
    "cell": (
        "plain",
        lambda trainer: _spoil(_weights(trainer, "cell_weights.weight"), count=5),
        "the forward solve diverges in 1 evaluation: NaN or Inf in weights cell_weights.weight on "
        "rank 1 (5 of 64 entries)",
    ),
    "features": (
        "dense",
        lambda trainer: _spoil(_features(trainer), count=2),
        "the forward solve diverges in 1 evaluation: NaN or Inf in features on rank 1 (2 of ",
    ),
    "embedding": (
        "embedding",
        lambda trainer: _spoil(_weights(trainer, "encoder.rows"), count=4),
        "the forward solve diverges in 1 evaluation: NaN or Inf in weights encoder.rows on rank 1 "
        "(4 of ",
    ),
    "gradient": (
        "plain",
        lambda trainer: _spoil_gradient(trainer.implicit.head.weight, math.inf, 3),
        "the gradient is not finite, or its square is not: NaN or Inf in the gradient of "
        "head.weight on rank 1 (3 of 24 entries)",
    ),
    # finite, but Adam would keep its square for ever
    "large gradient": (
        "plain",
        lambda trainer: _spoil_gradient(trainer.implicit.head.weight, 1e200, 1),
        "or its square is not: NaN or Inf in the gradient of head.weight on rank 1 (1 of 24 ",
    ),
    "gradient of rows": (
        "embedding",
        lambda trainer: _spoil_gradient(_weights(trainer, "encoder.rows"), math.nan, 2),
        "NaN or Inf in the gradient of encoder.rows on rank 1 (2 of ",
    ),
    "incoming": (
        "plain",
        _spoil_incoming,
        "the backward solve diverges in 1 evaluation: NaN or Inf in the first point of the "
        "backward solve on rank 1 (",
    ),
}


def _lines(comm: Communicator) -> dict[str, str]:
    """What each fault of the last rank leads to; every rank must come back."""
    found = {}
    for name, (case, fault, _) in FAULTS.items():
        trainer = small_trainer(comm, small_config(PLAIN), case)
        if comm.rank == comm.world_size - 1:
            fault(trainer)
        try:
            trainer.train_epoch()
            found[name] = "no error"
        except UserError as error:
            found[name] = str(error)
    found["mignn"] = _mignn(comm)
    return found


def _mignn(comm: Communicator) -> str:
    """A cell whose own factorisations would fail on one rank and leave the others waiting."""
    trainer = small_trainer(comm, small_config({"model": {"cell": "mignn"}}))
    train(trainer, 3)
    if comm.rank == comm.world_size - 1:
        _spoil(_weights(trainer, "cell_weights.cayley"))
    try:
        trainer.train_epoch()
    except UserError as error:
        return str(error)
    return "no error"


def _skips(comm: Communicator) -> dict[str, Any]:
    """Two faulty epochs of rank 1 between good ones, skipped."""
    config = small_config({**PLAIN, "train": {"on_bad_numbers": "skip", "max_bad_steps": 2}})
    found: dict[str, Any] = {"records": []}
    trainer = small_trainer(comm, config, "embedding")
    found["records"] += train(trainer, 2)
    before = {k: v for k, v in everything(trainer).items() if not k.startswith("warm/")}
    fault = None
    if comm.rank == comm.world_size - 1:
        rows = _weights(trainer, "encoder.rows")
        fault = rows.register_hook(lambda gradient: gradient * math.nan)
    found["records"] += train(trainer, 2)
    after = everything(trainer)
    found["unchanged"] = before.keys() == after.keys() and all(
        torch.equal(after[name], value) for name, value in before.items()
    )
    if fault is not None:
        fault.remove()
    found["records"] += train(trainer, 2)
    found["skipped"] = (trainer.guard.tally.skipped, trainer.guard.tally.skips)
    return found


def _two_ranks(comm: Communicator) -> dict[str, Any]:
    return {"lines": _lines(comm), "skips": _skips(comm)}


@pytest.mark.slow
def test_two_ranks_find_and_name_the_same_fault() -> None:
    first, second = run_ranks(_two_ranks, 2, timeout=90)
    for name, (_, _, expected) in FAULTS.items():
        line = first["lines"][name]
        assert line == second["lines"][name]
        assert line.startswith(f"epoch 1: {expected}" if expected[0] == "t" else "epoch 1: "), line
        assert expected in line
        assert line.endswith(WAY_OUT) or "; correct the dataset (chains)" in line, line
        assert "\n" not in line
    mignn = first["lines"]["mignn"]
    assert mignn == second["lines"]["mignn"]
    assert "weights cell_weights.cayley on rank 1 (1 of 64 entries)" in mignn
    _check_skips(first["skips"])
    _check_skips(second["skips"])


def _check_skips(found: dict[str, Any]) -> None:
    records = found["records"]
    assert [record.skipped for record in records] == [False, False, True, True, False, False]
    assert [math.isnan(record.loss) for record in records] == [r.skipped for r in records]
    assert [record.val_metric is None for record in records] == [r.skipped for r in records]
    assert [record.epoch for record in records] == [1, 2, 3, 4, 5, 6]
    assert found["unchanged"]
    assert found["skipped"] == (2, 0)


def test_skipping_goes_on_as_if_the_epochs_had_not_been() -> None:
    _check_skips(_skips(Communicator()))


def test_too_many_skips_in_a_row_end_the_run() -> None:
    config = small_config({**PLAIN, "train": {"on_bad_numbers": "skip", "max_bad_steps": 2}})
    trainer = small_trainer(Communicator(), config)
    _spoil(trainer.implicit.head.bias)
    assert all(record.skipped for record in train(trainer, 2))
    with pytest.raises(UserError, match=r"\(after 2 epochs skipped in a row, train.max_bad_steps"):
        trainer.train_epoch()


def test_a_step_to_weights_that_are_not_finite_cannot_be_skipped() -> None:
    changes = {**PLAIN, "train": {"on_bad_numbers": "skip", "lr": 1e308}}
    trainer = small_trainer(Communicator(), small_config(changes, "float32"))
    with pytest.raises(
        UserError, match=r"the step has made weights that are not finite: .*; use ro"
    ):
        train(trainer, 3)


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_an_exploding_loss_is_handled_by_policy(policy: str) -> None:
    changes = {**PLAIN, "train": {"on_bad_numbers": policy, "lr": 1e6}}
    trainer = small_trainer(Communicator(), small_config(changes))
    assert not trainer.train_epoch().skipped
    explosion = (
        r"epoch 2: the training loss is .*, more than 100 times the lowest so far .1.*largest"
    )
    if policy == "skip":
        assert trainer.train_epoch().skipped
        return
    with pytest.raises(UserError if policy == "stop" else NumbersError, match=explosion):
        trainer.train_epoch()


def test_what_explodes_is_known_after_a_resume_too() -> None:
    config = small_config({**PLAIN, "train": {"lr": 1e6}})
    first = small_trainer(Communicator(), config)
    first.train_epoch()
    resumed = small_trainer(Communicator(), config)
    restore(resumed, take_snapshot(first))
    lowest = first.guard.tally.lowest_loss
    assert lowest is not None
    assert resumed.guard.tally == first.guard.tally
    with pytest.raises(UserError, match=f"the lowest so far .{lowest:.3g}"):
        resumed.train_epoch()


def _lr(trainer: Trainer) -> float:
    assert isinstance(trainer.engine, TorchEngine)
    rate: float = trainer.engine.optimizer.param_groups[0]["lr"]
    return rate


def test_a_scaled_step_is_resumed_but_not_on_another_learning_rate() -> None:
    settings = {"on_bad_numbers": "rollback", "lr": 1e6, "rollback_lr_factor": 1e-3}
    config = small_config({**PLAIN, "train": settings})
    trainer = small_trainer(Communicator(), config)
    start = take_snapshot(trainer)
    trainer.train_epoch()
    with pytest.raises(NumbersError) as caught:
        trainer.train_epoch()
    roll_back(trainer, caught.value, start)
    assert trainer.epoch == 0
    assert trainer.engine.state().tensors == {}
    again = small_trainer(Communicator(), config)
    restore(again, take_snapshot(trainer))
    assert again.guard.tally == trainer.guard.tally
    assert numbers(again.train_epoch()) == numbers(trainer.train_epoch())
    assert_equal(everything(again), everything(trainer))
    assert _lr(again) == _lr(trainer) == 1e3
    lower = small_config({**PLAIN, "train": settings | {"lr": 0.01, "explode_factor": 0.0}})
    other = small_trainer(Communicator(), lower)
    restore(other, take_snapshot(trainer))
    train(other, 1)
    assert _lr(other) == 0.01
    assert (other.guard.tally.rollbacks, other.guard.tally.lr_scale) == (0, 1.0)


def test_without_the_constraint_a_diverging_solve_is_found() -> None:
    changes: dict[str, Any] = {
        "model": {"constraint": "none", "input_dropout": 0.0},
        "forward": {"method": "picard"},
        "train": {"lr": 3.0, "explode_factor": 0.0},
    }
    trainer = small_trainer(Communicator(), small_config(changes, "float32"), "plain")
    line = r"the \w+ solve diverges in \d+ evaluations from a relative residual of .*; largest: "
    with pytest.raises(UserError, match=line + ".*set model.constraint projection"):
        train(trainer, 6)


def test_a_validation_that_diverges_is_left_out_by_skip() -> None:
    config = small_config({**PLAIN, "train": {"on_bad_numbers": "skip", "ema": 0.5}})
    trainer = small_trainer(Communicator(), config)
    assert trainer.train_epoch().val_metric is not None
    _spoil(trainer.average.mean["cell_weights.weight"])
    record = trainer.train_epoch()
    assert (record.skipped, record.val_metric, record.converged) == (False, None, False)
    assert math.isfinite(record.loss)
    assert trainer.chooser.candidate.epoch == 1


def test_records_say_what_did_not_converge() -> None:
    loose = small_config(PLAIN)
    assert [
        (r.converged, r.converged_forward, r.converged_adjoint)
        for r in train(small_trainer(Communicator(), loose), 2)
    ] == [(True, True, True)] * 2
    tight = {"tolerance": 1e-14, "max_steps": 3}
    config = small_config({**PLAIN, "forward": {"method": "anderson", **tight}, "adjoint": tight})
    record = small_trainer(Communicator(), config).train_epoch()
    assert (record.converged, record.converged_forward, record.converged_adjoint) == (False,) * 3
    none = small_config({**PLAIN, "train": {"eval_every": 2}})
    assert small_trainer(Communicator(), none).train_epoch().converged is None


def _solver_changes(lr: float) -> dict[str, Any]:
    return {
        "model": {"input_dropout": 0.0},
        "solver": {"network": "mlp", "sparsifier": "none", "lr": lr},
    }


def test_a_solver_phase_with_bad_numbers_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """The network's step overflows: what served before serves on, and the run goes on."""
    trainer = small_trainer(Communicator(), small_config(_solver_changes(1e308), "float64"))
    learned = trainer.learned
    assert learned is not None
    start = {k: v.detach().clone() for k, v in learned.named_parameters().items()}
    with caplog.at_level(logging.WARNING, "distributed_ignn"):
        records = train(trainer, 6)
    assert [record.solver_loss for record in records] == [None] * 6
    assert all(math.isfinite(record.loss) for record in records)
    assert not learned.ready
    assert_equal({k: v.detach() for k, v in learned.named_parameters().items()}, start)
    dropped = [line for line in caplog.messages if "solver training met bad numbers" in line]
    assert len(dropped) == 2
    assert "epoch 3" in dropped[0]
    assert dropped[0].endswith("what it found is dropped, Anderson's method serves on")


def test_the_solver_of_the_last_good_phase_serves_on(caplog: pytest.LogCaptureFixture) -> None:
    trainer = small_trainer(Communicator(), small_config(_solver_changes(0.01)))
    train(trainer, 4)
    learned, solver = trainer.learned, trainer.solver_trainer
    assert learned is not None
    assert learned.ready
    assert solver is not None
    before = solver.state().copy()
    trainer.planner.states["evaluate"].fill_(math.nan)  # where the solve for Z* starts
    with caplog.at_level(logging.WARNING, "distributed_ignn"):
        loss, _ = trainer.tune_solver(2)
    assert loss is None
    assert "the solve that it learns from diverges" in caplog.text
    assert "those of the last phase serve on" in caplog.text
    assert_equal(solver.state().common, before.common)
    assert learned.ready


def test_a_tightened_bound_is_saved_with_the_weights() -> None:
    for cell in ("ignn", "eignn", "mignn"):
        config = small_config({"model": {"cell": cell}})
        trainer = small_trainer(Communicator(), config)
        weights = trainer.implicit.cell_weights
        loose = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        widest = weights.present_contraction()
        weights.tighten(0.5)
        trainer.model.project()
        assert weights.kappa.bound == pytest.approx(0.45)
        assert weights.present_contraction() < 0.8 * widest
        tight = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        again = small_trainer(Communicator(), config).implicit
        again.load_state_dict(tight)
        assert again.cell_weights.kappa.bound == pytest.approx(0.45)
        assert again.cell_weights.present_contraction() == weights.present_contraction()
        # weights from before keep the bound that they were trained under
        again.load_state_dict(loose)
        assert again.cell_weights.present_contraction() == widest
