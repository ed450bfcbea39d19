"""Dropout masks belong to nodes, steps and uses: the same on every cut, and unrelated otherwise."""

from __future__ import annotations

import math

import pytest
import torch

from distributed_ignn.models import dropout
from distributed_ignn.models.dropout import NodeDropout, Stream

NODES, WIDTH = 3000, 40


def test_a_part_of_the_nodes_draws_its_rows_of_the_whole_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drop = NodeDropout(0.3, 1)
    whole = drop.mask(5, 2, torch.arange(NODES), WIDTH)
    nodes = torch.randperm(NODES)[:700]
    assert torch.equal(drop.mask(5, 2, nodes, WIDTH), whole[nodes])
    assert not torch.equal(drop.mask(5, 2, nodes, WIDTH), whole[:700])
    # blocks of the hash that divide neither the nodes nor the mask
    monkeypatch.setattr(dropout, "_BLOCK_ENTRIES", 7 * WIDTH + 3)
    assert torch.equal(drop.mask(5, 2, nodes, WIDTH), whole[nodes])


def test_entries_of_a_sparse_matrix_draw_what_the_dense_mask_has_there() -> None:
    drop = NodeDropout(0.6, 1)
    whole = drop.mask(3, 9, torch.arange(NODES), WIDTH)
    rows, cols = torch.randint(0, NODES, (5000,)), torch.randint(0, WIDTH, (5000,))
    assert torch.equal(drop.entry_mask(3, 9, rows, cols), whole[rows, cols])
    assert not torch.equal(drop.entry_mask(3, 10, rows, cols), whole[rows, cols])


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_rate_and_scale_keep_the_mean(probability: float) -> None:
    drop = NodeDropout(probability, 2)
    mask = drop.mask(0, 0, torch.arange(NODES), WIDTH)
    assert mask.shape == (NODES, WIDTH)
    deviation = math.sqrt(probability / (1 - probability) / mask.numel())
    assert abs(float(mask.double().mean()) * drop.scale - 1.0) < 5 * deviation


def test_seed_step_and_use_draw_unrelated_masks() -> None:
    nodes = torch.arange(NODES)
    first = NodeDropout(0.5, 1).mask(0, 0, nodes, WIDTH)
    others = {
        "seed": NodeDropout(0.5, 1).mask(1, 0, nodes, WIDTH),
        "step": NodeDropout(0.5, 1).mask(0, 1, nodes, WIDTH),
        "use": NodeDropout(0.5, 2).mask(0, 0, nodes, WIDTH),
    }
    for name, other in others.items():
        agreement = float((first == other).double().mean())
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(first.numel()), name
    assert torch.equal(first, NodeDropout(0.5, 1).mask(0, 0, nodes, WIDTH))


def test_a_rank_without_nodes_has_an_empty_mask() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert NodeDropout(0.5, 1).mask(0, 0, none, WIDTH).shape == (0, WIDTH)


def test_no_two_uses_draw_alike() -> None:
    """Signs of the Jacobian penalty were the mask of dropped nodes once."""
    alike = {name for name, stream in Stream.__members__.items() if stream.name != name}
    assert alike == {"KIND"}  # of models that have no local steps
    assert max(Stream) < 8  # a key has room for no more
