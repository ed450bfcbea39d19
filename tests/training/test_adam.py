"""Adam without torch's compiler: the same numbers, and a run that never imports it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import DataConfig, parse_args
from distributed_ignn.graph.datasets.in_memory import fields_in_memory
from distributed_ignn.launchers.local import run_local
from distributed_ignn.runs.run import run_training
from distributed_ignn.training.adam import Adam
from tests.launch.test_train_command import SMALL

# its solver has a network; with local steps every optimiser that there is takes a step
BOTH = (*SMALL, "--train.local-steps", "2")


def _stepped(kind: type[torch.optim.Adam], fused: bool | None) -> list[torch.Tensor]:
    torch.manual_seed(0)
    weights = [torch.randn(3, 4, requires_grad=True), torch.randn(5, requires_grad=True)]
    optimizer = kind(weights, lr=0.1, weight_decay=0.01, fused=fused)
    for step in range(4):
        optimizer.zero_grad()
        torch.stack([(w.sin() * (step + 1)).sum() for w in weights]).sum().backward()
        optimizer.step()
    moments = [optimizer.state[w][key] for w in weights for key in ("exp_avg", "exp_avg_sq")]
    assert not any(moment.requires_grad for moment in moments)
    return [*weights, *moments]


@pytest.mark.parametrize("fused", [None, True])
def test_steps_are_torchs_own(fused: bool | None) -> None:
    for own, torchs in zip(_stepped(Adam, fused), _stepped(torch.optim.Adam, fused), strict=True):
        assert torch.equal(own, torchs)


def _imported(comm: Communicator, output: Path) -> bool:
    run_training(parse_args([*BOTH, "--output", str(output)]), comm)
    fields_in_memory({"edge_index": torch.zeros(2, 0, dtype=torch.int64)}, DataConfig())
    return "torch._dynamo" in sys.modules


def test_no_rank_imports_the_compiler(tmp_path: Path) -> None:
    """It would cost each a second and 145 MiB. PyG imports it: a dictionary needs none of that."""
    assert run_local(_imported, 2, tmp_path / "run", timeout=100) == [False, False]
