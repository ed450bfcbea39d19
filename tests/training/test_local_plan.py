"""``auto`` local steps: a rule of the whole graph's counts, which every part of a run follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, TrainConfig, parse_args
from distributed_ignn.config.check import validate_run
from distributed_ignn.errors import UserError
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.training import local_plan as rules
from distributed_ignn.training.local_plan import FEWEST, MOST, LocalPlan, local_plan
from distributed_ignn.training.losses.local_loss import LocalLoss
from tests.training.small_trainers import (
    assert_equal,
    everything,
    numbers,
    small_config,
    small_trainer,
    train,
)

pytestmark = pytest.mark.cheap

AUTO: dict[str, Any] = {"local_steps": "auto", "local_lr": "auto"}


@pytest.mark.parametrize(
    ("nodes", "trained", "steps"),
    [
        (3_327, 360, 0),  # citeseer
        (306_129, 500, 0),  # few labels
        (2_449_029, 196_615, MOST),  # ogbn-products
        (232_965, 153_431, 5),  # Reddit
        (169_343, 90_941, 6),  # ogbn-arxiv
        (100_000, 100_000, FEWEST),
    ],
)
def test_steps_suit_the_graph_and_its_training_nodes(nodes: int, trained: int, steps: int) -> None:
    assert local_plan(TrainConfig(**AUTO, lr=0.05), nodes, trained) == LocalPlan(steps, 0.02, True)


def test_what_consistency_reads_counts_too() -> None:
    alone, more = TrainConfig(**AUTO), TrainConfig(**AUTO, consistency=1.0)
    assert local_plan(more, 50_000, 5_000).steps < local_plan(alone, 50_000, 5_000).steps


def test_numbers_are_taken_as_they_are() -> None:
    given = TrainConfig(local_steps=7, local_lr=0.3, lr=0.001)
    assert local_plan(given, 10, 5) == LocalPlan(7, 0.3, False)
    assert local_plan(TrainConfig(local_steps=7, lr=0.001), 10, 5).lr == 0.001
    assert local_plan(TrainConfig(**AUTO, lr=0.001), 10, 5).lr == 0.001
    assert local_plan(TrainConfig(), 10**6, 10**5) == LocalPlan(0, 0.002, False)


def test_they_are_settings_of_a_command_line() -> None:
    flags = ["--dataset", "chains", "--train.local-steps", "auto", "--train.local-lr", "auto"]
    assert parse_args(flags).train.local_steps == "auto"
    assert parse_args([*flags[:3], "12", *flags[4:]]).train.local_steps == 12
    # harmless beside settings whose steps are switched off
    assert parse_args([*flags[:3], "0", *flags[4:]]).train.local_lr == "auto"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"local_steps": "auot"}, "train.local_steps = 'auot' must be a whole number or 'auto'"),
        ({"local_steps": -1}, "train.local_steps = -1 must be at least 0 or 'auto'; the default"),
        ({"local_lr": "no"}, "train.local_lr = 'no' must be a number or 'auto'"),
        ({"local_lr": 0.1}, "train.local_lr = 0.1 has no effect with train.local_steps = 0"),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate_run({"dataset": "chains", "train": values})
    assert message in str(caught.value)
    assert "more)" not in str(caught.value)


def test_a_small_graph_is_trained_as_without_them() -> None:
    with_auto, without = (
        small_trainer(Communicator(), small_config({"train": section})) for section in (AUTO, {})
    )
    assert with_auto.local is None
    records = [[numbers(r) for r in train(t, 3)] for t in (with_auto, without)]
    assert records[0] == records[1]
    assert_equal(everything(with_auto), everything(without))


def _small_graphs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "LEAST_NODES", 60)
    monkeypatch.setattr(rules, "_LEAST_TRAINED", 20)


def test_the_chosen_steps_are_those_of_a_number_and_a_resumed_run_chooses_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _small_graphs_count(monkeypatch)
    trainer = small_trainer(Communicator(), small_config({"train": AUTO}))
    plan = trainer.local_plan
    assert plan == LocalPlan(10, trainer.config.train.lr, True)  # 20 of 60 nodes are for training
    given = small_trainer(Communicator(), small_config({"train": {"local_steps": 10}}))
    assert [numbers(r) for r in train(trainer, 2)] == [numbers(r) for r in train(given, 2)]
    kept = take_snapshot(trainer).apart()
    trainer.implicit.propagation.reset_links()
    resumed = small_trainer(Communicator(), small_config({"train": AUTO}))
    restore(resumed, kept)
    assert resumed.local_plan == plan
    assert numbers(train(resumed, 1)[0]) == numbers(train(trainer, 1)[0])


def test_the_budget_counts_them_where_there_are_any() -> None:
    config = RunConfig.model_validate({"dataset": "synthetic-products", "train": AUTO})
    part = PartSizes(1000, 0, 0, 0, 5000, 0, features=10, train=80)
    large = replace(part, nodes=100_000, train_nodes=8_000)
    small = replace(part, nodes=1_000, train_nodes=80)
    assert LocalLoss.held_bytes(small, config, 4) == (0, 0)
    assert LocalLoss.held_bytes(large, config, 4)[0] >= 80 * 128 * 4
