"""Citeseer, divided by METIS: 1, 2 and 4 ranks train alike.

The same code runs on the small graphs of ``cases.py`` where the real data is absent.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import DataConfig, PartitionConfig, RunConfig
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shard
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import spread
from tests.ranks import run_ranks

_CONFIG = {
    "dataset": "citeseer",
    "model": {"hidden": 16, "input_dropout": 0.5},
    "forward": {"method": "neural", "tolerance": 1e-12, "max_steps": 200},
    "adjoint": {"tolerance": 1e-12, "max_steps": 200},
    "schedule": {"warmup_epochs": 1, "warmup_solver_steps": 1},
    "train": {"epochs": 3, "dtype": "float64"},
}


def _three_epochs(comm: Communicator, data_root: str) -> dict[str, Tensor]:
    config = RunConfig.model_validate(_CONFIG)
    data = load_dataset("citeseer", Path(data_root), DataConfig())
    plan = assign_parts(data.graphs, comm.world_size, PartitionConfig()).plan
    trainer = Trainer(config, build_shard(data, plan, comm.rank), comm)
    records = [trainer.train_epoch() for _ in range(3)]
    share = 1.0 / comm.world_size
    kept = trainer.planner.states
    # the adjoint itself is not kept once its estimator is learned; all of these come from it
    encoder = trainer.implicit.encoder
    gradients = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
    return {
        "losses": torch.tensor([r.loss for r in records], dtype=torch.float64) * share,
        "validation": torch.tensor([r.val_metric for r in records], dtype=torch.float64) * share,
        "fixed point": spread(trainer.shard, kept["evaluate"]),
        "gradients": torch.cat(gradients) * share,
        "weight": torch.stack(trainer.implicit.channel_weights()).detach() * share,
    }


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_citeseer_trains_alike_on_one_two_and_four_ranks(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = _three_epochs(Communicator(), str(shared_data))
    assert float(whole["losses"][0]) > float(whole["losses"][2])
    for world_size in (2, 4):
        reports = run_ranks(_three_epochs, world_size, str(shared_data), timeout=200)
        for name, value in whole.items():
            cut = torch.stack([report[name] for report in reports]).sum(dim=0)
            difference = float((cut - value).abs().max() / value.abs().max())
            assert difference <= 1e-10, (world_size, name)
