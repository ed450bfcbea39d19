"""Splits of one's own graph: a column of many, or drawn with a seed; never in silence."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from distributed_ignn.config import DataConfig, RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import graph_in_memory
from distributed_ignn.graph.storage.request import data_settings

N = 60
NODES = torch.arange(N)
SPLITS = ("train", "val", "test")
#: Of three columns of masks, column k begins at node k.
MASKS = {
    f"{split}_mask": torch.stack([torch.roll((NODES // 20).eq(i), k) for k in range(3)], 1)
    for i, split in enumerate(SPLITS)
}


def _graph(**changes: Any) -> dict[str, Any]:
    ring = torch.stack([NODES, torch.roll(NODES, 1)])
    plain = {"edge_index": ring, "y": NODES % 3, **MASKS}
    return {key: value for key, value in (plain | changes).items() if value is not None}


NONE = dict.fromkeys(MASKS)


def _load(data: Any, **settings: Any) -> GraphData:
    return graph_in_memory(data, DataConfig(**settings))


def _ids(data: GraphData) -> list[list[int]]:
    return [getattr(data, f"{split}_nodes").tolist() for split in SPLITS]


@pytest.mark.parametrize("column", range(3))
def test_a_column_of_masks_or_of_lists(column: int) -> None:
    expected = [sorted((i * 20 + column + k) % N for k in range(20)) for i in range(3)]
    assert _ids(_load(_graph(), split=column)) == expected
    rows = {name: mask.T for name, mask in MASKS.items()}
    assert _ids(_load(_graph(**rows), split=column)) == expected
    lists = {
        f"{split}_idx": torch.tensor([[(i * 20 + c + k) % N for c in range(3)] for k in range(20)])
        for i, split in enumerate(SPLITS)
    }
    assert _ids(_load(_graph(**NONE, **lists), split=column)) == expected


def test_lists_of_different_length_are_filled_up_with_minus_one() -> None:
    lists = {"train_idx": torch.tensor([[0, 1], [2, -1]]), "val_idx": torch.tensor([[3, 4]])}
    found = _load(_graph(**NONE, **lists, test_idx=torch.tensor([7, 8])), split=1)
    assert _ids(found) == [[1], [4], [7, 8]]


def test_one_split_for_all_columns() -> None:
    """WikiCS has one test split beside twenty of the others."""
    parts = {"train_mask": MASKS["train_mask"][:, 1:], "val_mask": MASKS["val_mask"][:, 1:]}
    one = MASKS["test_mask"][:, 2]
    found = _load(_graph(**parts, test_mask=one), split=1)
    assert found.test_nodes.tolist() == one.nonzero().flatten().tolist()
    assert found.train_nodes.tolist() == list(range(2, 22))


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {}, r"train_mask holds 3 splits, one a column; choose one, as in --data\.split 0"),
        ({}, {"split": 3}, r"data\.split = 3 is not there: .* holds the splits 0 to 2"),
        (
            {name: mask[:, 0] for name, mask in MASKS.items()},
            {"split": 0},
            r"data\.split = 0 and data holds one split at most; drop the setting",
        ),
        (NONE, {}, r"train nodes are missing; .* --data\.split random draws one"),
        (
            {name: mask[:, 0] for name, mask in MASKS.items()} | {"val_mask": None},
            {},
            r"val nodes are missing; .* --data\.split random draws one",
        ),
        (
            {"y": (torch.rand(N, 3) > 0.5).float()},
            {"split": "per-class"},
            "have several labels; take --data.split random",
        ),
        (
            {},
            {"split": "per-class"},
            r"class 0 has 20 labelled nodes, data\.split_train = 20 takes 20 and leaves none; "
            r"lower it, as with --data\.split-train 0\.2",
        ),
        ({}, {"split": "random", "split_train": 70}, "the graph has 60 labelled nodes"),
    ],
)
def test_what_cannot_be_is_one_line(
    changes: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _load(_graph(**changes), **settings)
    assert "\n" not in str(caught.value)


def test_drawn_splits_are_those_of_their_seed(caplog: pytest.LogCaptureFixture) -> None:
    y = torch.where(NODES < 10, -1, NODES % 3)
    with caplog.at_level(logging.INFO):
        first = _load(_graph(y=y), split="random")
    assert "the split is drawn, that of the file is not used (data.split = random" in caplog.text
    train, val, test = _ids(first)
    assert (len(train), len(val), len(test)) == (30, 10, 10)
    assert sorted(train + val + test) == list(range(10, N))
    assert train == sorted(train)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert _ids(_load(_graph(y=y, **NONE), split="random")) == [train, val, test]
    assert "seed 0): 30 train, 10 val, 10 test nodes" in caplog.text
    assert "not used" not in caplog.text
    assert _ids(_load(_graph(y=y), split="random", split_seed=1)) != [train, val, test]
    sizes = _ids(_load(_graph(y=y), split="random", split_train=7, split_val=0.5))
    assert [len(nodes) for nodes in sizes] == [7, 25, 18]


def test_drawn_by_class() -> None:
    y = torch.where(NODES < 6, 0, torch.where(NODES < 36, 1, 2))
    found = _load(_graph(y=y, **NONE), split="per-class", split_train=2, split_val=0.5)
    train, val, test = (y[torch.tensor(nodes)].bincount().tolist() for nodes in _ids(found))
    assert (train, val, test) == ([2, 2, 2], [3, 15, 12], [1, 13, 10])
    assert sum(len(nodes) for nodes in _ids(found)) == N


def test_missing_validation_nodes_come_from_the_training_nodes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = {name: mask[:, 0] for name, mask in MASKS.items()} | {"val_mask": None}
    with caplog.at_level(logging.INFO):
        train, val, test = _ids(_load(_graph(**one), split="random"))
    assert "validation nodes are drawn from the training nodes" in caplog.text
    assert sorted(train + val) == list(range(20))
    assert (len(val), test) == (4, list(range(40, 60)))
    by_class = _load(_graph(**one), split="per-class", split_val=1)
    assert sorted((by_class.val_nodes % 3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"dataset": "acm", "data": {"split": 1}}, r"data\.split = 1 is for a graph of your own"),
        ({"dataset": "x.npz", "data": {"split_val": 0.1}}, r"no effect with split = file"),
        ({"dataset": "x.npz", "data": {"split": 2, "split_val": 0.1}}, "no effect with split = 2"),
        ({"dataset": "x.npz", "data": {"split_seed": 1}}, r"data\.split_seed = 1 has no effect"),
        (
            {"dataset": "x.npz", "data": {"split": "random", "split_train": 0.9}},
            r"split_train = 0\.9 and split_val = 0\.2 leave no test nodes",
        ),
        (
            {"dataset": "x.npz", "data": {"split": "random", "split_train": 3.5}},
            r"split_train = 3\.5 is neither a share below 1 nor a whole number",
        ),
    ],
)
def test_settings_without_effect_are_refused(run: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(run)


def test_the_seed_is_read_where_the_split_is_drawn() -> None:
    drawn = {"split": "random", "split_seed": 4}
    assert RunConfig.model_validate({"dataset": "x.npz", "data": drawn}).data.split_seed == 4


def test_shards_know_their_split() -> None:
    """Settings that are younger than the shards stand for what was read before."""
    old = data_settings("x.npz", DataConfig())
    assert not any("split" in key for key in old)
    assert data_settings("x.npz", DataConfig(split="random", split_seed=1)) != data_settings(
        "x.npz", DataConfig(split="random")
    )
