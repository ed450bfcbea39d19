"""The Triton kernels against float64, interpreted on the CPU; ``tests/gpu`` runs them compiled."""

from __future__ import annotations

import importlib.util
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.device import triton_seam
from distributed_ignn.errors import UserError
from distributed_ignn.propagation.entries import Entries
from distributed_ignn.propagation.kernels import choose_kernel
from distributed_ignn.propagation.triton_rows import (
    LONGEST,
    TritonRows,
    fused_rows,
    tile_columns,
    tile_rows,
)
from tests.device.marks import needs_triton
from tests.device.triton_runs import run_interpreted
from tests.gpu.sections.agreement import kernel_errors
from tests.gpu.setting import SIZES, Setting
from tests.parity.cases import sum_reports
from tests.propagation.triton_cases import (
    cell_report,
    evaluation_errors,
    fusable,
    not_a_number,
    product_errors,
    rounded_product_error,
)
from tests.ranks import run_ranks

EXACT = 1e-6  # of float32 sums, relative to sums of absolute values
ROUNDED = 2.0**-7  # of bfloat16; the interpreter cuts digits off where a GPU rounds

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@needs_triton
def test_products_agree_with_float64() -> None:
    (errors,) = run_interpreted(product_errors)
    assert len(errors) == 16
    assert {name: error for name, error in errors.items() if error > EXACT} == {}


def _compiled(comm: Communicator) -> tuple[int, int, dict[str, tuple[float, float]]]:
    """Products and configurations that a GPU would compile for ``make gpu``."""
    from distributed_ignn.propagation import triton_kernels
    from distributed_ignn.propagation.triton_kernels import product_kernel

    product_kernel.configs = [
        triton_kernels.triton.Config({"UNROLL": unroll}, num_warps=warps)
        for unroll, warps in triton_kernels.PRODUCT
    ]
    met: set[tuple[object, ...]] = set()
    run = product_kernel.run

    def watched(*args: Any, **named: Any) -> Any:
        given = dict(zip(product_kernel.arg_names, args, strict=False)) | named
        kinds = [str(each.dtype) for each in given.values() if isinstance(each, Tensor)]
        key = [given[name] for name in product_kernel.keys if name in given]
        met.update((*key, *kinds, str(config)) for config in product_kernel.configs)
        return run(*args, **named)

    with mock.patch.object(product_kernel, "run", watched):
        errors = kernel_errors(comm, Setting("cpu", 0, SIZES["tiny"], "", 0.0))
    return len(met), len(product_kernel.configs), errors


@needs_triton
def test_make_gpu_compiles_few_products() -> None:
    """Every kind of entries and width in every configuration would be 200, a second or two each."""
    ((compiled, configurations, errors),) = run_interpreted(_compiled)
    assert 20 < compiled <= 50
    assert configurations == 6
    assert {name for name, (error, limit) in errors.items() if error > limit} == set()


@needs_triton
def test_bfloat16_rows_are_added_in_float32() -> None:
    (error,) = run_interpreted(rounded_product_error)
    assert error < ROUNDED
    (report,) = run_interpreted(evaluation_errors, torch.bfloat16)
    for name, errors in report.items():
        # only what is stored in bfloat16 is rounded
        assert errors["squares"] < EXACT, name
        assert errors.get("product", 0.0) < EXACT, name
        assert errors["image"] < ROUNDED, name
    assert max(errors["image"] for errors in report.values()) > EXACT


@needs_triton
def test_evaluations_agree_with_float64() -> None:
    for precision in ("ieee", "tf32x3"):
        (report,) = run_interpreted(evaluation_errors, torch.float32, precision)
        assert sum("product" in errors for errors in report.values()) == 2
        for name, errors in report.items():
            assert max(errors.values()) < EXACT, (name, errors)


@needs_triton
def test_nan_is_seen_and_only_rows_that_a_kernel_takes_are_fused() -> None:
    assert run_interpreted(not_a_number) == [[True, True, True]]
    assert run_interpreted(fusable) == [[True, False, False, False, True, False]]


@needs_triton
def test_cells_agree_with_float64_on_one_rank_and_two() -> None:
    expected = sum_reports(run_ranks(cell_report, 1, "reduce"))
    for world_size in (1, 2):
        found = sum_reports(run_interpreted(cell_report, "triton", ranks=world_size))
        for case, values in found.items():
            # what is mixed goes the usual way, product by product
            fused = not case.endswith("mixed")
            assert values.pop("<known>") == (world_size if fused else 0), case
            for name, value in values.items():
                if name == "<steps>":
                    assert value == world_size * expected[case][name]
                    continue
                error = (value - expected[case][name]).norm() / expected[case][name].norm()
                assert error < EXACT, (case, name, world_size)


def test_every_entry_is_summed_once_and_programs_take_rows_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    degree = torch.randint(0, 40, (9000,), generator=generator)
    degree[torch.randint(0, 9000, (30,), generator=generator)] = LONGEST + 1
    degree[17], degree[8000] = 17_000, LONGEST
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), degree.cumsum(0)]).int()
    entries = int(offsets[-1])
    rows = TritonRows.from_entries(
        Entries(offsets, torch.zeros(entries, dtype=torch.int32), None, None, None, 1)
    )
    both = torch.cat([rows.short.row, rows.long.row])
    assert torch.equal(both.sort().values.long(), torch.arange(9000))
    seen = torch.zeros(entries, dtype=torch.int64)
    for work in (rows.short, rows.pieces):
        assert int(work.length.max()) <= LONGEST
        for begin, length in zip(work.begin.tolist(), work.length.tolist(), strict=True):
            seen[begin : begin + length] += 1
    assert int(seen.min()) == int(seen.max()) == 1
    # the pieces of a row are those of its entries
    for row, begin, count in zip(*(t.tolist() for t in _fields(rows.long)), strict=True):
        starts = rows.pieces.begin[begin : begin + count]
        assert int(starts[0]) == int(offsets[row])
        assert int(rows.pieces.length[begin : begin + count].sum()) == int(degree[row])
        assert torch.equal(
            rows.pieces.row[begin : begin + count].long(), begin + torch.arange(count)
        )
    # slots that wait for the longest row of their program: nearly none, but many in the old order
    assert _waiting(rows.short.length) < 0.03 < 0.4 < _waiting(degree[degree <= LONGEST])


def _fields(work: object) -> tuple[torch.Tensor, ...]:
    return tuple(getattr(work, name) for name in ("row", "begin", "length"))


def _waiting(length: torch.Tensor) -> float:
    rows = tile_rows(128)
    groups = length[: length.numel() // rows * rows].reshape(-1, rows)
    return 1.0 - float(groups.sum()) / float(groups.max(dim=1).values.sum() * rows)


def test_tiles_hold_all_columns_and_enough_rows_for_a_dense_product() -> None:
    for width in (1, 16, 100, 128, 256):
        assert tile_columns(width) >= max(width, 16)
    assert tile_columns(300) == 256
    widths = (1, 64, 128, 256)
    assert [tile_rows(tile_columns(width)) for width in widths] == [128, 32, 16, 16]
    assert [fused_rows(tile_columns(width)) for width in widths] == [64, 64, 64, 32]


def test_triton_is_taken_by_name_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(triton_seam, "_against_compiling", lambda: None)
    assert choose_kernel("triton", torch.float32, GPU) == "triton"
    assert choose_kernel("triton-product", torch.bfloat16, GPU) == "triton-product"
    assert choose_kernel("auto", torch.float32, CPU) == "bag"
    with pytest.raises(
        UserError, match=r"train.kernel = triton: .*float32.*float64; --train.*auto"
    ):
        choose_kernel("triton", torch.float64, GPU)
    with pytest.raises(UserError, match="needs a CUDA device, and this is a CPU"):
        choose_kernel("triton", torch.float32, CPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_kernel("auto", torch.float32, GPU) == "csr"
    with pytest.raises(UserError, match="not installed"):
        choose_kernel("triton", torch.float32, GPU)


def test_reduce_is_refused_on_a_gpu() -> None:
    assert choose_kernel("reduce", torch.float32, CPU) == "reduce"
    with pytest.raises(UserError, match=r"kernel = reduce: .*CPUs only.*--train.kernel auto"):
        choose_kernel("reduce", torch.float32, GPU)
