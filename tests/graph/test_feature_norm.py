"""Scaling of features by rows and by columns, sparse and dense alike."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distributed_ignn.config import DataConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, csr_from_entries
from distributed_ignn.graph.datasets import graph_in_memory, graph_to_predict
from distributed_ignn.graph.datasets.feature_norm import (
    CHOSEN,
    Kind,
    apply_scaling,
    column_statistics,
    kind_of,
    scale_features,
)
from distributed_ignn.graph.feature_scaling import FeatureNorm, FeatureScaling
from distributed_ignn.graph.partitioning.merging import merge_shards
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.storage.shard_file import read_shard_file, write_shard_file


def _sparse(dense: Tensor) -> CSRMatrix:
    row, col = dense.nonzero(as_tuple=True)
    return csr_from_entries(row, col, dense.shape[0], dense.shape[1], dense[row, col])


def _dense(features: CSRMatrix | Tensor | None) -> Tensor:
    assert features is not None
    return features if isinstance(features, Tensor) else features.to_dense()


@pytest.mark.parametrize(("how", "size"), [("row", 7.0), ("l2", 5.0)])
def test_rows_have_length_one_and_empty_rows_stay_empty(how: FeatureNorm, size: float) -> None:
    dense = torch.tensor([[3.0, 0.0, -4.0], [0.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    scale = torch.tensor([[1 / size], [1.0], [0.5]], dtype=torch.float64)
    for features in (dense, _sparse(dense)):
        found, scaling = scale_features(features, how, "here")
        assert scaling is None
        assert torch.allclose(_dense(found), dense * scale, rtol=1e-15, atol=0)


def test_none_hands_back_what_it_was_given() -> None:
    dense = torch.rand(4, 3)
    assert scale_features(dense, "none", "here") == (dense, None)
    assert scale_features(None, "standard", "here") == (None, None)


def test_standard_columns_have_mean_zero_and_deviation_one() -> None:
    """Also where the mean is large beside the deviation; a constant column becomes exactly 0."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1000, 4, generator=generator) * torch.tensor([1.0, 1e-4, 1e6, 0.0])
    features += torch.tensor([0.0, 3.0, -1e7, 0.1])
    before = features.clone()
    found = _dense(scale_features(features, "standard", "here")[0]).double()
    assert torch.equal(features, before)
    assert found[:, 3].tolist() == [0.0] * 1000
    assert float(found.mean(dim=0).abs().max()) < 1e-3  # of numbers rounded to float32
    assert torch.allclose(found[:, :3].std(dim=0, correction=0), torch.ones(3).double(), rtol=1e-6)


def test_column_statistics_are_those_of_numpy_and_of_any_block_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = torch.randn(500, 3) + 2.0
    mean, deviation = column_statistics(features)
    exact = features.double().numpy()
    assert np.allclose(mean.numpy(), exact.mean(axis=0), rtol=1e-14)
    assert np.allclose(deviation.numpy(), exact.std(axis=0), rtol=1e-14)
    monkeypatch.setattr("distributed_ignn.graph.datasets.feature_norm._ROWS", 7)
    for whole, pieces in zip((mean, deviation), column_statistics(features), strict=True):
        assert torch.allclose(whole, pieces, rtol=1e-14)


def test_sparse_columns_are_divided_and_keep_their_zeros(
    caplog: pytest.LogCaptureFixture,
) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(60, 6, generator=generator) * (torch.rand(60, 6, generator=generator) > 0.7)
    dense[:, 4], dense[:, 5] = 3.0, 0.0  # constant with and without stored entries
    with caplog.at_level(logging.INFO):
        found = _dense(scale_features(_sparse(dense), "standard", "here")[0])
    assert caplog.messages[0].startswith("here: data.feature_norm = standard divides the columns")
    expected = dense[:, :4] / dense[:, :4].double().std(dim=0, correction=0).float()
    assert torch.allclose(found[:, :4].float(), expected, rtol=1e-6)
    assert not found[:, 4:].any()
    col = torch.zeros(2, dtype=torch.int32)
    ones = CSRMatrix(torch.tensor([0, 1, 1, 2, 2]), col, None, 1)
    assert _dense(scale_features(ones, "standard", "here")[0]).flatten().tolist() == [2, 0, 2, 0]


def _uneven() -> Tensor:
    return torch.randn(50, 3) * torch.tensor([1.0, 100.0, 1.0])


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        (_sparse(torch.eye(20)), "sparse"),
        (torch.eye(20), "sparse"),
        ((torch.rand(50, 4) > 0.5).float(), "binary"),
        (torch.randn(50, 4), "even"),
        (_uneven(), "uneven"),
        (torch.randn(50, 4) + torch.tensor([2000.0, 0.0, 0.0, 0.0]), "uneven"),
        (torch.full((5, 2), 3.0), "even"),
    ],
)
def test_auto_looks_at_the_features_and_says_what_it_took(
    features: CSRMatrix | Tensor, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    assert kind_of(features) == kind
    with caplog.at_level(logging.INFO):
        found, scaling = scale_features(features, "auto", "here")
    assert scaling is not None
    assert scaling.norm == CHOSEN[kind] == ("l2" if kind in ("sparse", "binary") else "standard")
    assert f"here: data.feature_norm auto takes {scaling.norm} for these" in caplog.messages[0]
    assert found is not features


@pytest.mark.parametrize(
    ("features", "why"),
    [
        (torch.eye(20), None),
        (_sparse(torch.eye(20)), None),
        ((torch.rand(50, 4) > 0.5).float(), "% of them are not 0"),
        (_sparse((torch.rand(50, 4) > 0.5).float()), "% of them are not 0"),
        (-torch.eye(20), "some are negative"),
        (_sparse(-torch.eye(20)), "some are negative"),
    ],
)
def test_rows_of_dense_or_signed_features_are_warned_of(
    features: CSRMatrix | Tensor, why: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        scale_features(features, "row", "here")
    assert len(caplog.messages) == (why is not None)
    assert why is None or why in caplog.messages[0]


def _graph(x: Tensor) -> dict[str, Tensor]:
    nodes = torch.arange(len(x))
    return {
        "edge_index": torch.stack([nodes, nodes.roll(1)]),
        "x": x,
        "y": nodes % 2,
        "train_idx": nodes[:2],
        "val_idx": nodes[2:4],
        "test_idx": nodes[4:],
    }


@pytest.mark.parametrize("asked", ["auto", "standard"])
def test_another_graph_is_scaled_by_the_numbers_of_the_first(asked: str, tmp_path: Path) -> None:
    data = DataConfig.model_validate({"feature_norm": asked})
    first, other = _uneven(), 5.0 + _uneven()
    loaded = graph_in_memory(_graph(first), data)
    part = torch.arange(50) % 2
    shards = list(build_shards(loaded, part, 2))
    for number, shard in enumerate(shards):
        write_shard_file(tmp_path / str(number), shard)
    read = [read_shard_file(tmp_path / str(number)) for number in range(2)]
    scaling = merge_shards(read).scaling
    assert scaling is not None
    found = graph_to_predict(_graph(other), data, 2, "multiclass", scaling=scaling)
    exact = first.double()
    expected = (other.double() - exact.mean(dim=0)) / exact.std(dim=0, correction=0)
    assert torch.allclose(_dense(found.features).double(), expected, rtol=1e-5, atol=1e-5)
    # stored with or without its zeros, and means have to be subtracted
    sparse = graph_to_predict(_graph(other.to_sparse()), data, 2, "multiclass", scaling=scaling)
    assert torch.allclose(_dense(sparse.features).double(), expected, rtol=1e-5, atol=1e-5)


def test_scaling_of_other_columns_is_refused() -> None:
    scaling = scale_features(_uneven(), "standard", "here")[1]
    assert scaling is not None
    for features in (torch.rand(5, 2), None):
        with pytest.raises(UserError, match=r"there has (2|no) feature columns") as caught:
            apply_scaling(features, scaling, "there")
        assert "\n" not in str(caught.value)


def test_a_shard_with_half_a_scaling_is_refused() -> None:
    numbers = torch.ones(3, dtype=torch.float64)
    assert FeatureScaling("standard", numbers, numbers).fits(3)
    assert FeatureScaling("none").fits(3)
    assert not FeatureScaling("standard", numbers).fits(3)
    assert not FeatureScaling("none", numbers, numbers).fits(3)
    assert not FeatureScaling("standard", numbers, numbers.float()).fits(3)
    assert not FeatureScaling("standard", numbers, numbers / 0).fits(3)
    assert not FeatureScaling("standard", numbers, numbers).fits(4)


@pytest.mark.parametrize("norm", ["row", "l2"])
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_that_overflow_are_refused(norm: FeatureNorm, sparse: bool) -> None:
    features = torch.ones(3, 4)
    features[1] = 3e38
    with pytest.raises(UserError, match=f"here: .* node 1 are too large .* = {norm}; divide"):
        scale_features(_sparse(features) if sparse else features, norm, "here")
