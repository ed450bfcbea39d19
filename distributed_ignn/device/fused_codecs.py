"""Halo rows written and read by one launch each; ``comm.codecs`` has the same by torch.

Letters: S rows, D columns, b bits, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.device import triton_codecs as kernels

_TILE = 2048  # numbers that a program of four warps holds: 16 for each thread


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
            kernels.encode_bfloat16_kernel[lost.shape](
                *read, payload.view(torch.int16), lost, rows, width, **given, BLOCK_D=columns
            )
        else:
            kernels.encode_integers_kernel[lost.shape](
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
            kernels.decode_bfloat16_kernel[(-(-count // _TILE),)](
                payload.view(torch.int16), held, count, HAS_HELD=changes, BLOCK=_TILE
            )
            return
        height, columns = _tile(width, codes)
        kernels.decode_integers_kernel[(-(-rows // height),)](
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
