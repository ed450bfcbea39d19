"""Triton kernel of dropout masks: the hash of ``graph.hashing``, bit by bit, in one launch.

Letters: r rows, D columns.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Triton compiles these functions; it has its own types
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # entries of a program of four warps
_COLUMNS = 256  # of a tile at most


@triton.jit
def _short_hash(ids, key, GOLDEN: tl.constexpr, MIX_1: tl.constexpr, MIX_2: tl.constexpr):
    """The lower 32 bits of ``hashing.hash_ids``; shifts are logical ones."""
    x = ids * GOLDEN + key
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return (x ^ ((x >> 31) & 0x1FFFFFFFF)).to(tl.int32)


@triton.jit(do_not_specialize=["row_key", "column_key", "least"])
def mask_kernel(
    node_ptr,
    mask_ptr,
    row_key,
    column_key,
    least,
    num_rows,
    D,
    GOLDEN: tl.constexpr,
    MIX_1: tl.constexpr,
    MIX_2: tl.constexpr,
    FMIX_1: tl.constexpr,
    FMIX_2: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """mask[i, j] = hash(node i, column j) >= least.

    Args:
        node_ptr: int64 [r].
        mask_ptr: uint8 [r, D], contiguous, overwritten.
        row_key, column_key: int64, what the seeds add to ids.
        least: int64, the smallest signed 32-bit hash that is kept.
        num_rows, D: r, D.
        GOLDEN to FMIX_2: what is multiplied by.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    here = row < num_rows
    node = tl.load(node_ptr + row, mask=here, other=0)
    row_hash = _short_hash(node, row_key, GOLDEN, MIX_1, MIX_2)
    column_hash = _short_hash(column, column_key, GOLDEN, MIX_1, MIX_2)
    x = row_hash[:, None] + column_hash[None, :]
    x = (x ^ ((x >> 16) & 0xFFFF)) * FMIX_1
    x = (x ^ ((x >> 13) & 0x7FFFF)) * FMIX_2
    x = x ^ ((x >> 16) & 0xFFFF)
    keep = (x.to(tl.int64) >= least).to(tl.uint8)
    there = here[:, None] & (column < D)[None, :]
    tl.store(mask_ptr + row[:, None] * D + column[None, :], keep, mask=there)


def node_mask(
    nodes: Tensor, width: int, keys: tuple[int, int], least: int, factors: Mapping[str, int]
) -> Tensor:
    """A mask by node and column: boolean [r, width]; see ``hashing.node_mask``.

    Args:
        nodes: int64 [r], contiguous.
        width: D.
        keys: of rows and of columns.
        least: the smallest hash that is kept.
        factors: the numbers that hashing multiplies by.
    """
    mask = torch.empty(nodes.shape[0], width, dtype=torch.uint8, device=nodes.device)
    if mask.numel():
        columns = min(1 << (width - 1).bit_length(), _COLUMNS)
        rows = max(_TILE // columns, 1)
        with torch.cuda.device_of(nodes):
            mask_kernel[(-(-nodes.shape[0] // rows), -(-width // columns))](
                nodes,
                mask,
                *keys,
                least,
                nodes.shape[0],
                width,
                **factors,
                ROWS=rows,
                BLOCK_D=columns,
            )
    return mask.view(torch.bool)
