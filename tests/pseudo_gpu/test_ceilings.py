"""What one steady evaluation of each solver asks of a GPU, and what a run leaves alive.

``make pseudo-gpu`` prints the table.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.training.trainer import Trainer
from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu.conftest import TABLE
from tests.pseudo_gpu.emulator import EmulatedGPU
from tests.pseudo_gpu.evaluation_ceilings import CEILINGS, Ceiling
from tests.pseudo_gpu.steady import CASES, above, measured, table
from tests.training.small_trainers import small_config, small_trainer

pytestmark = pytest.mark.timeout(300)

EPOCHS, WARM = 200, 20
# beyond what is alive after the first epochs: nothing piles up, but caches may still fill
_SLACK = 8


def test_no_solver_asks_for_more_than_its_ceiling(
    record_property: Callable[[str, object], None],
) -> None:
    found = measured()
    record_property(TABLE, table(found))
    assert found.keys() == CEILINGS.keys() == CASES.keys()
    assert above(found) == []


def test_one_more_of_anything_is_noticed() -> None:
    """The comparison itself."""
    for column in Ceiling.__slots__:
        found = dict(CEILINGS)
        values = {name: getattr(found["picard"], name) for name in Ceiling.__slots__}
        found["picard"] = Ceiling(**values | {column: values[column] + 1})
        (line,) = above(found)
        assert line.startswith(f"picard: {column} ")


def _alive(gpu: EmulatedGPU) -> tuple[int, int, int]:
    gc.collect()
    return len(gpu.events), len(gpu.handles), gpu.memory.tensors


def test_nothing_is_left_alive_after_many_epochs() -> None:
    """Timing events, handles of collectives, tensors; and the bytes that they hold."""
    with EmulatedGPU(1) as gpu:
        trainer = _tiny(Communicator(device=torch.device("cuda", 0)))
        for _ in range(WARM):
            trainer.train_epoch()
        before, nbytes = _alive(gpu), gpu.memory.now
        for _ in range(EPOCHS - WARM):
            trainer.train_epoch()
        after = _alive(gpu)
        assert gpu.counts.total(kinds.LAUNCH) > EPOCHS
        assert max(found - held for found, held in zip(after, before, strict=True)) <= _SLACK, (
            before,
            after,
        )
        assert after[:2] == (0, 0)
        assert gpu.memory.now <= nbytes + 4096
        assert gpu.most_events <= _SLACK, "events pile up"


def _tiny(comm: Communicator) -> Trainer:
    loose = {"method": "anderson", "tolerance": 1e-2, "max_steps": 3}
    sections: dict[str, dict[str, Any]] = {
        "forward": loose,
        "adjoint": loose,
        "model": {"kappa": 0.3, "hidden": 4, "input_dropout": 0.0},
    }
    return small_trainer(comm, small_config({**sections, "train": {"epochs": EPOCHS}}))
