"""Local steps: what they freeze, that every cut takes the same ones, and that they end."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.training import local_plan
from distributed_ignn.training.local_steps import LAST_LR
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import CELLS
from tests.ranks import run_ranks
from tests.training.small_trainers import (
    assert_equal,
    everything,
    numbers,
    small_config,
    small_trainer,
    train,
)

LOCAL = {"local_steps": 3, "local_lr": 0.02}
TIGHT = {"tolerance": 1e-12, "max_steps": 200}
DEEP = {"node_dropout": 0.3, "injection_layers": 2, "injection_norm": "layer"}
CONSISTENT = {"consistency": 0.5, "ema": 0.6, "label_smoothing": 0.1}
#: By name: the graph, and settings beside local steps. Together they have every option.
CASES: dict[str, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    "sparse": ("plain", {}),
    "isolated and empty": ("awkward", {"model": {"cell": "mignn"}}),
    "directed, two layers": ("directed", {"model": DEEP, "train": CONSISTENT}),
    "channels, two layers": (
        "channels",
        {"model": DEEP | {"injection_channels": "knn"}, "train": CONSISTENT},
    ),
    "embedding": ("embedding", {}),
    "several labels": ("multilabel", {"model": {"injection": "propagated"}}),
    "constant terms": ("dense", {"model": {"input_dropout": 0.0}}),
    "weights": ("weights", {"model": {"injection": "features"}}),
    "loose solves": ("plain", {"train": {"loose_tolerance": 0.03}}),
    "batches": ("dense", {"model": {"input_dropout": 0.0}}),
    "batches of an embedding": ("embedding", {}),
    "both directions": ("both", {"model": {"injection_channels": "graph"}}),
    **{f"cell {name}": (name.split("/")[0], changes) for name, changes in CELLS.items()},
}


def _trainer(comm: Communicator, case: str, **train_section: Any) -> Trainer:
    with pytest.MonkeyPatch.context() as patch:
        if case.startswith("batches"):
            patch.setattr(local_plan, "LEAST_BATCH", 4)
        return _trainer_of(comm, case, **train_section)


def _trainer_of(comm: Communicator, case: str, **train_section: Any) -> Trainer:
    data, changes = CASES[case]
    sections = {name: dict(keys) for name, keys in changes.items()}
    sections["train"] = LOCAL | sections.get("train", {}) | train_section
    return small_trainer(comm, small_config({"forward": TIGHT, "adjoint": TIGHT, **sections}), data)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("batches")])
def test_the_loss_is_the_exact_one_at_the_weights_of_the_exact_step(case: str) -> None:
    """Consistency is asked of all nodes here; the Jacobian's penalty is estimated from others."""
    trainer = _trainer(Communicator(), case, jacobian_weight=0.0)
    local = trainer.local
    assert local is not None
    trainer.model.train()
    loss = local._loss
    trainer.planner.products = loss.freeze
    exact = trainer.loss.share(0, trainer.planner, {})
    loss.begin(0)
    own, readout = loss._read_out, trainer.model.read_out

    # the same masks of the readout, which local steps draw anew
    def same_masks(image: Tensor, draw: int, places: slice = slice(None)) -> Tensor:
        whole = image.new_zeros(trainer.shard.num_owned, image.shape[1])
        whole[loss.rows] = image
        return readout(whole, draw // 4096)[loss.rows][places]

    loss._read_out = same_masks  # type: ignore[method-assign]
    assert loss.share(0, 0).item() == pytest.approx(exact.item(), rel=1e-9)
    loss._read_out = own  # type: ignore[method-assign]
    assert loss.share(0, 0).item() != loss.share(0, 1).item()


@pytest.mark.parametrize("case", ["batches", "batches of an embedding"])
def test_batches_are_divided_evenly_and_stand_for_all_rows(case: str) -> None:
    """The mean of the losses of batches, each weighed by its size, is that of all rows."""
    trainer, whole = _trainer(Communicator(), case), _trainer_of(Communicator(), case)
    losses = []
    for each in (trainer, whole):
        each.model.eval()
        assert each.local is not None
        loss = each.local._loss
        loss._dropout.probability = 0.0
        each.planner.products = loss.freeze
        each.implicit.equilibrium(0, each.planner.train(), each.planner.adjoint())
        loss.begin(0)
        losses.append(loss)
    batches = losses[0]._batches
    assert len(batches) == 5  # 20 training nodes
    assert len(losses[1]._batches) == 1
    shares = [losses[0].share(0, turn).item() / batches[turn].weight for turn in range(5)]
    assert sum(shares) == pytest.approx(losses[1].share(0, 0).item(), rel=1e-9)
    assert torch.equal(losses[0].rows.sort().values, losses[1].rows.sort().values)
    assert losses[0].share(0, 5).item() == losses[0].share(0, 0).item()
    begun = losses[0].share(0, 1).item()
    losses[0].begin(1)
    assert losses[0].share(1, 0).item() == begun


def test_they_move_every_parameter_and_lower_the_loss() -> None:
    trainer = _trainer(Communicator(), "constant terms", local_steps=40, epochs=20)
    plain = _trainer(Communicator(), "constant terms", local_steps=0, local_lr=0.0, epochs=20)
    records, without = train(trainer, 6), train(plain, 6)
    assert [record.local_steps for record in records[:2]] == [40, 40]
    assert all(record.local_steps is None for record in without)
    assert records[-1].loss < 0.8 * without[-1].loss


def test_they_fade_out_and_the_last_epochs_are_exact() -> None:
    trainer = _trainer(Communicator(), "constant terms", local_steps=10, epochs=20)
    local = trainer.local
    assert local is not None
    shares = [local.share(epoch, stale=0) for epoch in range(20)]
    assert shares[:10] == [1.0] * 10
    assert shares[15:] == [0.0] * 5
    assert all(a > b for a, b in pairwise(shares[9:16]))
    assert [local.exact_lr_scale(epoch, stale=0) for epoch in (9, 15)] == [1.0, LAST_LR]


@pytest.mark.parametrize(
    ("patience", "expected"),
    [(1, [1.0]), (2, [1.0, 0.0]), (5, [1.0, 0.75, 0.5, 0.25, 0.0])],
)
def test_they_fade_out_as_patience_runs_down(patience: int, expected: list[float]) -> None:
    """From full length while validation improves, however short patience is."""
    trainer = _trainer(Communicator(), "constant terms", patience=patience, epochs=20)
    local = trainer.local
    assert local is not None
    assert [local.share(0, stale) for stale in range(patience)] == expected
    assert local.exact_lr_scale(0, stale=0) == 1.0
    assert train(trainer, 1)[0].local_steps == LOCAL["local_steps"]


def test_a_rise_of_the_exact_loss_is_counted_and_makes_all_steps_shorter() -> None:
    far_too_long = {"local_steps": 20, "local_lr": 0.3, "explode_factor": 0.0}
    trainer = _trainer(Communicator(), "cell plain/eignn", epochs=20, **far_too_long)
    records = train(trainer, 6)
    local = trainer.local
    assert local is not None
    assert local.kept.shrunk > 0
    assert records[-1].local_shrunk == local.kept.shrunk
    assert local.kept.trust < 1.0
    assert local.exact_lr_scale(0, stale=0) == local.kept.trust
    assert {record.local_steps for record in records} == {20}


def test_the_gradient_norm_is_that_of_the_exact_step() -> None:
    trainer = _trainer(Communicator(), "sparse", weight_decay=0.0)
    other = _trainer(Communicator(), "sparse", local_steps=0, local_lr=0.0, weight_decay=0.0)
    (record,) = train(trainer, 1)
    other.model.train()
    other.loss.share(0, other.planner, {}).backward()
    squares = [p.grad.square().sum() for p in other.model.parameters() if p.grad is not None]
    assert record.gradient_norm == pytest.approx(torch.stack(squares).sum().sqrt().item())


def test_an_epoch_that_is_skipped_has_no_figures_of_the_one_before() -> None:
    trainer = _trainer(Communicator(), "sparse", on_bad_numbers="skip")
    assert trainer.train_epoch().gradient_norm is not None
    with torch.no_grad():
        trainer.implicit.head.bias[0] = torch.nan
    record = trainer.train_epoch()
    assert record.skipped
    assert (record.local_steps, record.local_loss, record.gradient_norm) == (0, None, None)


def _course(comm: Communicator, case: str) -> dict[str, Any]:
    """Figures of a run, whose last epoch comes out the same where it is resumed."""
    trainer = _trainer(comm, case)
    records = train(trainer, 2)
    kept = take_snapshot(trainer).apart()
    trainer.implicit.propagation.reset_links()
    records += train(trainer, 1)
    resumed = _trainer(comm, case)
    restore(resumed, kept)
    assert numbers(train(resumed, 1)[0]) == numbers(records[-1])
    assert_equal(everything(resumed), everything(trainer))
    names = ("loss", "val_metric", "local_steps", "local_loss", "local_shrunk", "gradient_norm")
    return {name: [getattr(record, name) for record in records] for name in names}


def _courses(comm: Communicator, cases: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {case: _course(comm, case) for case in cases}


# of the others each option is tested by the loss, on one process
_ON_TWO = ("channels, two layers", "several labels", "weights", "batches of an embedding")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        (2, _ON_TWO),
        # that cells are the same on every cut is tested without local steps, too
        pytest.param(
            2,
            tuple(case for case in CASES if case not in _ON_TWO),
            marks=pytest.mark.long,
        ),
        # one of the four has no nodes at all in it
        (4, ("isolated and empty",)),
    ],
)
def test_every_cut_takes_the_same_steps_and_resumes_bit_for_bit(
    ranks: int, cases: tuple[str, ...]
) -> None:
    expected = _courses(Communicator(), cases)
    assert all(min(course["local_steps"]) > 0 for course in expected.values())
    for found in run_ranks(_courses, ranks, cases, timeout=200):
        for case, course in expected.items():
            for name, values in course.items():
                assert found[case][name] == pytest.approx(values, rel=1e-7), (case, name)


def _with_engine(comm: Communicator) -> dict[str, list[list[float | None]]]:
    """Figures of a short run with each engine, in float32."""
    found = {}
    for engine in ("torch", "deepspeed"):
        changes = {"forward": {"tolerance": 1e-6}, "adjoint": {"tolerance": 1e-6}}
        config = small_config(changes | {"train": LOCAL}, dtype="float32")
        config = config.model_copy(update={"engine": engine})
        records = [
            record
            for data in ("plain", "embedding")
            for record in train(small_trainer(comm, config, data), 3)
        ]
        names = ("loss", "local_loss", "gradient_norm")
        found[engine] = [[getattr(record, name) for record in records] for name in names]
    return found


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="it is not installed")
def test_both_engines_take_the_same_steps() -> None:
    for found in run_ranks(_with_engine, 2, timeout=110):
        for plain, deepspeed in zip(found["torch"], found["deepspeed"], strict=True):
            assert deepspeed == pytest.approx(plain, rel=2e-3)
            assert None not in plain
