"""A small graph in memory, and settings that train on it in a moment."""

from __future__ import annotations

from typing import Any

import torch
from torch_geometric.data import Data

QUICK: dict[str, Any] = {
    "hidden": 8,
    "epochs": 6,
    "lr": 0.02,
    "checkpoint_every": 3,
    "eval_every": 1,
    "dtype": "float64",
    "forward": {"tolerance": 1e-10},
    "adjoint": {"tolerance": 1e-10},
}


def small_data(nodes: int = 60, seed: int = 0) -> Data:
    """Two communities with noisy features; nodes of both are mixed, so that no order is natural."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (nodes,), generator=generator)
    odds = torch.where(y[:, None] == y, 0.12, 0.02)
    edges = (torch.rand(nodes, nodes, generator=generator) < odds).triu(1).nonzero().T
    x = torch.nn.functional.one_hot(y, 2) + torch.randn(nodes, 2, generator=generator)
    split = torch.randperm(nodes, generator=generator) * 10 // nodes
    return Data(
        x=x,
        edge_index=torch.cat([edges, edges.flip(0)], dim=1),
        y=y,
        train_mask=split < 5,
        val_mask=(split >= 5) & (split < 7),
        test_mask=split >= 7,
    )
