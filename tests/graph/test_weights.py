"""Weighted adjacencies: what a weight may be, what becomes of parallel edges and directions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph import building
from distributed_ignn.graph.data import CSRMatrix, csr_from_edges, is_symmetric
from distributed_ignn.graph.weights import checked_weights

N = 13


@pytest.fixture(params=[1, 7, 10**6], autouse=True)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sizes at which small arrays fall into many blocks and ranges, a few, and one."""
    monkeypatch.setattr(building, "_BLOCK", request.param)
    return request.param


def _edges(count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """With repeats, self-loops and some weights of 0."""
    ends = torch.randint(0, N, (2, count))
    weight = torch.rand(count, dtype=torch.float64) * 3
    weight[::9] = 0.0
    return ends[0], ends[1], weight


def _dense(row: Tensor, col: Tensor, weight: Tensor) -> Tensor:
    """The sum of all entries, without the diagonal."""
    dense = torch.zeros(N, N, dtype=torch.float64)
    dense.index_put_((row, col), weight, accumulate=True)
    return dense.fill_diagonal_(0.0)


def _mirrored(dense: Tensor) -> Tensor:
    return torch.where(dense == 0.0, dense.T, dense)


def _assert_canonical(graph: CSRMatrix) -> None:
    keys = graph.rows() * graph.num_cols + graph.col
    assert bool((keys.diff() > 0).all())
    assert (graph.rowptr.dtype, graph.col.dtype) == (torch.int64, torch.int32)
    assert graph.value is not None
    assert bool((graph.value > 0).all())


def test_parallel_edges_add_up_and_zeros_and_loops_are_no_edges() -> None:
    row, col, weight = _edges()
    graph = csr_from_edges(row, col, N, weight, symmetric=False)
    _assert_canonical(graph)
    torch.testing.assert_close(graph.to_dense(), _dense(row, col, weight), rtol=1e-15, atol=0)
    assert graph.num_entries == int((_dense(row, col, weight) > 0).sum())


def test_a_missing_direction_gets_the_weight_of_the_other() -> None:
    row, col, weight = _edges(30)
    given = csr_from_edges(row, col, N, weight, symmetric=False)
    graph = csr_from_edges(row, col, N, weight)
    _assert_canonical(graph)
    assert torch.equal(graph.to_dense(), _mirrored(given.to_dense()))
    assert is_symmetric(graph.pattern())


def test_both_directions_of_equal_weight_do_not_double() -> None:
    row, col, weight = torch.tensor([0, 1, 5]), torch.tensor([4, 2, 6]), torch.tensor([0.5, 2, 7])
    both = torch.cat([row, col]), torch.cat([col, row])
    once = csr_from_edges(row, col, N, weight)
    twice = csr_from_edges(*both, N, torch.cat([weight, weight]))
    assert is_symmetric(once)
    assert torch.equal(once.to_dense(), twice.to_dense())
    assert once.to_dense()[4, 0] == once.to_dense()[0, 4] == 0.5


def test_two_directions_of_different_weight_keep_their_own() -> None:
    graph = csr_from_edges(
        torch.tensor([0, 1, 2]), torch.tensor([1, 0, 3]), N, torch.tensor([2.0, 5.0, 4.0])
    )
    dense = graph.to_dense().tolist()
    assert (dense[0][1], dense[1][0], dense[2][3], dense[3][2]) == (2.0, 5.0, 4.0, 4.0)
    assert not is_symmetric(graph)
    assert is_symmetric(graph.pattern())


def test_directions_that_differ_by_rounding_are_one_edge() -> None:
    """As sums of the same parallel edges in another order do."""
    row = torch.tensor([0, 0, 0, 1, 1, 1])
    weight = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.2, 0.1], dtype=torch.float64)
    apart = csr_from_edges(row, 1 - row, N, weight, symmetric=False)
    assert not is_symmetric(apart)
    graph = csr_from_edges(row, 1 - row, N, weight)
    assert is_symmetric(graph)
    assert graph.to_dense()[0, 1] == pytest.approx(0.6, rel=1e-12)


def test_weights_of_one_are_no_weights() -> None:
    row, col, _ = _edges()
    first = torch.unique(row * N + col)
    row, col = first // N, first % N
    plain = csr_from_edges(row, col, N)
    graph = csr_from_edges(row, col, N, torch.ones(row.numel()))
    assert graph.value is None
    assert torch.equal(graph.rowptr, plain.rowptr)
    assert torch.equal(graph.col, plain.col)


@pytest.mark.parametrize(("factor", "dtype"), [(0.5, torch.float32), (0.1, torch.float64)])
def test_values_take_the_shortest_type_that_holds_them(factor: float, dtype: torch.dtype) -> None:
    row = torch.arange(N - 1)
    weight = factor * torch.arange(1, N, dtype=torch.float64)
    graph = csr_from_edges(row, row + 1, N, weight)
    assert graph.value is not None
    assert graph.value.dtype == dtype
    assert torch.equal(graph.to_dense().diagonal(1), weight)


def test_a_graph_without_edges_stays_one() -> None:
    none = torch.empty(0, dtype=torch.int64)
    for weight in (none.double(), None):
        assert csr_from_edges(none, none, N, weight).num_entries == 0
    loops = torch.arange(N)
    assert csr_from_edges(loops, loops, N, torch.full((N,), 2.0)).num_entries == 0


def test_row_sums_are_degrees() -> None:
    row, col, weight = _edges()
    graph = csr_from_edges(row, col, N, weight)
    torch.testing.assert_close(graph.row_sums(), graph.to_dense().sum(1), rtol=1e-14, atol=0)
    assert torch.equal(graph.pattern().row_sums(), (graph.to_dense() > 0).sum(1))


def test_symmetry_of_values_does_not_depend_on_the_blocks() -> None:
    row, col, weight = _edges()
    graph = csr_from_edges(torch.cat([row, col]), torch.cat([col, row]), N, weight.repeat(2))
    assert is_symmetric(graph)
    assert graph.value is not None
    for entry in range(graph.num_entries):
        value = graph.value.clone()
        value[entry] += 1.0
        assert not is_symmetric(CSRMatrix(graph.rowptr, graph.col, value, N))


@pytest.mark.parametrize(
    "given",
    [torch.tensor([[1.0], [2.0]]), torch.tensor([1, 2]), torch.tensor([1.0, 2.0]).half()],
    ids=["column", "integers", "half"],
)
def test_weights_of_any_real_type_and_one_column_are_taken(given: Tensor) -> None:
    assert torch.equal(checked_weights(given, 2, "w", "drop w"), torch.tensor([1.0, 2.0]).double())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.ones(3, 2), r"w has shape \(3, 2\); one number an edge is needed"),
        (torch.ones(4), "w holds 4 weights for 3 edges"),
        (torch.tensor([1.0, -0.5, 2.0]), r"w: edge 1 has weight -0\.5"),
        (torch.tensor([1.0, 2.0, math.nan]), "w: edge 2 has weight nan"),
        (torch.tensor([math.inf, 2.0, math.nan]), "w: edge 0 has weight inf"),
        (torch.full((3,), 1.5e308, dtype=torch.float64), "sum to more than a number can hold"),
    ],
)
def test_what_is_no_weight_is_refused_in_one_line(given: Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        checked_weights(given, 3, "w", "drop w")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(", or drop w")
