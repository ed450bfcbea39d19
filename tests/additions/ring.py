"""A ring of two halves, each of one class that its features tell with noise."""

from __future__ import annotations

from pathlib import Path

import torch

from distributed_ignn.config import DataConfig
from distributed_ignn.graph.data import GraphData, csr_from_edges

_NODES = 60


def load_ring(name: str, data_root: Path, data: DataConfig) -> GraphData:
    """The ring; nothing is read."""
    nodes = torch.arange(_NODES)
    labels = (nodes >= _NODES // 2).long()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_NODES, 4, generator=generator)
    return GraphData(
        name=name,
        graphs=(csr_from_edges(nodes, (nodes + 1) % _NODES, _NODES),),
        features=noise + labels[:, None].float(),
        labels=labels,
        num_classes=2,
        task="multiclass",
        train_nodes=nodes[::3],
        val_nodes=nodes[1::3],
        test_nodes=nodes[2::3],
    )
