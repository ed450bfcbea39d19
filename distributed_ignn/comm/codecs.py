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
from functools import cache, partial
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from distributed_ignn.comm.packing import GROUPS, pack, unpack
from distributed_ignn.device.block_size import block_entries
from distributed_ignn.device.triton_seam import triton_kernels_for

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
        group, size = GROUPS[self.bits]
        return -(-width // group) * size + 1

    def encode(self, rows: Tensor, payload: Tensor) -> Tensor:
        """See ``Quantiser``."""
        # torch's own largest absolute value is twenty times slower on a CPU
        peak = torch.maximum(rows.amax(dim=1), rows.amin(dim=1).neg_())
        code = self.scale_code(peak).to(torch.uint8)
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

    def scale_code(self, peak: Tensor) -> Tensor:
        """Codes of the scales of rows whose largest entries are ``peak`` [S], overwritten."""
        code = torch.log2(peak.mul_(_SHARE[self.bits] / self.largest)).mul_(4.0)
        code = code.ceil_() if self.bits >= 4 else code.round_()
        return code.add_(_SCALE_ZERO).clamp_(0, _TOO_LARGE)

    def decode(self, payload: Tensor, rows: Tensor) -> None:
        """See ``Quantiser``."""
        unpack(payload[:, :-1], self.bits, rows)
        rows.mul_(_scales(rows).index_select(0, payload[:, -1].to(torch.int32))[:, None])


# bits: what the largest code stands for, over the row's largest entry. Measured on the changes that
# Picard, Anderson and the learned solver send (citeseer, acm): relative error of a message 0.35 at
# 0.7 against 0.52 at 1 with two bits, 0.17 against 0.19 with three.
_SHARE = {8: 1.0, 4: 1.0, 3: 0.88, 2: 0.7}
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


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """Rows that are copied when they are asked for.

    Args:
        source: [n, D].
        index: which rows, int64 [S]; None for all of them.
    """

    source: Tensor
    index: Tensor | None

    def __call__(self, block: slice) -> Tensor:
        if self.index is None:
            return self.source[block].clone()
        return self.source.index_select(0, self.index[block])


def encode_change(
    rows: Callable[[slice], Tensor], held: Tensor, coder: Quantiser
) -> tuple[Tensor, Tensor]:
    """Write the change of rows since ``held`` and bring ``held`` to what receivers will hold.

    Args:
        rows: a copy of the rows in a slice of 0..S-1, [s, D]; ``Picked`` on a GPU, where a kernel
            reads them in place.
        held: [S, D], what the receivers hold; updated.
        coder: how the change is rounded.

    Returns:
        Payload uint8 [S, bytes], and the squared distance between the rows and what receivers will
        hold; float64 [1].
    """
    payload = _payload_for(held, coder)
    if isinstance(rows, Picked):
        kernels = _kernels(coder, held, rows.source)
        if kernels is not None:
            codes = _codes(kernels, coder, held)
            lost: Tensor = kernels.encode(
                rows.source, rows.index, held, payload, codes, changes=True
            )
            return payload, lost
    error = torch.zeros(1, dtype=torch.float64, device=held.device)
    for block in blocks(held):
        change = rows(block).sub_(held[block])
        error += coder.encode(change, payload[block])
        held[block].add_(change)
    return payload, error


def decode_change(payload: Tensor, held: Tensor, coder: Quantiser) -> None:
    """Add an encoded change to ``held`` [S, D]."""
    kernels = _kernels(coder, held, payload)
    if kernels is not None:
        kernels.decode(payload, held, _codes(kernels, coder, held), changes=True)
        return
    for block in blocks(held):
        change = torch.empty_like(held[block])
        coder.decode(payload[block], change)
        held[block].add_(change)


def encode_once(rows: Tensor, coder: Quantiser) -> Tensor:
    """Payload uint8 [S, bytes] of rows [S, D] by themselves; ``rows`` become what is decoded."""
    payload = _payload_for(rows, coder)
    kernels = _kernels(coder, rows)
    if kernels is not None:
        kernels.encode(rows, None, rows, payload, _codes(kernels, coder, rows), changes=False)
        return payload
    for block in blocks(rows):
        coder.encode(rows[block], payload[block])
    return payload


def decode_once(payload: Tensor, rows: Tensor, coder: Quantiser) -> Tensor:
    """Inverse of ``encode_once``: write into ``rows`` [S, D] and return them."""
    kernels = _kernels(coder, rows, payload)
    if kernels is not None:
        kernels.decode(payload, rows, _codes(kernels, coder, rows), changes=False)
        return rows
    for block in blocks(rows):
        coder.decode(payload[block], rows[block])
    return rows


def _payload_for(rows: Tensor, coder: Quantiser) -> Tensor:
    size = rows.shape[0], coder.row_bytes(rows.shape[1])
    return torch.empty(size, dtype=torch.uint8, device=rows.device)


def _kernels(coder: Quantiser, rows: Tensor, *others: Tensor) -> ModuleType | None:
    """The GPU's kernels for contiguous arrays; None where torch codes them block by block."""
    if not isinstance(coder, Integers | Bfloat16):
        return None
    if not all(array.is_contiguous() for array in (rows, *others)):
        return None
    return triton_kernels_for("triton_codecs", rows, torch.float32)


def _codes(kernels: ModuleType, coder: Quantiser, rows: Tensor) -> Any:
    """What the kernels know of ``coder``; None of bfloat16."""
    if not isinstance(coder, Integers):
        return None
    group, size = GROUPS[coder.bits]
    tables = _scales(rows), _inverse_scales(rows), _thresholds(coder, rows.device)
    return kernels.Codes(coder.bits, group, size, coder.largest, *tables)


@cache
def _thresholds(coder: Integers, device: torch.device) -> Tensor:
    """The smallest largest entry of a row that each scale code is given to, float32 [256].

    Found on the CPU by halving intervals of bit patterns, which are in the order of the numbers.
    """
    code = torch.arange(256)
    low, high = torch.zeros(256, dtype=torch.int32), torch.full((256,), 0x7F800000).int()
    while bool((high - low > 1).any()):
        middle = low + (high - low) // 2
        reached = coder.scale_code(middle.view(torch.float32).clone()) >= code
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return high.view(torch.float32).to(device)


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
