"""Triton kernels: the sparse product of a block of rows, alone or with all that follows it.

A program owns a few rows and all columns of the state. It walks along its rows together, reads one
row of the operand per entry (its columns lie side by side, so a warp reads whole lines), and adds
in float32 registers, whatever the operand is stored in. UNROLL reads are on their way at a time.
The rows of a program have about as many entries each, because ``triton_rows`` orders them so.

An entry's share is added in the order of the entries, and no program adds to another's rows: an
image depends neither on timing nor on which configuration was tuned; the sums of squares may, in
their last bits.

This module is imported only where a kernel is used; ``TRITON_INTERPRET=1`` runs it on a CPU.

Letters: r rows of the block, p rows of the work list, m rows and D columns of the operand.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Triton compiles these functions; it has its own types
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any

import triton
import triton.language as tl

from distributed_ignn.device.triton_seam import interpreted

PRODUCT = ((4, 4), (2, 4), (8, 4), (4, 8), (2, 8), (4, 2))
"""Reads in flight and warps that the product is tried with. Neither changes the order of a sum."""

EVALUATION = {"ieee": ((1, 16),), "tf32x3": ((2, 8), (1, 8))}
"""The same of an evaluation, by how W is multiplied; with any other, registers spill."""

_KEY = ("D", "density", "HAS_VALUE", "HAS_SCALE", "HAS_LEFT")


def tuned(kernel: Any, tried: tuple[tuple[int, int], ...], stages: int, *key: str) -> Any:
    """``kernel`` with what runs fastest on the GPU at hand, tried once for every ``key``.

    Number formats belong to the key in any case. The interpreter has no clock to tune by.
    """
    configurations = [
        triton.Config({"UNROLL": unroll}, num_warps=warps, num_stages=stages)
        for unroll, warps in (((2, 4),) if interpreted() else tried)
    ]
    return triton.autotune(configs=configurations, key=[*_KEY, *key])(kernel)


@triton.jit
def _accumulate(
    total,
    begin,
    length,
    col_ptr,
    value_ptr,
    scale_ptr,
    dense_ptr,
    dense_stride,
    columns,
    inside,
    HAS_VALUE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Total + sum over a row's entries of value * scale[col] * dense[col], in float32."""
    longest = tl.max(length, axis=0)
    for first in range(0, longest, UNROLL):
        for step in tl.static_range(UNROLL):
            live = first + step < length
            entry = begin + first + step
            # 64 bits: rows times columns of the operand may exceed what 32 can count
            col = tl.load(col_ptr + entry, mask=live, other=0).to(tl.int64)
            at = col[:, None] * dense_stride + columns[None, :]
            row = tl.load(dense_ptr + at, mask=live[:, None] & inside[None, :], other=0.0)
            row = row.to(tl.float32)
            if HAS_VALUE:
                row *= tl.load(value_ptr + entry, mask=live, other=0.0).to(tl.float32)[:, None]
            if HAS_SCALE:
                row *= tl.load(scale_ptr + col, mask=live, other=0.0).to(tl.float32)[:, None]
            total += row
    return total


@triton.jit(do_not_specialize=["density"])
def product(
    row_ptr,
    begin_ptr,
    length_ptr,
    num_rows,
    col_ptr,
    value_ptr,
    scale_ptr,
    left_ptr,
    dense_ptr,
    dense_stride,
    out_ptr,
    D,
    density,
    HAS_VALUE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """out[row] = left[row] * (sparse row) @ dense, for the rows of a work list.

    Args:
        row_ptr: int32 [p], which row of ``out`` and ``left``.
        begin_ptr, length_ptr: int32 [p], its entries.
        num_rows: p.
        col_ptr: int32 [e].
        value_ptr: [e]; scale_ptr: [m]; left_ptr: [r]; read where HAS_... says so.
        dense_ptr, dense_stride: [m, D], elements from row to row.
        out_ptr: [r, D], contiguous.
        density: a number by which the kernel is tuned, not read: entries of a row, see
            ``TritonRows.density``.
    """
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    here, inside = position < num_rows, columns < D
    begin = tl.load(begin_ptr + position, mask=here, other=0)
    length = tl.load(length_ptr + position, mask=here, other=0)
    total = _accumulate(
        tl.zeros((ROWS, BLOCK_D), dtype=tl.float32),
        begin,
        length,
        col_ptr,
        value_ptr,
        scale_ptr,
        dense_ptr,
        dense_stride,
        columns,
        inside,
        HAS_VALUE,
        HAS_SCALE,
        UNROLL,
    )
    row = tl.load(row_ptr + position, mask=here, other=0).to(tl.int64)
    if HAS_LEFT:
        total *= tl.load(left_ptr + row, mask=here, other=0.0).to(tl.float32)[:, None]
    at = row[:, None] * D + columns[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=here[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["density"])
def evaluation(
    row_ptr,
    begin_ptr,
    length_ptr,
    num_rows,
    col_ptr,
    value_ptr,
    scale_ptr,
    left_ptr,
    dense_ptr,
    dense_stride,
    start_ptr,
    product_ptr,
    weight_ptr,
    offset_ptr,
    own_ptr,
    image_ptr,
    square_ptr,
    D,
    density,
    HAS_VALUE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_START: tl.constexpr,
    KEEP: tl.constexpr,
    LINEAR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """image = phi(product W + offset) with product = start + left * (sparse rows) @ dense.

    Args:
        row_ptr to dense_stride: see ``product``.
        start_ptr: [r, D], what the product begins with, where HAS_START.
        product_ptr: [r, D], written where KEEP.
        weight_ptr: W [D, D], contiguous.
        offset_ptr, own_ptr: [r, D], what is added, and the point that was evaluated.
        image_ptr: [r, D].
        square_ptr: float32 [programs, 2]: ||image - own||^2 and ||image||^2 of a program's rows.
        density: see ``product``.
        PRECISION: how the product with W is made: "ieee" in float32 one by one; "tf32x3" on tensor
            cores, each number as two of ten bits and three of the four products of such pairs.
    """
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    here, inside = position < num_rows, columns < D
    begin = tl.load(begin_ptr + position, mask=here, other=0)
    length = tl.load(length_ptr + position, mask=here, other=0)
    gathered = _accumulate(
        tl.zeros((ROWS, BLOCK_D), dtype=tl.float32),
        begin,
        length,
        col_ptr,
        value_ptr,
        scale_ptr,
        dense_ptr,
        dense_stride,
        columns,
        inside,
        HAS_VALUE,
        HAS_SCALE,
        UNROLL,
    )
    row = tl.load(row_ptr + position, mask=here, other=0).to(tl.int64)
    if HAS_LEFT:
        gathered *= tl.load(left_ptr + row, mask=here, other=0.0).to(tl.float32)[:, None]
    at = row[:, None] * D + columns[None, :]
    there = here[:, None] & inside[None, :]
    if HAS_START:
        gathered += tl.load(start_ptr + at, mask=there, other=0.0).to(tl.float32)
    if KEEP:
        tl.store(product_ptr + at, gathered.to(product_ptr.dtype.element_ty), mask=there)
    change = tl.zeros((ROWS,), dtype=tl.float32)
    size = tl.zeros((ROWS,), dtype=tl.float32)
    # a few columns of W at a time: all of it would not fit into registers
    for first in range(0, BLOCK_D, BLOCK_N):
        some = first + tl.arange(0, BLOCK_N)
        used = some < D
        weight = tl.load(
            weight_ptr + columns[:, None] * D + some[None, :],
            mask=inside[:, None] & used[None, :],
            other=0.0,
        )
        total = tl.dot(gathered, weight, input_precision=PRECISION)
        spot = row[:, None] * D + some[None, :]
        exists = here[:, None] & used[None, :]
        total += tl.load(offset_ptr + spot, mask=exists, other=0.0).to(tl.float32)
        if not LINEAR:
            # written so that NaN stays NaN, as torch's ReLU has it
            total = tl.where(total <= 0.0, 0.0, total)
        image = total.to(image_ptr.dtype.element_ty)
        tl.store(image_ptr + spot, image, mask=exists)
        seen = image.to(tl.float32)
        own = tl.load(own_ptr + spot, mask=exists, other=0.0).to(tl.float32)
        change += tl.sum((seen - own) * (seen - own), axis=1)
        size += tl.sum(seen * seen, axis=1)
    program = tl.program_id(0).to(tl.int64)
    tl.store(square_ptr + 2 * program, tl.sum(change, axis=0))
    tl.store(square_ptr + 2 * program + 1, tl.sum(size, axis=0))


product_kernel = tuned(product, PRODUCT, 2)
evaluation_kernels = {
    precision: tuned(evaluation, tried, 1, "HAS_START", "KEEP")
    for precision, tried in EVALUATION.items()
}
