"""Where W starts: an identity shares the bound among the channels that the injection uses."""

from __future__ import annotations

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.models.cells.ignn import IgnnWeights
from distributed_ignn.models.shard_model import ShardModel
from tests.parity.cases import make_data
from tests.training.small_trainers import own_shard


def _model(case: str, channels: str, init: str = "identity") -> ShardModel:
    config = ModelConfig.model_validate({"hidden": 3, "init": init, "injection_channels": channels})
    comm = Communicator()
    return ShardModel(own_shard(comm, make_data(case)), comm, config, torch.float64, 0)


@pytest.mark.parametrize(
    ("channels", "shares"), [("all", (0.5, 0.5)), ("graph", (1.0, 0.0)), ("knn", (0.0, 1.0))]
)
def test_identity_starts_in_the_channels_of_the_injection(
    channels: str, shares: tuple[float, float]
) -> None:
    weights = _model("channels", channels).cell_weights
    assert isinstance(weights, IgnnWeights)
    eye = torch.eye(3, dtype=torch.float64)
    for weight, share in zip(weights.weight.detach(), shares, strict=True):
        assert torch.allclose(weight, share * weights.radius * eye, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("channels", "shares"), [("all", (0.5, 0.5)), ("graph", (1.0, 0.0)), ("knn", (0.0, 1.0))]
)
def test_a_signed_start_turns_every_second_column_and_keeps_the_bound(
    channels: str, shares: tuple[float, float]
) -> None:
    weights = _model("channels", channels, "signed").cell_weights
    assert isinstance(weights, IgnnWeights)
    signs = torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
    for weight, share in zip(weights.weight.detach(), shares, strict=True):
        assert torch.allclose(weight, share * weights.radius * signs, rtol=1e-6, atol=0)
    assert weights.is_inside()
    assert weights.present_contraction() == pytest.approx(0.95)


@pytest.mark.parametrize("cell", ["eignn", "mignn"])
def test_a_signed_start_of_other_cells_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match=f"init = signed has no effect with cell = {cell}"):
        ModelConfig.model_validate({"init": "signed", "cell": cell})


def test_a_missing_neighbour_graph_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="injection_channels = knn needs"):
        _model("plain", "knn")
