"""Triton kernels that write and read halo rows in a few bits, bit by bit as ``comm.codecs`` does.

A program owns a few rows. Encoding gathers them, subtracts what receivers hold, finds each row's
scale, rounds, packs, and brings what they hold up to date: one launch, each number read once. Where
torch takes a logarithm, whose last bit differs between machines, a kernel looks for the row's
largest entry among the 255 smallest numbers that torch gives each code to.

Products and sums are rounded one by one: both ends have to hold the same bits, so kernels are
compiled without fused multiplications and additions.

Letters: S rows, D columns, b bits, c entries of a group, G groups of a row.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Triton compiles these functions
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # numbers that a program of four warps holds: 16 for each thread
_TOO_LARGE = tl.constexpr(255)
_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it becomes a whole number


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """How integers are written.

    Args:
        bits: b.
        group, size: entries and bytes of a group.
        largest: the largest code.
        scale, inverse: float32 [256] by scale code.
        threshold: float32 [256]; at k the smallest largest entry of a row whose code is k.
    """

    bits: int
    group: int
    size: int
    largest: int
    scale: Tensor
    inverse: Tensor
    threshold: Tensor


@triton.jit
def _rounded(x):
    """``x``, below 2^22, rounded to the nearest whole number, halves to even ones; -0 stays."""
    whole = (tl.abs(x) + _MAGIC) - _MAGIC
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    return (whole.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _code_of(peak, threshold_ptr):
    """How many thresholds are at or below ``peak``: none for NaN."""
    code = tl.zeros(peak.shape, dtype=tl.int32)
    for halving in tl.static_range(8):
        ahead = code + (128 >> halving)
        code = tl.where(tl.load(threshold_ptr + ahead) <= peak, ahead, code)
    return code


@triton.jit
def _own_rows(program, index_ptr, num_rows, HAS_INDEX: tl.constexpr, ROWS: tl.constexpr):
    """The rows of a program, whether they exist, and where they come from."""
    row = program * ROWS + tl.arange(0, ROWS)
    here = row < num_rows
    origin = row
    if HAS_INDEX:
        origin = tl.load(index_ptr + row, mask=here, other=0)
    return row, here, origin


@triton.jit
def encode_integers_kernel(
    source_ptr,
    source_stride,
    index_ptr,
    held_ptr,
    payload_ptr,
    payload_stride,
    lost_ptr,
    threshold_ptr,
    scale_ptr,
    inverse_ptr,
    num_rows,
    D,
    num_groups,
    HAS_INDEX: tl.constexpr,
    HAS_HELD: tl.constexpr,
    LARGEST: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Write rows, or their change since what is held, as integers.

    Args:
        source_ptr, source_stride: float32 [n, D], elements from row to row.
        index_ptr: int64 [S], which rows, where HAS_INDEX.
        held_ptr: float32 [S, D], contiguous: what decoding gives is added to it where HAS_HELD,
            else written into it.
        payload_ptr, payload_stride: uint8 [S, G * SIZE + 1], bytes from row to row.
        lost_ptr: float64 [programs], squared length of what rounding took away.
        threshold_ptr, scale_ptr, inverse_ptr: see ``Codes``.
        num_rows, D, num_groups: S, D, G.
    """
    program = tl.program_id(0).to(tl.int64)
    row, here, origin = _own_rows(program, index_ptr, num_rows, HAS_INDEX, ROWS)
    plane = tl.arange(0, GROUP)
    group = tl.arange(0, BLOCK_G)
    # column j of a group lies in the plane j
    column = plane[:, None] * num_groups + group[None, :]
    inside = (group[None, :] < num_groups) & (column < D)
    there = here[:, None, None] & inside[None, :, :]
    at = row[:, None, None] * D + column[None, :, :]
    x = tl.load(
        source_ptr + origin[:, None, None] * source_stride + column[None, :, :],
        mask=there,
        other=0.0,
    )
    before = x
    if HAS_HELD:
        before = tl.load(held_ptr + at, mask=there, other=0.0)
        x = x - before
    code = _code_of(tl.max(tl.max(tl.abs(x), axis=2), axis=1), threshold_ptr)
    scale = tl.load(scale_ptr + code)[:, None, None]
    x = x * tl.load(inverse_ptr + code)[:, None, None]
    whole = _rounded(x)
    if BITS < 4:
        # NaN stays NaN
        whole = tl.where(whole > LARGEST, LARGEST * 1.0, whole)
        whole = tl.where(whole < -LARGEST, LARGEST * -1.0, whole)
    gone = tl.where(there, x - whole, 0.0)
    square = tl.sum(tl.sum(gone * gone, axis=2), axis=1).to(tl.float64)
    length = tl.load(scale_ptr + code).to(tl.float64)
    square = tl.where(code == _TOO_LARGE, float("inf"), square * length * length)
    tl.store(lost_ptr + program, tl.sum(tl.where(here, square, 0.0), axis=0))
    decoded = whole * scale
    if HAS_HELD:
        decoded = before + decoded
    tl.store(held_ptr + at, decoded, mask=there)
    shifted = whole.to(tl.int32) << (plane * BITS)[None, :, None]
    packed = tl.sum(shifted, axis=1)
    out = payload_ptr + row[:, None] * payload_stride
    some = here[:, None] & (group[None, :] < num_groups)
    for byte in tl.static_range(SIZE):
        value = (packed >> (8 * byte)) & 255
        tl.store(out + group[None, :] * SIZE + byte, value.to(tl.uint8), mask=some)
    last = payload_ptr + row * payload_stride + num_groups * SIZE
    tl.store(last, code.to(tl.uint8), mask=here)


@triton.jit
def decode_integers_kernel(
    payload_ptr,
    payload_stride,
    held_ptr,
    scale_ptr,
    num_rows,
    D,
    num_groups,
    HAS_HELD: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Inverse of ``encode_integers_kernel``: add to what is held, or overwrite it."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < num_rows
    group = tl.arange(0, BLOCK_G)
    some = here[:, None] & (group[None, :] < num_groups)
    read = payload_ptr + row[:, None] * payload_stride
    rest = tl.zeros((ROWS, BLOCK_G), dtype=tl.int32)
    for byte in tl.static_range(SIZE):
        found = tl.load(read + group[None, :] * SIZE + byte, mask=some, other=0)
        rest = rest | (found.to(tl.int32) << (8 * byte))
    # the sign of the highest byte
    rest = (rest << (32 - 8 * SIZE)) >> (32 - 8 * SIZE)
    last = payload_ptr + row * payload_stride + num_groups * SIZE
    code = tl.load(last, mask=here, other=0).to(tl.int32)
    scale = tl.load(scale_ptr + code)[:, None]
    for plane in tl.static_range(GROUP):
        upper = (rest + (1 << (BITS - 1))) >> BITS
        entry = rest
        if plane < GROUP - 1:
            entry = rest - (upper << BITS)
        rest = upper
        column = plane * num_groups + group
        there = some & (column[None, :] < D)
        at = row[:, None] * D + column[None, :]
        decoded = entry.to(tl.float32) * scale
        if HAS_HELD:
            decoded = tl.load(held_ptr + at, mask=there, other=0.0) + decoded
        tl.store(held_ptr + at, decoded, mask=there)


@triton.jit
def encode_bfloat16_kernel(
    source_ptr,
    source_stride,
    index_ptr,
    held_ptr,
    payload_ptr,
    lost_ptr,
    num_rows,
    D,
    HAS_INDEX: tl.constexpr,
    HAS_HELD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """As ``encode_integers_kernel``, with the upper halves of float32: int16 [S, D], contiguous."""
    program = tl.program_id(0).to(tl.int64)
    row, here, origin = _own_rows(program, index_ptr, num_rows, HAS_INDEX, ROWS)
    column = tl.arange(0, BLOCK_D)
    there = here[:, None] & (column < D)[None, :]
    at = row[:, None] * D + column[None, :]
    read = source_ptr + origin[:, None] * source_stride + column[None, :]
    x = tl.load(read, mask=there, other=0.0)
    before = x
    if HAS_HELD:
        before = tl.load(held_ptr + at, mask=there, other=0.0)
        x = x - before
    bits = x.to(tl.int32, bitcast=True)
    # halves to even, as both torch and a GPU have it; the interpreter's own cast cuts digits off
    short = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    short = tl.where(x == x, short, 0x7FC0)
    tl.store(payload_ptr + at, short.to(tl.int16), mask=there)
    whole = (short << 16).to(tl.float32, bitcast=True)
    gone = tl.where(there, x - whole, 0.0).to(tl.float64)
    tl.store(lost_ptr + program, tl.sum(tl.sum(gone * gone, axis=1), axis=0))
    decoded = whole
    if HAS_HELD:
        decoded = before + whole
    tl.store(held_ptr + at, decoded, mask=there)


@triton.jit
def decode_bfloat16_kernel(
    payload_ptr, held_ptr, count, HAS_HELD: tl.constexpr, BLOCK: tl.constexpr
):
    """Add ``count`` upper halves of float32 to what is held, or overwrite it."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    bits = tl.load(payload_ptr + at, mask=there, other=0).to(tl.int32) << 16
    decoded = bits.to(tl.float32, bitcast=True)
    if HAS_HELD:
        decoded = tl.load(held_ptr + at, mask=there, other=0.0) + decoded
    tl.store(held_ptr + at, decoded, mask=there)


def encode(
    source: Tensor,
    index: Tensor | None,
    held: Tensor,
    payload: Tensor,
    codes: Codes | None,
    *,
    changes: bool,
) -> Tensor:
    """Write rows of ``source`` in one launch.

    Args:
        source: float32 [n, D], its columns side by side.
        index: int64 [S], which rows; None for all.
        held: float32 [S, D], contiguous: what receivers hold, brought up to date, if ``changes``;
            else overwritten with what they will decode, which may be ``source``.
        payload: uint8 [S, bytes], contiguous, overwritten.
        codes: how integers are written; None for bfloat16.
        changes: whether the change since ``held`` is written.

    Returns:
        Squared length of what rounding took away; float64 [1].
    """
    rows, width = held.shape
    if not held.numel():
        return torch.zeros(1, dtype=torch.float64, device=held.device)
    height, columns = _tile(width, codes)
    lost = torch.empty(-(-rows // height), dtype=torch.float64, device=held.device)
    read = source, source.stride(0), source if index is None else index, held
    given = {"HAS_INDEX": index is not None, "HAS_HELD": changes, "ROWS": height}
    with torch.cuda.device_of(held):
        if codes is None:
            encode_bfloat16_kernel[lost.shape](
                *read, payload.view(torch.int16), lost, rows, width, **given, BLOCK_D=columns
            )
        else:
            encode_integers_kernel[lost.shape](
                *read,
                payload,
                payload.stride(0),
                lost,
                codes.threshold,
                codes.scale,
                codes.inverse,
                rows,
                width,
                _groups(width, codes),
                **given,
                **_form(codes),
                LARGEST=codes.largest,
                BLOCK_G=columns,
                enable_fp_fusion=False,
            )
    return lost.sum().reshape(1)


def decode(payload: Tensor, held: Tensor, codes: Codes | None, *, changes: bool) -> None:
    """Read rows in one launch: add them to ``held`` [S, D] if they are changes, else overwrite it.

    Args:
        payload: uint8 [S, bytes], contiguous.
        held: float32, contiguous.
        codes: how integers were written; None for bfloat16.
        changes: whether they are.
    """
    rows, width = held.shape
    if not held.numel():
        return
    with torch.cuda.device_of(held):
        if codes is None:
            count = held.numel()
            decode_bfloat16_kernel[(-(-count // _TILE),)](
                payload.view(torch.int16), held, count, HAS_HELD=changes, BLOCK=_TILE
            )
            return
        height, columns = _tile(width, codes)
        decode_integers_kernel[(-(-rows // height),)](
            payload,
            payload.stride(0),
            held,
            codes.scale,
            rows,
            width,
            _groups(width, codes),
            HAS_HELD=changes,
            **_form(codes),
            ROWS=height,
            BLOCK_G=columns,
            enable_fp_fusion=False,
        )


def _groups(width: int, codes: Codes) -> int:
    """G."""
    return -(-width // codes.group)


def _tile(width: int, codes: Codes | None) -> tuple[int, int]:
    """Rows of a program, and columns or groups of its tile."""
    needed = width if codes is None else _groups(width, codes)
    columns = 1 << (needed - 1).bit_length()
    held = columns * (1 if codes is None else codes.group)
    return max(_TILE // held, 1), columns


def _form(codes: Codes) -> dict[str, Any]:
    return {"BITS": codes.bits, "GROUP": codes.group, "SIZE": codes.size}
