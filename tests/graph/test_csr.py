"""Compressed rows from entries in any order, their transpose and the check for symmetry."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from distributed_ignn.errors import UserError
from distributed_ignn.graph import building
from distributed_ignn.graph.building import MAX_IDS, row_ranges
from distributed_ignn.graph.data import (
    CSRMatrix,
    csr_from_blocks,
    csr_from_edges,
    csr_from_entries,
    entry_blocks,
    is_symmetric,
    transpose,
)


def _entries(rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distinct entries in random order; some rows and columns stay empty."""
    order = torch.randperm(rows * cols)[: rows * cols // 4]
    return order // cols, order % cols, torch.rand(order.numel(), dtype=torch.float64)


def _assert_sorted(matrix: CSRMatrix) -> None:
    keys = matrix.rows() * matrix.num_cols + matrix.col
    assert bool((keys.diff() > 0).all())


@pytest.mark.parametrize(("rows", "cols"), [(7, 11), (11, 7), (0, 3), (3, 0)])
def test_entries_are_sorted_by_row_and_column(rows: int, cols: int) -> None:
    row, col, value = _entries(rows, cols)
    given = row.clone(), col.clone(), value.clone()
    dense = torch.zeros(rows, cols, dtype=torch.float64)
    dense[row, col] = value
    matrix = csr_from_entries(row, col, rows, cols, value)
    pattern = csr_from_entries(row, col, rows, cols)
    for found, expected in ((matrix, dense), (pattern, (dense > 0).double())):
        _assert_sorted(found)
        assert found.rowptr.shape == (rows + 1,)
        assert torch.equal(found.to_dense(), expected)
    for before, after in zip(given, (row, col, value), strict=True):
        assert torch.equal(before, after)


def test_repeated_pairs_are_stored_once() -> None:
    row, col = torch.tensor([2, 0, 2, 2]), torch.tensor([1, 3, 1, 0])
    matrix = csr_from_entries(row, col, 3, 4)
    assert matrix.rowptr.tolist() == [0, 1, 1, 3]
    assert matrix.col.tolist() == [3, 0, 1]


def test_transpose_says_where_its_entries_come_from() -> None:
    row, col, value = _entries(9, 5)
    matrix = csr_from_entries(row, col, 9, 5, value)
    flipped, order = transpose(matrix)
    _assert_sorted(flipped)
    back = CSRMatrix(flipped.rowptr, flipped.col, value[torch.argsort(row * 5 + col)][order], 9)
    assert torch.equal(back.to_dense(), matrix.to_dense().T)


def test_symmetry_needs_every_entry_mirrored() -> None:
    row, col, _ = _entries(8, 8)
    both = torch.cat([row, col]), torch.cat([col, row])
    assert is_symmetric(csr_from_entries(*both, 8, 8))
    # as many entries in every row as in its column, but a cycle in one direction
    cycle = torch.arange(8)
    assert not is_symmetric(csr_from_entries(cycle, (cycle + 1) % 8, 8, 8))
    assert is_symmetric(csr_from_entries(cycle[:0], cycle[:0], 8, 8))


@pytest.fixture(params=[1, 7, 10**6])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sizes at which small arrays fall into many blocks and ranges, a few, and one."""
    monkeypatch.setattr(building, "_BLOCK", request.param)
    return request.param


def test_blocks_give_what_one_piece_gives(block: int) -> None:
    row, col, _ = _entries(13, 13)
    row, col = torch.cat([row, row[:9]]), torch.cat([col, col[:9]])  # with repeats
    dense = torch.zeros(13, 13, dtype=torch.float64)
    dense[row, col] = 1.0
    graph = csr_from_entries(row, col, 13, 13)
    assert torch.equal(graph.to_dense(), dense)
    assert (graph.rowptr.dtype, graph.col.dtype) == (torch.int64, torch.int32)
    assert graph.col.untyped_storage().nbytes() == 4 * graph.num_entries
    both = csr_from_edges(row, col, 13)
    assert torch.equal(both.to_dense(), ((dense + dense.T) > 0).double().fill_diagonal_(0.0))
    again = csr_from_blocks(entry_blocks(both), 13, symmetric=False)
    assert torch.equal(again.rowptr, both.rowptr)
    assert torch.equal(again.col, both.col)


def test_symmetry_and_chosen_rows_do_not_depend_on_the_blocks(block: int) -> None:
    row, col, value = _entries(13, 13)
    matrix = csr_from_entries(row, col, 13, 13, value)
    index = torch.tensor([12, 0, 0, 5])
    chosen = matrix.select_rows(index)
    assert torch.equal(chosen.to_dense(), matrix.to_dense()[index])
    assert chosen.col.dtype == torch.int32
    both = csr_from_edges(row, col, 13)
    assert is_symmetric(both)
    for lost in range(both.num_entries):
        keep = torch.ones(both.num_entries, dtype=torch.bool)
        keep[lost] = False
        less = csr_from_entries(both.rows()[keep], both.col[keep], 13, 13)
        assert not is_symmetric(less)


def test_ranges_of_rows_hold_what_they_may() -> None:
    rowptr = np.array([3, 3, 9, 10, 11, 30, 30, 31])
    assert list(row_ranges(rowptr, 7)) == [(0, 3), (3, 4), (4, 5), (5, 7)]
    assert list(row_ranges(rowptr[:1], 7)) == []


@pytest.mark.parametrize("nodes", [MAX_IDS + 1, 2**31, 2**40])
def test_ids_beyond_32_bits_are_refused_before_anything_is_allocated(nodes: int) -> None:
    none = torch.empty(0, dtype=torch.int64)
    for build in (
        lambda: csr_from_edges(none, none, nodes),
        lambda: csr_from_entries(none, none, 2, nodes, none.double()),
    ):
        with pytest.raises(UserError, match=r"at most 2,147,483,646") as caught:
            build()
        assert f"{nodes:,} " in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_step_holds_the_entries_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak above what was there before, over the bytes of the adjacency."""
    monkeypatch.setattr(building, "_BLOCK", 4_000)
    rng = np.random.default_rng(0)
    source, target = (torch.from_numpy(rng.integers(0, 5_000, 400_000)) for _ in range(2))

    def peak(call: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    graph = csr_from_edges(source, target, 5_000)
    size = 4 * graph.num_entries + 8 * graph.rowptr.numel()
    assert peak(lambda: csr_from_edges(source, target, 5_000)) < 1.6 * size
    assert peak(lambda: is_symmetric(graph)) < 1.3 * size
    keys = lambda: (source * 5_000 + target).numpy() + np.zeros(1, np.int64)  # noqa: E731
    assert peak(keys) > 0.9 * size  # int64 pairs are seen where they are made
