"""The injection b(X) against dense matrices, with and without input dropout; node embeddings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.dropout import NodeDropout, Stream
from distributed_ignn.models.encoder import FeatureEncoder, NodeEmbedding, parameter_count
from distributed_ignn.models.features import FeatureStore
from distributed_ignn.propagation.propagate import Propagation
from tests.parity.cases import FEATURES, NODES, assign, make_data

SEED, DROP = 4, 0.4


def _shards(data: GraphData, parts: int = 1) -> list[GraphShard]:
    return list(build_shards(data, assign(data.name, parts), parts))


def _dense_twin(data: GraphData) -> GraphData:
    assert isinstance(data.features, CSRMatrix)
    return replace(data, features=data.features.to_dense())


def _encoder(
    data: GraphData, drop: float, comm: Communicator | None = None, **settings: object
) -> FeatureEncoder:
    (shard,) = _shards(data)
    config = ModelConfig.model_validate({"hidden": 5, "input_dropout": drop, **settings})
    store = FeatureStore(shard, torch.float64, torch.device("cpu"), drop, SEED, config.node_dropout)
    propagation = Propagation(shard, comm or Communicator(), torch.float64)
    torch.manual_seed(0)
    return FeatureEncoder(store, FEATURES, config, propagation, shard.owned_nodes, SEED).double()


def _input(data: GraphData, step: int | None) -> Tensor:
    """X [n, F] as the encoder should see it in training step ``step``."""
    features = data.features
    assert features is not None
    dense = features.to_dense() if isinstance(features, CSRMatrix) else features
    if step is None:
        return dense
    drop = NodeDropout(DROP, Stream.FEATURES)
    return dense * drop.mask(SEED, step, torch.arange(NODES), FEATURES) * drop.scale


def _gradients_agree(encoder: FeatureEncoder, found: Tensor, expected: Tensor) -> None:
    probe = torch.randn(found.shape, dtype=torch.float64)
    parameters = list(encoder.parameters())
    mine = torch.autograd.grad((found * probe).sum(), parameters)
    theirs = torch.autograd.grad((expected * probe).sum(), parameters)
    for left, right in zip(mine, theirs, strict=True):
        assert float(right.abs().max()) > 0.0
        assert torch.allclose(left, right, rtol=0, atol=1e-10)


def _a_hat(data: GraphData, channel: int) -> Tensor:
    adjacency = data.graphs[channel].to_dense() + torch.eye(NODES, dtype=torch.float64)
    scale = adjacency.sum(dim=1).rsqrt()
    return scale[:, None] * adjacency * scale[None, :]


@pytest.mark.parametrize("step", [None, 3])
@pytest.mark.parametrize("injection", ["features", "propagated", "both"])
@pytest.mark.parametrize("case", ["plain", "channels", "directed"])
def test_injection_is_what_dense_matrices_give(case: str, injection: str, step: int | None) -> None:
    """Values and the gradient of every parameter; ``directed`` has dense features."""
    data = make_data(case)
    encoder = _encoder(data, DROP, injection=injection)
    x = _input(data, step)
    # one process owns every node, interior ones first: all of them, so in the order of their ids
    expected = torch.zeros(NODES, 5, dtype=torch.float64)
    if encoder.own is not None:
        expected = expected + x @ encoder.own
    assert len(encoder.spread) == (0 if injection == "features" else len(data.graphs))
    for channel, weight in enumerate(encoder.spread):
        expected = expected + _a_hat(data, channel) @ x @ weight
    assert encoder.bias is not None
    expected = expected + encoder.bias
    found = encoder(step)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    _gradients_agree(encoder, found, expected)


@pytest.mark.parametrize(("channels", "used"), [("graph", [0]), ("knn", [1]), ("all", [0, 1])])
@pytest.mark.parametrize("injection", ["propagated", "both"])
def test_propagated_terms_use_the_chosen_channels_alone(
    injection: str, channels: str, used: list[int]
) -> None:
    data = make_data("channels")
    encoder = _encoder(data, 0.0, injection=injection, injection_channels=channels)
    x = _input(data, None)
    assert encoder.bias is not None
    expected = encoder.bias if encoder.own is None else x @ encoder.own + encoder.bias
    assert len(encoder.spread) == len(used)
    for channel, weight in zip(used, encoder.spread, strict=True):
        expected = expected + _a_hat(data, channel) @ x @ weight
    found = encoder(None)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    _gradients_agree(encoder, found, expected)


def test_the_neighbour_graph_must_be_there_to_be_chosen() -> None:
    with pytest.raises(UserError, match="injection_channels = knn needs the neighbour graph"):
        _encoder(make_data("plain"), 0.0, injection_channels="knn")


@pytest.mark.parametrize("step", [None, 3])
def test_the_inner_layer_takes_the_place_of_the_features(step: int | None) -> None:
    data = make_data("plain")
    encoder = _encoder(data, DROP, injection_layers=2, dropout=0.3)
    assert encoder.inner is not None
    assert encoder.inner_bias is not None
    assert encoder.own is not None
    assert encoder.bias is not None
    hidden = torch.relu(_input(data, step) @ encoder.inner + encoder.inner_bias)
    if step is not None:
        drop = NodeDropout(0.3, Stream.INJECTION)
        hidden = hidden * drop.mask(SEED, step, torch.arange(NODES), 5) * drop.scale
    spread = _a_hat(data, 0) @ hidden @ encoder.spread[0]
    expected = hidden @ encoder.own + spread + encoder.bias
    found = encoder(step)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    _gradients_agree(encoder, found, expected)


def test_normalised_rows_have_mean_zero_and_variance_one_at_the_start() -> None:
    encoder = _encoder(make_data("plain"), 0.0, injection_norm="layer", hidden=16)
    rows = encoder(None)
    assert torch.allclose(rows.mean(dim=1), torch.zeros(NODES, dtype=torch.float64), atol=1e-12)
    plain = _encoder(make_data("plain"), 0.0, hidden=16)(None)
    deviation = plain.var(dim=1, unbiased=False, keepdim=True).add(1e-5).sqrt()
    expected = (plain - plain.mean(dim=1, keepdim=True)) / deviation
    assert torch.allclose(rows, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("drop", [0.0, DROP])
@pytest.mark.parametrize("case", ["plain", "directed"])
def test_dropped_nodes_lose_all_their_features(case: str, drop: float) -> None:
    data = make_data(case)
    encoder = _encoder(data, drop, injection="features", bias=False, node_dropout=0.5)
    assert encoder.own is not None
    nodes = NodeDropout(0.5, Stream.NODES)
    keep = nodes.mask(SEED, 3, torch.arange(NODES), 1)
    assert 10 < int(keep.sum()) < 50
    x = _input(data, 3) if drop else _input(data, None)
    expected = x * keep * nodes.scale @ encoder.own
    assert torch.allclose(encoder(3), expected, rtol=0, atol=1e-12)
    assert torch.allclose(encoder(None), _input(data, None) @ encoder.own, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("injection", "each_way"), [("features", 0), ("propagated", 1), ("both", 1)]
)
def test_all_channels_share_one_exchange_each_way(injection: str, each_way: int) -> None:
    comm = Communicator()
    encoder = _encoder(make_data("channels"), DROP, comm, injection=injection)
    before = comm.traffic.snapshot()
    total = encoder(3).sum()
    assert comm.traffic.since(before).exchanges == each_way
    total.backward()
    assert comm.traffic.since(before).exchanges == 2 * each_way


@pytest.mark.parametrize("injection", ["features", "propagated", "both"])
def test_dense_features_without_dropout_are_propagated_once(injection: str) -> None:
    data, comm = _dense_twin(make_data("channels")), Communicator()
    before = comm.traffic.snapshot()
    constant = _encoder(data, 0.0, comm, injection=injection, hidden=12)
    assert comm.traffic.since(before).exchanges == (0 if injection == "features" else 1)
    before = comm.traffic.snapshot()
    found = constant(3)
    varying = _encoder(make_data("channels"), 0.0, injection=injection, hidden=12)
    expected = varying(3)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    probe = torch.randn(found.shape, dtype=torch.float64)
    mine = torch.autograd.grad((found * probe).sum(), list(constant.parameters()))
    theirs = torch.autograd.grad((expected * probe).sum(), list(varying.parameters()))
    for left, right in zip(mine, theirs, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-10)
    assert comm.traffic.since(before).exchanges == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": 11},  # 2 channels x 12 features are more than 2 x 11 columns
        {"hidden": 12, "injection_layers": 2},
        {"hidden": 12, "node_dropout": 0.5},
    ],
)
def test_terms_that_vary_or_are_wide_are_propagated_every_time(settings: dict[str, object]) -> None:
    comm = Communicator()
    encoder = _encoder(_dense_twin(make_data("channels")), 0.0, comm, **settings)
    before = comm.traffic.snapshot()
    encoder(3)
    assert comm.traffic.since(before).exchanges == 1


def test_sparse_and_dense_features_drop_the_same_entries() -> None:
    data = make_data("plain")
    weight = torch.randn(FEATURES, 4, dtype=torch.float64)
    outputs = []
    for twin in (data, _dense_twin(data)):
        (shard,) = _shards(twin)
        store = FeatureStore(shard, torch.float64, torch.device("cpu"), DROP, SEED)
        outputs.append([store.linear(weight, step) for step in (None, 0, 1)])
    for sparse, dense in zip(*outputs, strict=True):
        assert torch.allclose(sparse, dense, rtol=0, atol=1e-13)
    without, first, second = outputs[0]
    assert not torch.allclose(first, without)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("case", ["plain", "channels"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"injection": "features"},
        {"injection": "propagated", "bias": False},
        {"injection_layers": 2, "injection_norm": "layer"},
        {"injection_layers": 2, "bias": False},
    ],
)
def test_parameters_are_counted_before_they_are_there(
    case: str, settings: dict[str, object]
) -> None:
    encoder = _encoder(make_data(case), 0.0, None, **settings)
    config = ModelConfig.model_validate({"hidden": 5, **settings})
    (shard,) = _shards(make_data(case))
    known = parameter_count(PartSizes.from_shard(shard), config)
    assert known == sum(parameter.numel() for parameter in encoder.parameters())


def test_no_bias_and_no_dropout_when_they_are_off() -> None:
    data = make_data("plain")
    encoder = _encoder(data, 0.0, bias=False)
    assert encoder.bias is None
    assert torch.equal(encoder(7), encoder(None))


def test_embeddings_do_not_depend_on_the_cut() -> None:
    data = make_data("embedding")
    config = ModelConfig(hidden=16)
    (whole,) = (NodeEmbedding(shard, config, 3).rows for shard in _shards(data))
    for shard in _shards(data, 4):
        rows = NodeEmbedding(shard, config, 3).rows
        assert torch.equal(rows, whole[shard.owned_nodes])
    other = NodeEmbedding(_shards(data)[0], config, 4).rows
    assert not torch.allclose(whole, other)


def test_embeddings_start_normal_with_unit_rows() -> None:
    (shard,) = _shards(make_data("embedding"))
    rows = NodeEmbedding(shard, ModelConfig(hidden=400), 0).rows.detach() * 400**0.5
    assert abs(float(rows.mean())) < 0.04
    assert abs(float(rows.std()) - 1.0) < 0.03
    # a normal number is below one standard deviation in absolute value in 68.3 % of all cases
    assert abs(float((rows.abs() < 1).double().mean()) - 0.683) < 0.02


def test_features_are_needed_where_they_are_asked_for() -> None:
    (shard,) = _shards(make_data("embedding"))
    with pytest.raises(ValueError, match="has no features; use NodeEmbedding"):
        FeatureStore(shard, torch.float32, torch.device("cpu"), 0.0, 0)
