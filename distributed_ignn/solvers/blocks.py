"""Work on tall arrays a block of rows at a time, so that what is made on the way stays small.

Letters: O rows, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from distributed_ignn.device.block_size import block_entries
from distributed_ignn.device.triton_seam import triton_kernels_for
from distributed_ignn.solvers.dense import matmul

_BLOCK_ENTRIES = 1 << 17  # on a CPU, where a few blocks fit into the cache

HISTORY_FORMATS = (torch.float32, torch.float64, torch.bfloat16)
"""Number formats of points that ``triton_history`` reads."""

Rows = Callable[[slice], Tensor]
"""Some rows of an array [O, D] that is made when they are asked for; may be overwritten."""


def blocks(like: Tensor) -> Iterator[slice]:
    """Slices that cover the rows of ``like`` [O, D]."""
    entries = block_entries(like.device, _BLOCK_ENTRIES)
    height = max(1, entries // max(like[:1].numel(), 1))
    return (slice(begin, begin + height) for begin in range(0, like.shape[0], height))


def square_sum(x: Tensor, rows: Rows | None = None) -> Tensor:
    """Sum of squares of ``x`` [O, D], float64 without dimensions, on its device.

    With ``rows`` that of the array they make up, which is shaped as ``x``.

    Blocks are summed in the format of ``x`` and added up in float64: a single float32 sum over a
    billion numbers would lose its last digits one by one.
    """
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in blocks(x):
        flat = (x[part] if rows is None else rows(part)).reshape(-1)
        total += torch.dot(flat, flat)
    return total


def residual_squares(z: Tensor, image: Tensor) -> Tensor:
    """||image - z||^2 and ||image||^2 for z, image [O, D], in one pass; see ``square_sum``.

    Returns:
        float64 [2] on their device.
    """
    kernels = triton_kernels_for("triton_history", image, *HISTORY_FORMATS)
    if kernels is not None and z.is_contiguous() and image.is_contiguous():
        found: Tensor = kernels.residual_squares(z, image)
        return found
    totals = torch.zeros(2, dtype=torch.float64, device=image.device)
    for part in blocks(image):
        flat = image[part].reshape(-1)
        change = flat - z[part].reshape(-1)
        totals += torch.stack([torch.dot(change, change), torch.dot(flat, flat)])
    return totals


def assemble(rows: Rows, like: Tensor) -> Tensor:
    """The whole array [O, D] of ``rows``, shaped as ``like``."""
    whole = torch.empty_like(like)
    for part in blocks(like):
        whole[part] = rows(part)
    return whole


def project(rows: Rows, matrix: Tensor, like: Tensor) -> Tensor:
    """The array [O, D] of ``rows``, shaped as ``like``, times ``matrix`` [D, p]."""
    product = like.new_empty(like.shape[0], matrix.shape[1])
    for part in blocks(like):
        product[part] = matmul(rows(part), matrix)
    return product
