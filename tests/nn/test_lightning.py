"""The layers inside Lightning's trainer, where it is installed (pip install lightning)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torch_geometric.nn import SAGEConv

from distributed_ignn.nn import FixedPoint, ImplicitGNN
from tests.nn.small_maps import both_ways

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own advice
lightning: Any = pytest.importorskip("lightning")


class _Both(nn.Module):
    """A fixed point of SAGEConv, whose output is the features of an ImplicitGNN."""

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = FixedPoint(SAGEConv(4, 4), bound=0.9, tolerance=1e-6)
        self.model = ImplicitGNN(4, 8, 2, dropout=0.2, tolerance=1e-6)
        ring = torch.arange(30)
        self.register_buffer("pairs", both_ways(torch.stack([ring, (ring + 1) % 30])))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.layer(x, self.pairs), self.pairs).logits
        return logits


def test_fit_checkpoint_and_reload(tmp_path: Path) -> None:
    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _Both()
            self.losses: list[float] = []

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            x, y = batch[0][0], batch[1][0]
            loss = functional.cross_entropy(self.net(x), y)
            self.losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    x = torch.randn(30, 4)
    batches = DataLoader(TensorDataset(x[None], (x[None, :, 0] > 0).long()))
    task = Task()
    trainer = lightning.Trainer(
        max_epochs=30,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        gradient_clip_val=1.0,
    )
    trainer.fit(task, batches)
    assert task.losses[-1] < 0.5 * task.losses[0]
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    loaded = Task.load_from_checkpoint(path)
    assert torch.allclose(loaded.eval().net(x), task.eval().net(x), atol=1e-5)
