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

import os

import triton
import triton.language as tl


def _configurations() -> list[triton.Config]:
    """What is tried: how many reads are in flight, and over how many warps rows are spread.

    Neither changes the order in which numbers are added. The interpreter has no clock to tune by.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return [triton.Config({"UNROLL": 2}, num_warps=4, num_stages=1)]
    return [
        triton.Config({"UNROLL": unroll}, num_warps=warps, num_stages=2)
        for unroll, warps in ((4, 4), (2, 4), (8, 4), (4, 8), (2, 8), (4, 2))
    ]


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


@triton.autotune(configs=_configurations(), key=["D"])
@triton.jit
def product_kernel(
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


@triton.autotune(configs=_configurations(), key=["D"])
@triton.jit
def evaluation_kernel(
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
    HAS_VALUE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_START: tl.constexpr,
    KEEP: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """image = phi(product W + offset) with product = start + left * (sparse rows) @ dense.

    Args:
        row_ptr to dense_stride: see ``product_kernel``.
        start_ptr: [r, D], what the product begins with, where HAS_START.
        product_ptr: [r, D], written where KEEP.
        weight_ptr: W [D, D], contiguous.
        offset_ptr, own_ptr: [r, D], what is added, and the point that was evaluated.
        image_ptr: [r, D].
        square_ptr: float32 [programs, 2]: ||image - own||^2 and ||image||^2 of a program's rows.
    """
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    here, inside = position < num_rows, columns < D
    begin = tl.load(begin_ptr + position, mask=here, other=0)
    length = tl.load(length_ptr + position, mask=here, other=0)
    product = _accumulate(
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
        product *= tl.load(left_ptr + row, mask=here, other=0.0).to(tl.float32)[:, None]
    at = row[:, None] * D + columns[None, :]
    there = here[:, None] & inside[None, :]
    if HAS_START:
        product += tl.load(start_ptr + at, mask=there, other=0.0).to(tl.float32)
    if KEEP:
        tl.store(product_ptr + at, product.to(product_ptr.dtype.element_ty), mask=there)
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
        # "ieee": TF32 would round the operands to ten bits
        total = tl.dot(product, weight, input_precision="ieee")
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
