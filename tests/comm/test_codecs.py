"""Codes of halo rows: what is written is what is read, and what was lost is known exactly."""

from __future__ import annotations

import pytest
import torch

from distributed_ignn.comm.codecs import (
    Quantiser,
    blocks,
    decode_change,
    decode_once,
    encode_change,
    encode_once,
    quantiser,
)
from distributed_ignn.comm.packing import pack, unpack

INTEGERS: tuple[str, ...] = ("int8", "int4", "int3", "int2")
ALL: tuple[str, ...] = ("bf16", *INTEGERS)


def _coder(codec: str) -> Quantiser:
    coder = quantiser(codec)
    assert coder is not None
    return coder


def test_rows_as_they_are_need_no_quantiser() -> None:
    assert quantiser("fp32") is None


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 8, 16, 100, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_code_survives_packing(bits: int, width: int, dtype: torch.dtype) -> None:
    largest = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(width)
    codes = torch.randint(-largest, largest + 1, (50, width), generator=generator).to(dtype)
    codes[0], codes[1] = largest, -largest
    packed = torch.empty(50, _coder(f"int{bits}").row_bytes(width) - 1, dtype=torch.uint8)
    pack(codes, bits, packed)
    found = torch.full_like(codes, torch.nan)
    unpack(packed, bits, found)
    assert torch.equal(found, codes)


@pytest.mark.parametrize(
    ("codec", "expected"), [("bf16", 256), ("int8", 129), ("int4", 65), ("int3", 49), ("int2", 33)]
)
def test_bytes_of_a_row_of_128_columns(codec: str, expected: int) -> None:
    assert _coder(codec).row_bytes(128) == expected


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_sides_hold_the_same_bits_and_the_error_is_exact(
    codec: str, dtype: torch.dtype
) -> None:
    coder = _coder(codec)
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(300, 40, generator=generator, dtype=dtype)
    point[5] = 0.0
    sent, held = torch.zeros_like(point), torch.zeros_like(point)
    for step in range(12):
        rows = point * (1.0 - 0.5**step)

        def copy(block: slice, rows: torch.Tensor = rows) -> torch.Tensor:
            return rows[block].clone()

        payload, error = encode_change(copy, sent, coder)
        decode_change(payload, held, coder)
        assert torch.equal(held, sent)
        assert float(error) == pytest.approx(float((rows - sent).double().square().sum()), rel=1e-3)
    assert torch.equal(held[5], torch.zeros_like(held[5]))


@pytest.mark.parametrize(("codec", "rate"), [*zip(INTEGERS, (0.01, 0.15, 0.3, 0.7), strict=True)])
def test_repeating_the_same_rows_brings_receivers_ever_closer(codec: str, rate: float) -> None:
    rows = torch.randn(200, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    held, coder = torch.zeros_like(rows), _coder(codec)
    distance = float(rows.norm())
    for _ in range(6):
        encode_change(lambda block: rows[block].clone(), held, coder)
        closer = float((rows - held).norm())
        assert closer < rate * distance
        distance = closer


@pytest.mark.parametrize("size", [1e-11, 1e-6, 1.0, 1e4])
def test_scales_follow_the_size_of_a_row(size: float) -> None:
    rows = size * torch.randn(20, 64, generator=torch.Generator().manual_seed(2))
    held, coder = torch.zeros_like(rows), _coder("int8")
    encode_change(lambda block: rows[block].clone(), held, coder)
    assert float((rows - held).norm() / rows.norm()) < 0.01


def test_rows_beyond_every_scale_count_as_an_infinite_error() -> None:
    rows = torch.full((3, 8), 1e30)
    held, received = torch.zeros_like(rows), torch.zeros_like(rows)
    payload, error = encode_change(lambda block: rows[block].clone(), held, _coder("int4"))
    decode_change(payload, received, _coder("int4"))
    assert torch.isinf(error).all()
    assert torch.equal(held, received)


@pytest.mark.parametrize("codec", ALL)
def test_rows_sent_once_arrive_as_they_were_rounded(codec: str) -> None:
    coder = _coder(codec)
    rows = torch.randn(5000, 16, generator=torch.Generator().manual_seed(3))
    rounded = rows.clone()
    payload = encode_once(rounded, coder)
    found = decode_once(payload, torch.empty_like(rows), coder)
    assert torch.equal(found, rounded)
    assert not torch.equal(found, rows)


def test_no_rows_are_no_bytes() -> None:
    held = torch.zeros(0, 8)
    payload, error = encode_change(lambda block: held[block], held, _coder("int4"))
    assert payload.shape == (0, 5)
    assert float(error) == 0.0
    decode_change(payload, held, _coder("int4"))


def test_blocks_cover_all_rows_once() -> None:
    rows = torch.empty(10_000, 128)
    covered = [row for block in blocks(rows) for row in range(block.start, block.stop)]
    assert covered == list(range(10_000))
    assert len(list(blocks(rows))) > 1
