"""Checkpoints and kept solvers that are whole, with checksums that fit, of something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.files import write_tensors
from distributed_ignn.runs.checkpoints.checkpoint import Snapshot
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.runs.kept_solver import _checksum, load_solver, save_solver
from distributed_ignn.runs.layout import KEPT_SOLVER
from distributed_ignn.training.trainer import Trainer
from tests.fuzz.mutations import STRANGE
from tests.training.small_trainers import small_config, small_trainer

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "longer": lambda t: torch.cat([t.flatten(), t.flatten(), t.new_zeros(1)]),
    "empty": lambda t: t.new_zeros(0),
    "a number": lambda t: t.new_zeros(()),
    "whole numbers": lambda t: t.to(torch.int64),
    "bytes": lambda t: t.to(torch.uint8),
}


@pytest.fixture(scope="module")
def trained() -> tuple[Trainer, Snapshot]:
    torch.manual_seed(0)
    trainer = small_trainer(Communicator(), small_config())
    trainer.train_epoch()
    return trainer, take_snapshot(trainer)


def _refused_or_taken(trainer: Trainer, snapshot: Snapshot) -> bool:
    message = "-"
    try:
        restore(trainer, snapshot)
    except UserError as error:
        message = str(error)
    assert message.isprintable()
    return message != "-"


def test_tensors_that_are_missing_or_others(trained: tuple[Trainer, Snapshot]) -> None:
    trainer, whole = trained
    refused = 0
    for part in ("common", "rows"):
        tensors = getattr(whole, part)
        for key in tensors:
            less = {name: value for name, value in tensors.items() if name != key}
            refused += _refused_or_taken(trainer, replace(whole, **{part: less}))
            for change in CHANGES.values():
                forged = tensors | {key: change(tensors[key])}
                refused += _refused_or_taken(trainer, replace(whole, **{part: forged}))
        extra = tensors | {"optimizer/nothing": torch.ones(2), "model/other": torch.ones(1)}
        assert _refused_or_taken(trainer, replace(whole, **{part: extra}))
    assert refused > 50
    assert not _refused_or_taken(trainer, whole)


def test_states_of_other_values(trained: tuple[Trainer, Snapshot]) -> None:
    trainer, whole = trained
    for key in whole.state:
        less = {name: value for name, value in whole.state.items() if name != key}
        _refused_or_taken(trainer, replace(whole, state=less))
        for value in STRANGE:
            if _refused_or_taken(trainer, replace(whole, state=whole.state | {key: value})):
                continue
            take_snapshot(trainer)  # what was taken can be saved again
            assert isinstance(trainer.epoch, int)
            assert isinstance(trainer.stopwatch.total, float | int)
    assert not _refused_or_taken(trainer, whole)


def test_values_of_parts_that_are_missing_or_others(trained: tuple[Trainer, Snapshot]) -> None:
    trainer, whole = trained
    parts = whole.state["parts"]
    refused = 0
    for part, values in parts.items():
        forged = [{k: v for k, v in values.items() if k != key} for key in values]
        forged += [values | {key: value} for key in values for value in STRANGE]
        forged.append(values | {"another": 1})
        for other in forged:
            state = whole.state | {"parts": parts | {part: other}}
            if _refused_or_taken(trainer, replace(whole, state=state)):
                refused += 1
                continue
            take_snapshot(trainer)  # what was taken can be saved again
            assert isinstance(trainer.epoch, int)
            assert isinstance(trainer.stopwatch.total, float | int)
    assert refused > 50
    assert not _refused_or_taken(trainer, whole)


def test_kept_solvers(tmp_path: Path, trained: tuple[Trainer, Snapshot]) -> None:
    learned, comm = trained[0].learned, Communicator()
    assert learned is not None
    path = save_solver(tmp_path, learned, 3, comm)
    assert path.name == KEPT_SOLVER
    assert load_solver(tmp_path, learned, 3, comm)
    tensors = {name: value.detach() for name, value in learned.named_parameters().items()}
    metadata = {"format": "learned solver, version 1", "epoch": "3"}
    for key in tensors:
        for name, change in CHANGES.items():
            forged = tensors | {key: change(tensors[key])}
            write_tensors(path, forged, metadata | {"sha256": _checksum(forged)})
            if forged[key].shape == tensors[key].shape and forged[key].dtype == tensors[key].dtype:
                continue
            with pytest.raises(UserError, match="belongs to a run with other") as caught:
                load_solver(tmp_path, learned, 3, comm)
            assert str(caught.value).isprintable(), name
    odd = {"a": torch.ones(2, dtype=torch.bfloat16)}
    write_tensors(path, odd, metadata | {"sha256": "ab"})
    with pytest.raises(UserError, match="its checksum differs"):
        load_solver(tmp_path, learned, 3, comm)
