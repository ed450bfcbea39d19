"""Random numbers that belong to ids: uniform, independent of each other and of the cut."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distributed_ignn.graph.hashing import hash_ids, hash_uniform, keep_mask

COUNT = 100_000


def _correlation(left: Tensor, right: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left.double(), right.double()]))[0, 1])


def _draws() -> dict[str, Tensor]:
    """COUNT numbers from consecutive ids, from strided ids, and from pairs of few ids."""
    ids = torch.arange(COUNT)
    return {
        "consecutive": hash_uniform(0, ids),
        "strided": hash_uniform(7, ids * 4096 + 3),
        "pairs": hash_uniform(3, ids // 250, ids % 250),
    }


@pytest.mark.parametrize("name", ["consecutive", "strided", "pairs"])
def test_draws_are_uniform(name: str) -> None:
    draws = _draws()[name]
    assert draws.dtype == torch.float64
    assert float(draws.min()) >= 0.0
    assert float(draws.max()) < 1.0
    # five standard deviations of the mean and of the variance of COUNT uniform numbers
    assert abs(float(draws.mean()) - 1 / 2) < 5 * math.sqrt(1 / 12 / COUNT)
    assert abs(float(draws.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / COUNT)
    counts = torch.histc(draws, bins=100, min=0.0, max=1.0)
    chi_square = float(((counts - COUNT / 100) ** 2 / (COUNT / 100)).sum())
    # 99 degrees of freedom: outside these bounds once in about a million
    assert 45 < chi_square < 180


def test_each_id_draws_alone() -> None:
    """What an id draws does not depend on which others are drawn with it, nor on their order."""
    ids = torch.randperm(1000) * 17
    cols = torch.arange(5)
    whole = hash_uniform(4, ids[:, None], cols[None, :])
    chosen = torch.randperm(1000)[:100]
    assert torch.equal(hash_uniform(4, ids[chosen][:, None], cols[None, :]), whole[chosen])
    assert torch.equal(hash_ids(4, ids[chosen]), hash_ids(4, ids)[chosen])
    mask = keep_mask(4, ids[:, None], cols[None, :], 0.5)
    assert torch.equal(keep_mask(4, ids[chosen][:, None], cols[None, :], 0.5), mask[chosen])
    assert bool(mask.any())
    assert not bool(mask.all())


def test_seeds_and_neighbours_are_unrelated() -> None:
    ids = torch.arange(COUNT)
    first = hash_uniform(0, ids)
    bound = 5 / math.sqrt(COUNT)
    for seed in (1, 2, 3, 1000):
        assert abs(_correlation(first, hash_uniform(seed, ids))) < bound
    assert abs(_correlation(first[:-1], first[1:])) < bound
    # a pair is ordered
    pairs = hash_uniform(0, ids // 250, ids % 250), hash_uniform(0, ids % 250, ids // 250)
    assert abs(_correlation(*pairs)) < bound


def test_distinct_ids_have_distinct_hashes() -> None:
    """splitmix64 is a bijection of 64-bit numbers."""
    ids = torch.cat([torch.arange(COUNT), torch.arange(COUNT) + 2**40])
    assert torch.unique(hash_ids(9, ids)).numel() == ids.numel()


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 0.9])
def test_masks_keep_the_asked_share(drop: float) -> None:
    mask = keep_mask(11, torch.arange(1000)[:, None], torch.arange(200)[None, :], drop)
    assert mask.shape == (1000, 200)
    deviation = math.sqrt(drop * (1 - drop) / mask.numel())
    assert abs(float(mask.double().mean()) - (1 - drop)) <= 5 * deviation
    # neither a row nor a column keeps all or nothing more often than chance
    for dim, length in ((0, 1000), (1, 200)):
        share = mask.double().mean(dim=dim)
        spread = math.sqrt(drop * (1 - drop) / length)
        assert float((share - (1 - drop)).abs().max()) <= 5.5 * spread


def test_masks_of_different_seeds_are_unrelated() -> None:
    rows, cols = torch.arange(1000)[:, None], torch.arange(200)[None, :]
    first = keep_mask(2, rows, cols, 0.5).flatten()
    for seed in (3, 4, 18, 1002):
        other = keep_mask(seed, rows, cols, 0.5).flatten()
        assert abs(_correlation(first, other)) < 5 / math.sqrt(first.numel())


def test_columns_and_rows_of_a_mask_are_unrelated() -> None:
    mask = keep_mask(5, torch.arange(2000)[:, None], torch.arange(30)[None, :], 0.5).double()
    for axis in (mask.T, mask[:30]):
        correlations = torch.corrcoef(axis)
        correlations.fill_diagonal_(0.0)
        assert float(correlations.abs().max()) < 6 / math.sqrt(axis.shape[1])
