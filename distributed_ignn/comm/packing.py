"""Whole numbers of a few bits side by side in bytes.

Letters: S rows, D columns, b bits, L = 2^(b-1) - 1 the largest code.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUPS = {8: (1, 1), 4: (2, 1), 3: (8, 3), 2: (4, 1)}
"""Entries and bytes of a group, by bits."""


def pack(codes: Tensor, bits: int, out: Tensor) -> None:
    """Write whole-numbered codes -L..L, floating [S, D], into uint8 ``out``.

    Column j of group g stands at j * groups + g, so that a group's entries lie in planes of
    neighbouring columns. A group is the sum of its codes times powers of 2^b; it stays below 2^23,
    where float32 counts exactly.
    """
    group, size = GROUPS[bits]
    if bits == 8:
        out.view(torch.int8).copy_(codes)
        return
    planes = _planes(codes, group)
    total = planes[-1]
    for plane in planes[-2::-1]:
        total = torch.add(plane, total, alpha=2**bits)
    if size == 1:
        out.view(torch.int8).copy_(total)
    else:
        words = total.to(torch.int32).view(torch.uint8)
        out.unflatten(1, (-1, size)).copy_(words.unflatten(1, (-1, 4))[:, :, :size])


def unpack(packed: Tensor, bits: int, codes: Tensor) -> None:
    """Inverse of ``pack``: write the codes into floating ``codes`` [S, D]."""
    group, size = GROUPS[bits]
    if bits == 8:
        codes.copy_(packed.view(torch.int8))
        return
    if size == 1:
        rest = packed.view(torch.int8).to(codes.dtype)
    else:
        words = packed.new_zeros(packed.shape[0], packed.shape[1] // size, 4)
        words[:, :, :size] = packed.unflatten(1, (-1, size))
        whole = words.flatten(1).view(torch.int32)
        rest = ((whole << 8) >> 8).to(codes.dtype)
    padded = (
        codes
        if codes.shape[1] % group == 0
        else codes.new_empty(codes.shape[0], rest.shape[1] * group)
    )
    planes = padded.tensor_split(group, dim=1)
    for plane in planes[:-1]:
        upper = rest.mul(2.0**-bits).round_()
        torch.sub(rest, upper, alpha=2**bits, out=plane)
        rest = upper
    planes[-1].copy_(rest)
    if padded is not codes:
        codes.copy_(padded[:, : codes.shape[1]])


def _planes(codes: Tensor, group: int) -> tuple[Tensor, ...]:
    missing = -codes.shape[1] % group
    if missing:
        codes = torch.nn.functional.pad(codes, (0, missing))
    return codes.tensor_split(group, dim=1)
