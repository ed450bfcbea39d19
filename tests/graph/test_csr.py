"""Compressed rows from entries in any order, their transpose and the check for symmetry."""

from __future__ import annotations

import pytest
import torch

from distributed_ignn.graph.data import CSRMatrix, csr_from_entries, is_symmetric, transpose


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
