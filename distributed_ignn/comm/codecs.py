"""How halo rows are written for the wire: as they are, or as a few bits per entry of their change.

A change-encoding sender keeps what the receiver holds and sends the difference, divided by a scale
of its own for every row and rounded; both sides add the same decoded difference to what they hold.
The change vanishes as an iteration converges and the rounding error with it, so the fixed point is
exact, whatever the bits. (Error feedback, Seide et al. 2014, applied to the state of an iteration.)

Decoding is one multiplication and one addition, each rounded by itself, and the scales are powers
of 2^(1/4) from a table that every machine computes alike: sender and receiver hold the same bits.

Letters: S rows, D columns, b bits, L = 2^(b-1) - 1 the largest code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from distributed_ignn.device.block_size import block_entries

_BLOCK_ENTRIES = 1 << 18  # on a CPU: rows are coded in blocks that stay in the cache
_SCALE_ZERO = 200  # table entry of scale 1: scales reach from 2^-49.75 to 2^13.5
_TOO_LARGE = 255
_QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)


class Quantiser(Protocol):
    """Rounds rows to codes and writes the codes, rows at a time."""

    def row_bytes(self, width: int) -> int:
        """Bytes of an encoded row of ``width`` entries, its scale included."""
        ...

    def encode(self, rows: Tensor, payload: Tensor) -> Tensor:
        """Write ``rows`` and turn them, in place, into what will be decoded.

        Args:
            rows: floating [S, D], overwritten.
            payload: uint8 [S, row_bytes(D)], written.

        Returns:
            Squared length of what rounding took away from all rows; float64 [1].
        """
        ...

    def decode(self, payload: Tensor, rows: Tensor) -> None:
        """Write what ``encode`` left in its rows into ``rows`` [S, D]."""
        ...


class Bfloat16:
    """The upper half of a float32: a relative error of 2^-9, no scale."""

    def row_bytes(self, width: int) -> int:
        """See ``Quantiser``."""
        return 2 * width

    def encode(self, rows: Tensor, payload: Tensor) -> Tensor:
        """See ``Quantiser``."""
        short = rows.to(torch.bfloat16)
        payload.copy_(short.view(torch.uint8))
        lost = torch.linalg.vector_norm(rows.sub_(short), dim=1).double().square().sum()
        rows.copy_(short)
        return lost.reshape(1)

    def decode(self, payload: Tensor, rows: Tensor) -> None:
        """See ``Quantiser``."""
        rows.copy_(payload.contiguous().view(torch.bfloat16))


@dataclass(frozen=True, slots=True)
class Integers:
    """Symmetric b-bit codes -L..L with one byte for the scale of each row.

    The scale is the smallest 2^(k/4) at which no entry is clipped; with two and three bits a little
    clipping costs less than coarse steps do. Rows too large for any scale are sent as no change,
    and their error counts as infinite.

    Args:
        bits: b, one of 2, 3, 4 and 8.
    """

    bits: int

    @property
    def largest(self) -> int:
        """L."""
        return int(2 ** (self.bits - 1)) - 1

    def row_bytes(self, width: int) -> int:
        """See ``Quantiser``; entries are packed in groups that fill whole bytes."""
        group, size = _GROUPS[self.bits]
        return -(-width // group) * size + 1

    def encode(self, rows: Tensor, payload: Tensor) -> Tensor:
        """See ``Quantiser``."""
        # torch's own largest absolute value is twenty times slower on a CPU
        peak = torch.maximum(rows.amax(dim=1), rows.amin(dim=1).neg_())
        code = torch.log2(peak.mul_(_SHARE[self.bits] / self.largest)).mul_(4.0)
        code = code.ceil_() if self.bits >= 4 else code.round_()
        code = code.add_(_SCALE_ZERO).clamp_(0, _TOO_LARGE).to(torch.uint8)
        index = code.to(torch.int32)
        scale = _scales(rows).index_select(0, index)
        rows.mul_(_inverse_scales(rows).index_select(0, index)[:, None])
        rounded = rows.round()
        if self.bits < 4:
            rounded.clamp_(-self.largest, self.largest)
        pack(rounded, self.bits, payload[:, :-1])
        payload[:, -1] = code
        lost = torch.linalg.vector_norm(rows.sub_(rounded), dim=1).mul_(scale).double()
        torch.mul(rounded, scale[:, None], out=rows)
        return lost.square().masked_fill_(code == _TOO_LARGE, torch.inf).sum().reshape(1)

    def decode(self, payload: Tensor, rows: Tensor) -> None:
        """See ``Quantiser``."""
        unpack(payload[:, :-1], self.bits, rows)
        rows.mul_(_scales(rows).index_select(0, payload[:, -1].to(torch.int32))[:, None])


# bits: what the largest code stands for, over the row's largest entry. Measured on the changes that
# Picard, Anderson and the learned solver send (citeseer, acm): relative error of a message 0.35 at
# 0.7 against 0.52 at 1 with two bits, 0.17 against 0.19 with three.
_SHARE = {8: 1.0, 4: 1.0, 3: 0.88, 2: 0.7}
# bits: entries and bytes of a group
_GROUPS = {8: (1, 1), 4: (2, 1), 3: (8, 3), 2: (4, 1)}


CODECS: dict[str, Callable[[], Quantiser] | None] = {
    "fp32": None,
    "bf16": Bfloat16,
    "int8": partial(Integers, 8),
    "int4": partial(Integers, 4),
    "int3": partial(Integers, 3),
    "int2": partial(Integers, 2),
}
"""The ways of writing halo rows, by name; None for rows as they are. A new one is entered here."""


def quantiser(codec: str) -> Quantiser | None:
    """The quantiser of a codec by name; None for rows as they are."""
    make = CODECS[codec]
    return None if make is None else make()


def encodes(codec: str) -> bool:
    """Whether a codec writes changes, so that both ends keep what was sent last."""
    return CODECS[codec] is not None


def blocks(like: Tensor) -> Iterator[slice]:
    """Consecutive rows of ``like`` [S, D] that are coded together."""
    rows, width = like.shape
    height = max(1, block_entries(like.device, _BLOCK_ENTRIES) // max(width, 1))
    return (slice(begin, min(begin + height, rows)) for begin in range(0, rows, height))


def encode_change(
    rows: Callable[[slice], Tensor], held: Tensor, coder: Quantiser
) -> tuple[Tensor, Tensor]:
    """Write the change of rows since ``held`` and bring ``held`` to what receivers will hold.

    Args:
        rows: a copy of the rows in a slice of 0..S-1, [s, D].
        held: [S, D], what the receivers hold; updated.
        coder: how the change is rounded.

    Returns:
        Payload uint8 [S, bytes], and the squared distance between the rows and what receivers will
        hold; float64 [1].
    """
    count, width = held.shape
    payload = torch.empty(count, coder.row_bytes(width), dtype=torch.uint8, device=held.device)
    error = torch.zeros(1, dtype=torch.float64, device=held.device)
    for block in blocks(held):
        change = rows(block).sub_(held[block])
        error += coder.encode(change, payload[block])
        held[block].add_(change)
    return payload, error


def decode_change(payload: Tensor, held: Tensor, coder: Quantiser) -> None:
    """Add an encoded change to ``held`` [S, D]."""
    for block in blocks(held):
        change = torch.empty_like(held[block])
        coder.decode(payload[block], change)
        held[block].add_(change)


def encode_once(rows: Tensor, coder: Quantiser) -> Tensor:
    """Payload uint8 [S, bytes] of rows [S, D] by themselves; ``rows`` become what is decoded."""
    payload = torch.empty(
        rows.shape[0], coder.row_bytes(rows.shape[1]), dtype=torch.uint8, device=rows.device
    )
    for block in blocks(rows):
        coder.encode(rows[block], payload[block])
    return payload


def decode_once(payload: Tensor, rows: Tensor, coder: Quantiser) -> Tensor:
    """Inverse of ``encode_once``: write into ``rows`` [S, D] and return them."""
    for block in blocks(rows):
        coder.decode(payload[block], rows[block])
    return rows


def pack(codes: Tensor, bits: int, out: Tensor) -> None:
    """Write whole-numbered codes -L..L, floating [S, D], into uint8 ``out``.

    Column j of group g stands at j * groups + g, so that a group's entries lie in planes of
    neighbouring columns. A group is the sum of its codes times powers of 2^b; it stays below 2^23,
    where float32 counts exactly.
    """
    group, size = _GROUPS[bits]
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
    group, size = _GROUPS[bits]
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


_tables: dict[tuple[torch.dtype, torch.device, bool], Tensor] = {}


def _scales(like: Tensor) -> Tensor:
    return _table(like.dtype, like.device, inverse=False)


def _inverse_scales(like: Tensor) -> Tensor:
    return _table(like.dtype, like.device, inverse=True)


def _table(dtype: torch.dtype, device: torch.device, inverse: bool) -> Tensor:
    """The 256 scales, or their inverses; the first and the last stand for no change."""
    key = dtype, device, inverse
    if key not in _tables:
        powers = range(-_SCALE_ZERO, 256 - _SCALE_ZERO)
        scales = [_QUARTERS[k % 4] * 2.0 ** (k // 4) for k in powers]
        values = [0.0, *(1.0 / s if inverse else s for s in scales[1:-1]), 0.0]
        _tables[key] = torch.tensor(values, dtype=dtype, device=device)
    return _tables[key]
