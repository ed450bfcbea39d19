"""An epoch is chosen by the metric of its equilibrium, and looking for that changes no training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.graph.datasets.chains import make_chains
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.certificate import Certificate
from distributed_ignn.training.confirmation import SLACK, Confirmation, Finding
from distributed_ignn.training.trainer import Trainer
from tests.ranks import run_ranks
from tests.training.small_trainers import assert_equal, everything, numbers, train

#: Tolerances at which the last validation that chooses an epoch is off by twenty points.
LOOSE = 3e-3
EPOCHS = 30


def _config(tolerance: float = LOOSE, **sections: dict[str, Any]) -> RunConfig:
    values: dict[str, dict[str, Any]] = {
        "data": {"chains": {"length": 10, "chains_per_class": 10, "features": 10}},
        "model": {"hidden": 16, "dropout": 0.0},
        "forward": {"tolerance": tolerance},
        "adjoint": {"tolerance": tolerance},
        "train": {"epochs": EPOCHS, "lr": 0.02, "weight_decay": 0.0},
    }
    for name, keys in sections.items():
        values[name] = values.get(name, {}) | keys
    return RunConfig.model_validate({"dataset": "chains", "device": "cpu", **values})


def _trainer(config: RunConfig, comm: Communicator | None = None) -> Trainer:
    comm = comm or Communicator()
    data = make_chains(config.data.chains)
    part = torch.arange(data.num_nodes) * comm.world_size // data.num_nodes
    shards = list(build_shards(data, part, comm.world_size))
    return Trainer(config, shards[comm.rank], comm)


def _truth(trainer: Trainer) -> float:
    """The validation metric of the present weights at an equilibrium found in float64."""
    train_section = trainer.config.train.model_copy(update={"dtype": "float64"})
    exact = _trainer(trainer.config.model_copy(update={"train": train_section}))
    exact.model.load_state_dict({k: v.double() for k, v in trainer.model.state_dict().items()})
    exact.model.eval()
    solution = exact.model.solve(exact.planner.evaluate(1e-10, 5000))
    assert solution.converged
    return exact.confirmation.measure(solution.image, ("val",))["val"]


def test_what_chooses_an_epoch_is_the_metric_of_its_equilibrium() -> None:
    trainer = _trainer(_config())
    off = []
    for _ in range(EPOCHS):
        kept = trainer.best.epoch
        record = trainer.train_epoch()
        assert record.val_metric is not None
        truth = _truth(trainer)
        off.append(abs(record.val_metric - truth) > SLACK)
        if trainer.best.epoch != kept:  # this epoch was chosen
            assert record.confirmed
            assert abs(trainer.best.val_metric - truth) <= SLACK
        if off[-1]:
            assert record.confirmed is False
            assert trainer.best.epoch != record.epoch
    assert any(off)  # this is a case in which validation is far from the equilibrium
    assert trainer.best.confirmed
    trainer.best.use()
    assert abs(trainer.best.val_metric - _truth(trainer)) <= SLACK
    trainer.planner.forget()
    found, solution = trainer.evaluate_best(("val",))
    assert found.holds
    assert abs(found.metrics["val"] - _truth(trainer)) <= SLACK
    assert solution.residual < LOOSE / 5


def _unlooked(self: Confirmation, state: Any, residual: float, metrics: Any) -> Finding:
    return Finding(metrics, holds=True, tolerance=1.0)


def _course(comm: Communicator, confirmed: bool, halo: str) -> tuple[list[Any], dict[str, Any]]:
    """Losses, adjoint evaluations and residuals of a run, and all tensors that it goes on from."""
    with pytest.MonkeyPatch.context() as patch:
        if not confirmed:
            patch.setattr(Confirmation, "judge", _unlooked)
        trainer = _trainer(_config(comm={"halo": halo, "backend": "gloo"}), comm)
        records = train(trainer, EPOCHS)
    looked = sum(record.evaluations_confirmation for record in records)
    assert (looked > 0) == confirmed
    course = [
        (r.loss, r.residual, r.residual_adjoint, r.evaluations_forward, r.evaluations_adjoint)
        for r in records
    ]
    tensors = everything(trainer)
    return course, {k: v for k, v in tensors.items() if not k.startswith("best/")}


def _both_courses(comm: Communicator) -> None:
    for halo in ("fp32", "int4"):
        plain, plain_tensors = _course(comm, confirmed=False, halo=halo)
        looked, looked_tensors = _course(comm, confirmed=True, halo=halo)
        assert looked == plain, halo
        assert_equal(looked_tensors, plain_tensors)


def _judgements(comm: Communicator) -> list[tuple[float | None, bool | None]]:
    trainer = _trainer(_config(train={"dtype": "float64"}), comm)
    return [(r.val_metric, r.confirmed) for r in train(trainer, EPOCHS)]


def _on_one_rank_of(comm: Communicator) -> list[tuple[float | None, bool | None]]:
    _both_courses(comm)
    return _judgements(comm)


def test_ranks_judge_alike_and_looking_changes_no_training_with_any_codec() -> None:
    alone = _on_one_rank_of(Communicator())
    first, second = run_ranks(_on_one_rank_of, 2, timeout=120)
    assert first == second == alone


def test_a_certificate_that_settles_all_labels_spares_the_solve() -> None:
    trainer = _trainer(_config(1e-6, train={"dtype": "float64"}))
    record = trainer.train_epoch()
    assert (record.confirmed, record.evaluations_confirmation) == (True, 0)
    assert trainer.best.tolerance is not None
    assert trainer.best.tolerance < 1e-6


def test_without_a_certificate_two_tolerances_have_to_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing: Certificate | None = None
    monkeypatch.setattr(Confirmation, "certificate", lambda *_: nothing)
    trainer = _trainer(_config())
    record = trainer.train_epoch()
    assert record.confirmed
    assert record.evaluations_confirmation > record.evaluations_validation
    assert trainer.best.tolerance == pytest.approx(LOOSE / 100, rel=1e-6)


def test_a_validation_out_of_steps_is_kept_only_until_one_is_confirmed() -> None:
    trainer = _trainer(_config(1e-5, forward={"tolerance": 1e-5, "max_steps": 2}))
    record = trainer.train_epoch()
    assert (record.converged, record.confirmed) == (False, False)
    assert record.evaluations_confirmation == 0
    assert (trainer.best.epoch, trainer.best.confirmed) == (1, False)
    assert trainer.evaluate_best(("val",))[0].holds is False
    best = trainer.best
    best.offer(2, best.val_metric - 0.1, confirmed=False, tolerance=1e-5)
    assert (best.epoch, best.stale) == (1, 1)
    assert best.may_take(0.0)
    best.offer(3, 0.0, confirmed=True, tolerance=1e-6)
    assert (best.epoch, best.val_metric, best.tolerance, best.stale) == (3, 0.0, 1e-6, 0)
    best.offer(4, 1.0, confirmed=False, tolerance=1e-5)
    assert (best.epoch, best.stale) == (3, 1)
    assert not best.may_take(0.0)


def test_the_tolerances_get_tighter_as_far_as_rounding_allows() -> None:
    def levels(tolerance: float, dtype: str = "float32") -> list[float]:
        return _trainer(_config(tolerance, train={"dtype": dtype})).confirmation._levels()

    assert levels(1e-3) == pytest.approx([1e-4, 1e-5])
    assert levels(1e-4, "float64") == pytest.approx([1e-5, 1e-6, 1e-7])
    floor = 16 * torch.finfo(torch.float32).eps
    assert levels(1e-4) == pytest.approx([(1e-4 * floor) ** 0.5, floor])
    assert levels(1e-5) == pytest.approx([(1e-5 * floor) ** 0.5, floor])
    assert levels(1e-7) == pytest.approx([1e-7])


def test_a_resumed_run_judges_alike_and_older_checkpoints_serve() -> None:
    config = _config()
    first, second = _trainer(config), _trainer(config)
    train(first, 12)
    for name, part in second.parts().items():
        part.load_state(first.parts()[name].state().copy())
    assert second.best.tolerance == first.best.tolerance
    ours, theirs = train(first, 12), train(second, 12)
    for a, b in zip(ours, theirs, strict=True):
        assert numbers(a) == numbers(b)
    old = first.best.state()
    values = {k: v for k, v in old.values.items() if k not in ("confirmed", "tolerance")}
    second.best.load_state(replace(old, values=values))
    assert (second.best.epoch, second.best.tolerance) == (first.best.epoch, None)
    assert not second.best.may_take(first.best.val_metric)
    second.best.use()
    assert second.evaluate_best(("val",))[0].holds is False  # nobody has confirmed it
