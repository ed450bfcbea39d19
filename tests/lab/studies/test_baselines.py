"""Explicit networks reach exactly as far as their depth, and learn what lies within it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distributed_ignn.config import ChainsConfig, ModelConfig, TrainConfig
from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.datasets.chains import make_chains
from distributed_ignn.lab.studies.baselines import (
    BASELINES,
    Choice,
    WholeGraph,
    accuracy,
    choices,
    train_baseline,
)

_CHAINS = ChainsConfig(length=7, chains_per_class=5, features=3, train_fraction=0.3)


def _logits(name: str, data: GraphData) -> Tensor:
    """Of a network with the same weights every time."""
    graph = WholeGraph.of(data)
    return graph.logits(
        graph.network(name, Choice(3, 0.1), ModelConfig(hidden=16), 1, torch.float64)
    )


@pytest.mark.parametrize("name", list(BASELINES))
def test_the_receptive_field_is_the_depth(name: str) -> None:
    data = make_chains(_CHAINS)
    features = data.features
    assert isinstance(features, CSRMatrix)
    features = features.to_dense(torch.float64)
    moved = features.clone()
    moved[0] += 1.0
    with torch.no_grad():
        before, after = (_logits(name, replace(data, features=x)) for x in (features, moved))
    change = (after - before).abs().amax(dim=1)
    assert change[3] > 1e-9
    assert change[4:].max() == 0.0


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_depth_past_the_chain_learns_the_whole_chain(name: str) -> None:
    data = make_chains(_CHAINS)
    train = TrainConfig(epochs=100, lr=0.03, weight_decay=0.0, patience=50)
    choice = Choice(12, 0.05)
    found = train_baseline(name, choice, WholeGraph.of(data), ModelConfig(hidden=16), train, 0)
    assert found.val == accuracy(found.predictions, data.labels, data.val_nodes) == 1.0
    assert found.epochs < 200  # validation cannot get better, so training ends
    # the far ends may still be wrong at the first epoch that is perfect on few validation nodes
    assert accuracy(found.predictions, data.labels, data.test_nodes) > 0.8


def test_a_teleport_as_weak_as_the_implicit_model_is_offered() -> None:
    assert choices("SGC", (2, 4), 1e-4) == [Choice(2), Choice(4)]
    assert choices("APPNP", (2,), 1e-4) == [Choice(2, 0.1), Choice(2, 1e-4)]
