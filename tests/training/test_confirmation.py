"""An epoch is chosen by the metric of its equilibrium, and looking for that changes no training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.graph.datasets.chains import make_chains
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.training.choosing import Chooser
from distributed_ignn.training.confirmation import SLACK, Confirmation, Finding
from distributed_ignn.training.model_weights import Weights
from distributed_ignn.training.plans import CONFIRM
from distributed_ignn.training.state import State
from distributed_ignn.training.trainer import Trainer
from tests.ranks import run_ranks
from tests.training.small_trainers import assert_equal, everything, numbers, train

#: Tolerances at which the last validation that chooses an epoch is off by twenty points.
LOOSE = 3e-3
EPOCHS = 30
_FEW = 8


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
    truths, off = {}, []
    for _ in range(EPOCHS):
        kept = trainer.best.epoch
        record = trainer.train_epoch()
        assert record.val_metric is not None
        truths[record.epoch] = truth = _truth(trainer)
        off.append(abs(record.val_metric - truth) > SLACK)
        if trainer.best.epoch != kept:  # one was chosen
            assert abs(trainer.best.val_metric - truths[trainer.best.epoch]) <= SLACK
            assert (record.best_epoch, record.best_val) == (
                trainer.best.epoch,
                trainer.best.val_metric,
            )
        if off[-1]:
            assert record.confirmed is False
            assert trainer.best.epoch != record.epoch
    assert any(off)  # this is a case in which validation is far from the equilibrium
    assert trainer.best.confirmed
    assert not trainer.chooser.candidate.weights
    trainer.best.use()
    assert abs(trainer.best.val_metric - _truth(trainer)) <= SLACK
    trainer.planner.forget()
    found, solution = trainer.evaluation.at_best(("val",))
    assert found.holds
    assert abs(found.metrics["val"] - _truth(trainer)) <= SLACK
    assert solution.residual < LOOSE / 5


def _unlooked(self: Confirmation, metrics: dict[str, float]) -> Finding:
    return Finding(metrics, holds=True, tolerance=1.0)


def _course(comm: Communicator, confirmed: bool) -> tuple[list[Any], dict[str, Any]]:
    """Losses, adjoint evaluations and residuals of a run, and all tensors that it goes on from."""
    with pytest.MonkeyPatch.context() as patch:
        if not confirmed:
            patch.setattr(Confirmation, "judge", _unlooked)
        trainer = _trainer(_config(comm={"halo": "int4", "backend": "gloo"}), comm)
        records = train(trainer, _FEW)
    looked = sum(record.evaluations_confirmation for record in records)
    assert (looked > 0) == confirmed
    course = [
        (r.loss, r.residual, r.residual_adjoint, r.evaluations_forward, r.evaluations_adjoint)
        for r in records
    ]
    tensors = everything(trainer)
    kept = ("best/", "candidate/")
    return course, {k: v for k, v in tensors.items() if not k.startswith(kept)}


def _judgements(comm: Communicator) -> list[tuple[float | None, bool | None, float | None]]:
    trainer = _trainer(_config(train={"dtype": "float64"}), comm)
    return [(r.val_metric, r.confirmed, r.best_val) for r in train(trainer, _FEW)]


def _on_one_rank_of(
    comm: Communicator,
) -> list[tuple[float | None, bool | None, float | None]]:
    plain, plain_tensors = _course(comm, confirmed=False)
    looked, looked_tensors = _course(comm, confirmed=True)
    assert looked == plain
    assert_equal(looked_tensors, plain_tensors)
    return _judgements(comm)


def test_ranks_judge_alike_and_looking_changes_no_training() -> None:
    alone = _on_one_rank_of(Communicator())
    first, second = run_ranks(_on_one_rank_of, 2, timeout=120)
    assert first == second == alone


def test_two_tolerances_have_to_agree() -> None:
    trainer = _trainer(_config())
    record = trainer.train_epoch()
    assert (record.confirmed, record.best_epoch) == (False, None)  # it waits
    found = trainer.chooser.settle()
    assert found is not None
    assert found.holds
    assert trainer.best.epoch == 1
    assert trainer.best.tolerance == pytest.approx(LOOSE / 100, rel=1e-6)
    assert trainer.planner.log.steps(CONFIRM) > record.evaluations_validation
    assert trainer.chooser.settle() is None


class _Judge:
    """Stands in for a confirmation: finds the given metrics, one after the other."""

    def __init__(self, *found: float | None) -> None:
        self.found = list(found)

    def unconfirmed(self, metrics: dict[str, float]) -> Finding:
        return Finding(metrics, holds=False, tolerance=1.0)

    def judge(self, metrics: dict[str, float]) -> Finding:
        value = self.found.pop(0)
        found = metrics if value is None else {"val": value}
        return Finding(found, holds=value is not None, tolerance=0.1)


class _Course:
    """Validations of a model whose one weight is the number of the epoch."""

    def __init__(self, *found: float | None) -> None:
        self.model = _trainer(_config()).implicit
        self.judge = _Judge(*found)
        self.chooser = Chooser(Weights(self.model), cast("Confirmation", self.judge))
        self.epoch = 0

    def see(self, val: float, converged: bool = True, last: bool = False) -> Finding:
        self.epoch += 1
        torch.nn.init.constant_(self.model.head.bias, self.epoch)
        metrics = {"train": 0.5, "val": val}
        found = self.chooser.consider(self.epoch, metrics, converged=converged, last=last)
        assert float(self.model.head.bias.detach()[0]) == self.epoch
        return found

    @property
    def best(self) -> tuple[int, float, bool, int]:
        best = self.chooser.best
        if best.weights is not None:
            assert float(best.weights["head.bias"][0]) == best.epoch
        return best.epoch, best.val_metric, best.confirmed, self.chooser.stale


def test_a_confirmation_waits_for_as_long_as_validation_improves() -> None:
    course = _Course(0.3, 0.6)
    for val in (0.1, 0.2, 0.3):
        assert not course.see(val).holds
    assert course.best == (0, -1.0, False, 0)
    course.see(0.25)  # no better: the third is confirmed
    assert course.best == (3, 0.3, True, 1)
    course.see(0.3)
    assert course.best == (3, 0.3, True, 2)
    course.see(0.5)
    assert course.best == (3, 0.3, True, 0)
    found = course.see(0.6, last=True)
    assert (found.holds, found.metrics) == (True, {"train": 0.5, "val": 0.6})
    assert course.best == (7, 0.6, True, 0)


def test_nothing_waits_while_validation_finds_other_metrics_than_confirmations() -> None:
    course = _Course(0.4, 0.35, 0.7, 0.9)
    course.see(0.5)
    course.see(0.45)  # the first had .4: this one may be better, and is confirmed at once
    assert course.best == (1, 0.4, True, 1)
    assert len(course.judge.found) == 2
    found = course.see(0.7)
    assert (found.holds, found.metrics["val"]) == (True, 0.7)
    assert course.best == (3, 0.7, True, 0)
    course.see(0.8)  # the last one was right, so this one waits again
    assert course.best == (3, 0.7, True, 0)
    course.see(0.9)
    course.chooser.settle()
    assert course.best == (5, 0.9, True, 0)
    assert not course.judge.found


def test_what_is_not_confirmed_is_kept_only_until_something_is() -> None:
    course = _Course(None, 0.0)
    course.see(0.3, converged=False)
    assert course.best == (1, 0.3, False, 0)
    course.see(0.2, converged=False)
    assert course.best == (1, 0.3, False, 1)
    course.see(0.4)
    course.see(0.1)  # labels of the third never settle: this one is confirmed at once
    assert course.best == (4, 0.0, True, 0)
    course.see(0.9, converged=False)
    assert course.best == (4, 0.0, True, 1)


def test_patience_runs_out_where_nothing_can_be_confirmed() -> None:
    course = _Course(*[None] * 5)
    course.see(0.4)
    for stale in (1, 2, 3):
        course.see(0.1)
        assert course.best == (1, 0.4, False, stale)
    resumed = _Course(None)
    resumed.epoch = course.epoch
    resumed.chooser.best.load_state(course.chooser.best.state().copy())
    resumed.chooser.candidate.load_state(course.chooser.candidate.state().copy())
    resumed.see(0.2)
    assert resumed.best == (1, 0.4, False, 4)
    course.see(0.5)  # not confirmed either, but higher
    assert course.best == (5, 0.5, False, 0)
    assert not course.judge.found


def test_patience_runs_out_where_nothing_better_can_be_confirmed() -> None:
    course = _Course(0.5, *[None] * 4, 0.7)
    course.see(0.5)
    course.see(0.4)
    assert course.best == (1, 0.5, True, 1)
    course.see(0.6)
    assert course.best == (1, 0.5, True, 0)  # for as long as that waits
    for stale in (3, 4, 5):
        course.see(0.6)
        assert course.best == (1, 0.5, True, stale)
    course.see(0.7)
    assert course.best == (7, 0.7, True, 0)
    assert not course.judge.found


def test_what_cannot_be_confirmed_is_believed_if_it_is_better() -> None:
    course = _Course(0.5)
    course.chooser.believe()  # nothing waits
    assert course.best == (0, -1.0, False, 0)
    course.see(0.5)
    course.see(0.4)
    course.see(0.6)
    course.chooser.believe()
    assert course.best == (3, 0.6, False, 0)
    course = _Course()
    course.see(0.5, converged=False)
    course.see(0.4)  # would be the best one if it were confirmed
    course.chooser.believe()
    assert course.best == (2, 0.4, False, 0)


def test_a_validation_out_of_steps_is_not_confirmed() -> None:
    trainer = _trainer(_config(1e-5, forward={"tolerance": 1e-5, "max_steps": 2}))
    record = trainer.train_epoch()
    assert (record.converged, record.confirmed, record.best_epoch) == (False, False, 1)
    assert record.evaluations_confirmation == 0
    assert (trainer.best.epoch, trainer.best.confirmed) == (1, False)
    assert trainer.evaluation.at_best(("val",))[0].holds is False


def test_the_tolerances_get_tighter_as_far_as_rounding_allows() -> None:
    def levels(tolerance: float, dtype: str = "float32") -> list[float]:
        return _trainer(_config(tolerance, train={"dtype": dtype})).confirmation._levels()

    assert levels(1e-3) == pytest.approx([1e-4, 1e-5])
    assert levels(1e-4, "float64") == pytest.approx([1e-5, 1e-6, 1e-7])
    floor = 16 * torch.finfo(torch.float32).eps
    assert levels(1e-4) == pytest.approx([(1e-4 * floor) ** 0.5, floor])
    assert levels(1e-5) == pytest.approx([(1e-5 * floor) ** 0.5, floor])
    assert levels(1e-7) == pytest.approx([1e-6, 1e-7])


@pytest.mark.parametrize("cut", [1, 12])
def test_a_resumed_run_judges_alike_and_older_checkpoints_serve(cut: int) -> None:
    config = _config()
    first, second = _trainer(config), _trainer(config)
    train(first, cut)
    assert (first.chooser.candidate.weights is not None) == (cut == 1)
    for name, part in second.parts().items():
        part.load_state(first.parts()[name].state().copy())
    assert second.best.tolerance == first.best.tolerance
    ours, theirs = train(first, 12), train(second, 12)
    for a, b in zip(ours, theirs, strict=True):
        assert numbers(a) == numbers(b)
    assert_equal(everything(second), everything(first))
    old = first.best.state()
    values = {k: v for k, v in old.values.items() if k not in ("confirmed", "tolerance")}
    second.best.load_state(replace(old, values=values))
    second.chooser.candidate.load_state(State())
    assert (second.best.epoch, second.best.tolerance) == (first.best.epoch, None)
    assert not second.best.beaten_by(first.best.val_metric, confirmed=True)
    second.best.use()
    assert second.evaluation.at_best(("val",))[0].holds is False  # nobody has confirmed it
