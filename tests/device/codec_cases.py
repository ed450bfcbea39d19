"""The kernels of the codecs on any device, beside torch's operations on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.codecs import (
    CODECS,
    Integers,
    Picked,
    Quantiser,
    _thresholds,
    decode_change,
    decode_once,
    encode_change,
    encode_once,
    encodes,
    quantiser,
)
from distributed_ignn.comm.communicator import Communicator
from tests.device.triton_runs import counted, without_kernels

SHAPES = ((37, 40), (9, 1), (3, 300), (0, 8))
NAMES = tuple(name for name in CODECS if encodes(name))


def _coder(name: str) -> Quantiser:
    coder = quantiser(name)
    assert coder is not None
    return coder


def _rows(count: int, width: int) -> Tensor:
    """Of all sizes that scales reach and beyond; row 3 is zero, entries of row 4 are halves."""
    generator = torch.Generator().manual_seed(count + width)
    sizes = torch.exp2(torch.randint(-60, 30, (count, 1), generator=generator).float())
    rows = torch.randn(count, width, generator=generator) * sizes
    if count > 4:
        rows[3], rows[4] = 0.0, torch.arange(width) - width // 2 + 0.5
    return rows


def differing(comm: Communicator) -> list[str]:
    """Cases in which kernels and torch write, hold or lose anything else."""
    found = []
    for name in NAMES:
        for shape in SHAPES:
            for index in (True, False) if shape == SHAPES[0] else (True,):
                if _changes_differ(_coder(name), shape, comm.device, indexed=index):
                    found.append(f"changes, {name}, {shape}, {index}")
            if _rows_differ(_coder(name), shape, comm.device):
                found.append(f"once, {name}, {shape}")
    return found


def _changes_differ(
    coder: Quantiser, shape: tuple[int, int], device: torch.device, *, indexed: bool
) -> bool:
    source = _rows(shape[0] + 7 * indexed, shape[1])
    index = torch.randint(0, len(source), shape[:1]) if indexed else None
    sent, held = (torch.zeros(shape, device=device) for _ in range(2))
    sent_plain, held_plain = torch.zeros(shape), torch.zeros(shape)
    for step in range(2):
        rows = source * (1.0 - 0.5**step)
        picked = Picked(rows.to(device), None if index is None else index.to(device))
        payload, error = encode_change(picked, sent, coder)
        decode_change(payload, held, coder)
        with without_kernels():
            expected, lost = encode_change(Picked(rows, index), sent_plain, coder)
            decode_change(expected, held_plain, coder)
        pairs = ((payload, expected), (sent, sent_plain), (held, held_plain))
        if not all(torch.equal(found.cpu(), other) for found, other in pairs):
            return True
        if not torch.allclose(error.cpu(), lost, rtol=1e-5, atol=0.0):
            return True
    return False


def _rows_differ(coder: Quantiser, shape: tuple[int, int], device: torch.device) -> bool:
    plain = _rows(*shape)
    rows = plain.to(device, copy=True)
    payload = encode_once(rows, coder)
    found = decode_once(payload, torch.empty(shape, device=device), coder)
    with without_kernels():
        expected = encode_once(plain, coder)
    pairs = ((payload, expected), (rows, plain), (found, plain))
    return not all(torch.equal(each.cpu(), other) for each, other in pairs)


def every_scale(comm: Communicator) -> list[bool]:
    """Whether rows whose largest entries lie around each threshold get the code torch gives."""
    agree = []
    for bits in (2, 3, 4, 8):
        coder = Integers(bits)
        around = _thresholds(coder, torch.device("cpu"))[1:].view(torch.int32)[:, None]
        peaks = (around + torch.arange(-2, 3, dtype=torch.int32)).view(torch.float32).reshape(-1, 1)
        there = peaks.to(comm.device)
        held, plain = torch.zeros_like(there), torch.zeros_like(peaks)
        payload, _ = encode_change(Picked(there, None), held, coder)
        with without_kernels():
            expected, _ = encode_change(Picked(peaks, None), plain, coder)
        agree.append(torch.equal(payload.cpu(), expected) and torch.equal(held.cpu(), plain))
    return agree


def nan_is_told(comm: Communicator) -> list[bool]:
    """Whether the error of a row with NaN is NaN, and of one without any scale infinite."""
    rows = torch.ones(5, 8, device=comm.device)
    rows[2, 3] = torch.nan
    far = rows.nan_to_num(1e30)
    _, error = encode_change(Picked(rows, None), torch.zeros_like(rows), Integers(4))
    _, far = encode_change(Picked(far, None), torch.zeros_like(rows), Integers(4))
    return [bool(error.isnan()), bool(far.isinf())]


def traffic(comm: Communicator) -> dict[str, Any]:
    """Launches and kernels of an int4 exchange, and passes over its rows."""
    rows, held = torch.randn(64, 128), torch.randn(64, 128)
    size = rows.numel() * rows.element_size()
    with counted() as written:
        payload, _ = encode_change(Picked(rows, None), held, Integers(4))
    with counted() as read:
        decode_change(payload, held, Integers(4))
    return {
        "kernels": written.names + read.names,
        "encode": written.bytes / size,
        "decode": read.bytes / size,
    }
