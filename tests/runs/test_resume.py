"""A run that is interrupted and resumed from disk continues bit for bit."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.runs.checkpoints.checkpoint import load_checkpoint
from distributed_ignn.runs.checkpoints.checkpoint_store import CheckpointStore
from distributed_ignn.runs.checkpoints.snapshot import restore, restore_best, take_snapshot
from distributed_ignn.training.state import State, Stateful
from distributed_ignn.training.trainer import Trainer
from tests.parity.kind_cases import kind_trainer
from tests.training.small_trainers import (
    EPOCHS,
    assert_equal,
    everything,
    numbers,
    small_config,
    small_trainer,
    train,
)


def _reload(trainer: Trainer, config: RunConfig, case: str, folder: Path) -> Trainer:
    """A fresh trainer in the state that ``trainer`` has on disk."""
    store = CheckpointStore(folder, trainer.comm, keep=2)
    path = store.save(trainer.epoch, take_snapshot(trainer), trainer.shard.owned_nodes)
    fresh = small_trainer(trainer.comm, config, case)
    restore(fresh, load_checkpoint(path, trainer.comm, fresh.shard.owned_nodes))
    return fresh


# solver phases come before epochs 3 and 5, counted from 1
@pytest.mark.parametrize(
    ("case", "dtype", "cut"),
    [
        ("plain", "float32", 1),
        ("plain", "float64", 2),
        ("channels", "float32", 3),
        ("embedding", "float32", 1),
        ("embedding", "float64", 4),
    ],
)
def test_a_resumed_run_continues_bit_for_bit(
    tmp_path: Path, case: str, dtype: str, cut: int
) -> None:
    config = small_config(dtype=dtype)
    whole = small_trainer(Communicator(), config, case)
    expected = train(whole, EPOCHS)
    assert [record.solver_steps for record in expected] == [0, 0, 2, 0, 2, 0]
    first = small_trainer(Communicator(), config, case)
    train(first, cut)
    resumed = _reload(first, config, case, tmp_path)
    assert_equal(everything(resumed), everything(first))
    found = train(resumed, EPOCHS - cut)
    assert [numbers(r) for r in found] == [numbers(r) for r in expected[cut:]]
    assert_equal(everything(resumed), everything(whole))
    assert (resumed.best.epoch, resumed.best.val_metric) == (
        whole.best.epoch,
        whole.best.val_metric,
    )
    assert resumed.chooser.stale == whole.chooser.stale


@pytest.mark.parametrize("case", ["awkward/gat", "embedding/gcnii", "channels/amgcn"])
def test_an_explicit_model_continues_bit_for_bit(tmp_path: Path, case: str) -> None:
    def fresh() -> Trainer:
        return kind_trainer(Communicator(), case, "float32", ema=0.5)

    whole, first, resumed = fresh(), fresh(), fresh()
    expected = train(whole, EPOCHS)
    train(first, 2)
    store = CheckpointStore(tmp_path, first.comm, keep=2)
    path = store.save(first.epoch, take_snapshot(first), first.shard.owned_nodes)
    restore(resumed, load_checkpoint(path, first.comm, first.shard.owned_nodes))
    found = [record.values() | {"seconds": 0.0} for record in train(resumed, EPOCHS - 2)]
    assert found == [record.values() | {"seconds": 0.0} for record in expected[2:]]
    assert_equal(everything(resumed), everything(whole))
    other = kind_trainer(Communicator(), f"{case.partition('/')[0]}/mlp", "float32")
    with pytest.raises(UserError, match="belongs to a model of another shape"):
        restore(other, load_checkpoint(path, first.comm, first.shard.owned_nodes))


def test_the_closed_form_parts_resume_too(tmp_path: Path) -> None:
    """Those of the forward and of the backward solve, without a network."""
    parts = {"network": "none", "sparsifier": "none"}
    config = small_config({"solver": parts, "adjoint": {"method": "neural"}}, dtype="float32")
    whole = small_trainer(Communicator(), config, "channels")
    expected = train(whole, EPOCHS)
    first = small_trainer(Communicator(), config, "channels")
    train(first, 3)
    resumed = _reload(first, config, "channels", tmp_path)
    found = train(resumed, EPOCHS - 3)
    assert [numbers(r) for r in found] == [numbers(r) for r in expected[3:]]
    assert_equal(everything(resumed), everything(whole))
    assert any(name.startswith("solver/weight|adjoint") for name in everything(whole))
    for part in ("estimator", "adjoint"):
        assert 0.0 < float(everything(first)[f"solver/weight|{part}.plain_rate"]) < 1.0


def test_every_second_epoch_interrupted_is_the_same_too(tmp_path: Path) -> None:
    config = small_config(dtype="float32")
    whole = small_trainer(Communicator(), config)
    train(whole, EPOCHS)
    trainer = small_trainer(Communicator(), config)
    for _ in range(EPOCHS // 2):
        train(trainer, 2)
        trainer = _reload(trainer, config, "plain", tmp_path)
    assert_equal(everything(trainer), everything(whole))


@pytest.mark.parametrize("lost", ["warm/", "optimizer/", "solver/"])
def test_a_lost_part_of_the_state_is_noticed(lost: str) -> None:
    """The comparison above fails if a checkpoint forgets something."""
    config = small_config()
    first = small_trainer(Communicator(), config)
    train(first, 3)
    whole = take_snapshot(first)
    common, rows = (
        {k: v.clone() for k, v in part.items() if not k.startswith(lost)}
        for part in (whole.common, whole.rows)
    )
    assert len(common) + len(rows) < len(whole.common) + len(whole.rows)
    forgetful = small_trainer(Communicator(), config)
    restore(forgetful, replace(whole, common=common, rows=rows))
    expected, found = train(first, 3), train(forgetful, 3)
    assert [numbers(r) for r in found] != [numbers(r) for r in expected]


class _Counting(Trainer):
    """A trainer with one more part that has state."""

    counter = 7

    def parts(self) -> dict[str, Stateful]:
        return super().parts() | {"counter": _Counter(self)}


class _Counter:
    def __init__(self, trainer: _Counting) -> None:
        self._trainer = trainer

    def state(self) -> State:
        rows = torch.arange(self._trainer.shard.num_owned)[:, None]
        return State({"count": self._trainer.counter}, {"twice": torch.tensor([14])}, {"r": rows})

    def load_state(self, state: State) -> None:
        assert state.common["twice"].tolist() == [14]
        assert state.rows["r"].shape == (self._trainer.shard.num_owned, 1)
        self._trainer.counter = state.values["count"] + 1


def test_another_part_is_kept_without_a_word_to_the_checkpoint(tmp_path: Path) -> None:
    config = small_config()
    shard = small_trainer(Communicator(), config).shard
    first, second = (_Counting(config, shard, Communicator()) for _ in range(2))
    store = CheckpointStore(tmp_path, first.comm, keep=1)
    path = store.save(0, take_snapshot(first), shard.owned_nodes)
    restore(second, load_checkpoint(path, second.comm, shard.owned_nodes))
    assert second.counter == 8


def test_the_seconds_go_on(tmp_path: Path) -> None:
    config = small_config()
    whole = small_trainer(Communicator(), config)
    started = time.perf_counter() - 500
    first = Trainer(config, whole.shard, Communicator(), started)
    assert 500 <= first.stopwatch.total < 560
    resumed = _reload(_reload(first, config, "plain", tmp_path), config, "plain", tmp_path)
    assert 500 < resumed.stopwatch.total < 560
    assert whole.stopwatch.total < 60


def test_the_best_weights_serve_another_graph() -> None:
    """With the learned solver; nothing else of the run is taken over."""
    config = small_config({"train": {"lr": 0.05}})
    first = small_trainer(Communicator(), config)
    train(first, 3)
    assert first.best.epoch == 1
    other = small_trainer(Communicator(), config, "lopsided")
    restore_best(other, take_snapshot(first))
    assert first.best.weights is not None
    assert_equal(dict(other.model.state_dict()), first.best.weights)
    assert other.learned is not None
    assert other.learned.ready
    assert (other.epoch, other.planner.states) == (0, {})
    with pytest.raises(UserError, match=r"another graph \(0 channels with edge weights, here 1\)"):
        restore(other, take_snapshot(first))


def test_a_candidate_that_waits_serves_another_graph() -> None:
    """As on its own graph, where it is confirmed first."""
    config = small_config({"train": {"lr": 0.05}})
    first = small_trainer(Communicator(), config)
    train(first, 1)
    assert (first.best.epoch, first.chooser.candidate.epoch) == (0, 1)
    other = small_trainer(Communicator(), config, "lopsided")
    restore_best(other, take_snapshot(first))
    first.chooser.settle()
    assert first.best.weights is not None
    assert_equal(dict(other.model.state_dict()), first.best.weights)
    assert (other.best.epoch, other.best.confirmed) == (first.best.epoch, False) == (1, False)
    assert other.chooser.candidate.weights is None


def test_the_best_weights_survive(tmp_path: Path) -> None:
    config = small_config({"train": {"lr": 0.05}})
    first = small_trainer(Communicator(), config)
    train(first, 3)
    assert first.best.epoch == 1
    resumed = _reload(first, config, "plain", tmp_path)
    for trainer in (first, resumed):
        trainer.best.use()
        trainer.planner.forget()
    assert_equal(dict(resumed.model.state_dict()), dict(first.model.state_dict()))
    splits = ("train", "val", "test")
    assert resumed.evaluation.at_equilibrium(splits) == first.evaluation.at_equilibrium(splits)
    assert resumed.evaluation.at_equilibrium(("val",))["val"] == first.best.val_metric
