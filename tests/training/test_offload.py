"""train.offload: what waits in host memory, the same numbers, and when it is refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, TrainConfig
from distributed_ignn.config.shipped import shipped_file
from distributed_ignn.errors import UserError
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.runs.memory.budget import budget
from distributed_ignn.training import offload
from distributed_ignn.training.offload import HostRoom, WaitingStates
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import make_data
from tests.training.small_trainers import (
    assert_equal,
    everything,
    numbers,
    own_shard,
    small_config,
    small_trainer,
    train,
)

EPOCHS = 4
_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU counts as a device with memory of its own, and blocks hold a few rows."""
    monkeypatch.setattr(offload, "require_gpu", lambda device: None)
    monkeypatch.setattr(offload, "BLOCK_BYTES", 300)
    monkeypatch.setattr(HostRoom.__init__, "__defaults__", (300,))


def _trainer(case: str, *, waits: bool, **changes: dict[str, Any]) -> Trainer:
    sections = {"train": {"epochs": EPOCHS, "offload": waits}, **changes}
    return small_trainer(Communicator(), small_config(sections), case)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("case", ["plain", "embedding", "channels"])
def test_numbers_are_the_same_to_the_last_bit(case: str) -> None:
    # dropout in b(X): states of training and of validation are two
    own = {} if case == "embedding" else {"model": {"input_dropout": 0.2}}
    stays, waits = (_trainer(case, waits=waits, **own) for waits in (False, True))
    for one, other in zip(train(stays, EPOCHS), train(waits, EPOCHS), strict=True):
        assert numbers(one) == numbers(other)
    assert isinstance(waits.planner.states, WaitingStates)
    assert len(waits.planner.states) == len(stays.planner.states) > 0
    assert_equal(everything(waits), everything(stays))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_run_goes_on_from_what_waited() -> None:
    first = _trainer("embedding", waits=True)
    train(first, 2)
    kept, snapshot = everything(first), copy.deepcopy(take_snapshot(first))
    expected = [numbers(record) for record in train(first, 2)]
    other = _trainer("embedding", waits=True)
    restore(other, snapshot)
    assert_equal(everything(other), kept)
    assert [numbers(record) for record in train(other, 2)] == expected


def test_states_come_back_as_they_left_in_blocks_of_rows() -> None:
    room = HostRoom(torch.device("cpu"), block_bytes=64)
    rows = torch.randn(37, 5)
    assert [part.start for part in room._blocks(rows)] == list(range(0, 37, 3))
    states = WaitingStates(room)
    states["train"] = rows
    there = states._there["train"]
    assert there is not rows
    states.expect("train")
    states.expect("absent")
    assert torch.equal(states.pop("train"), rows)
    assert (len(states), states._coming) == (0, {})
    states["none"] = rows[:0]
    assert states["none"].shape == (0, 5)
    room.settle()


def test_it_is_refused_where_it_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"this run is on a CPU; drop it"):
        _trainer("plain", waits=True)
    with pytest.raises(ValueError, match=r"train.offload = true .* device = cpu; drop it"):
        RunConfig(dataset="chains", device="cpu", train=TrainConfig(offload=True))
    monkeypatch.setattr(offload, "require_gpu", lambda device: None)
    cold = {"warm_start": False}
    with pytest.raises(UserError, match=r"has no effect: forward.warm_start and adjoint.warm"):
        _trainer("plain", waits=True, forward=cold, adjoint=cold)


def _budget(case: str, *, waits: bool, **run: Any) -> dict[str, int]:
    config = small_config({"train": {"offload": waits}, "model": {"input_dropout": 0.2}})
    config = config.model_copy(update={"device": "cuda"} | run)
    shard = own_shard(Communicator(), make_data(case))
    return budget(PartSizes.from_shard(shard), config)


def test_the_budget_knows_what_waits() -> None:
    state = 60 * 8 * 8
    stays, waits = (_budget("plain", waits=waits) for waits in (False, True))
    assert stays["warm starts"] >= state
    assert "warm starts" not in waits
    assert sum(stays.values()) - sum(waits.values()) == stays["warm starts"]
    stays, waits = (_budget("embedding", waits=waits) for waits in (False, True))
    name = "embedding and its optimiser"
    assert stays[name] - waits[name] == 2 * state
    own = {
        file: _budget(
            "embedding",
            waits=True,
            engine="deepspeed",
            deepspeed_config=shipped_file("deepspeed", file),
        )
        for file in ("zero1.json", "offload.json")
    }
    assert own["zero1.json"] == waits | {name: stays[name]}  # its Adam stays where the rows are
    assert own["offload.json"] == waits


_EMULATED = """
import json, sys
from tests.training.test_offload import emulated
print(json.dumps([emulated(case, waits=w) for case in ("plain", "embedding") for w in (0, 1)]))
"""


def emulated(case: str, *, waits: int) -> dict[str, Any]:
    """Losses, and the most bytes of an emulated GPU at the start of an evaluation."""
    from distributed_ignn.models.maps import EquilibriumCell

    comm = Communicator(device=torch.device("cuda", 0))
    sections: dict[str, Any] = {"train": {"epochs": 3, "offload": bool(waits)}}
    sections["model"] = {"input_dropout": 0.0 if case == "embedding" else 0.2}
    sections["forward"] = sections["adjoint"] = {"method": "anderson", "tolerance": 1e-4}
    trainer = small_trainer(comm, small_config(sections), case)
    train(trainer, 1)
    seen: list[int] = []
    plain = EquilibriumCell.__call__

    def watched(self: EquilibriumCell, z: Tensor, rider: Tensor | None) -> Any:
        seen.append(torch.cuda.memory_allocated(comm.device))
        return plain(self, z, rider)

    EquilibriumCell.__call__ = watched  # type: ignore[method-assign]
    try:
        losses = [record.loss for record in train(trainer, 2)]
    finally:
        EquilibriumCell.__call__ = plain  # type: ignore[method-assign]
    return {"losses": losses, "bytes": max(seen)}


@pytest.mark.slow
def test_the_device_holds_less_by_what_the_budget_says() -> None:
    if not (_ROOT / "tests" / "pseudo_gpu" / "preload.py").exists():
        pytest.skip("no emulated GPU in this checkout")
    folder = _ROOT / "tests" / "gpu" / "emulated"
    done = subprocess.run(
        [sys.executable, "-c", _EMULATED],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{_ROOT}", "IGNN_EMULATED_GPUS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if "emulated GPU" in done.stderr and "RuntimeError" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    plain, plain_waits, embedded, embedded_waits = json.loads(done.stdout.splitlines()[-1])
    assert plain["losses"] == plain_waits["losses"]
    assert embedded["losses"] == embedded_waits["losses"]
    state = -(-60 * 8 * 8 // 512) * 512  # as the allocator rounds
    assert plain["bytes"] - plain_waits["bytes"] >= state
    assert embedded["bytes"] - embedded_waits["bytes"] >= 2 * state
