"""Kernels compiled for an A100 and an H100 without either: no spills, and registers to spare."""

from __future__ import annotations

import pytest

from tests.device.compiled_cases import compiled
from tests.device.marks import needs_triton
from tests.device.triton_runs import run_compiling

CEILINGS = {
    "product, 4 in flight, 2 warps": 255,
    # four programs of four warps on a unit
    "product": 128,
    "enter_kernel": 128,
    "encode_integers_kernel": 128,
    "encode_bfloat16_kernel": 128,
    # two of sixteen warps, and one of eight
    "evaluation, ieee": 64,
    "evaluation, tf32x3": 255,
    # eight of four warps
    "mix_kernel": 64,
    "finish_kernel": 64,
    "squares_kernel": 64,
    "decode_integers_kernel": 64,
    "decode_bfloat16_kernel": 64,
    "mask_kernel": 64,
}
"""Registers of a thread by kernel, of 65,536 on a unit."""


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_within_their_registers(capability: int) -> None:
    found = run_compiling(compiled, capability)
    assert len(found) == 24
    seen = set()
    for name, taken in found.items():
        ceiling = next(kernel for kernel in CEILINGS if name.startswith(kernel))
        seen.add(ceiling)
        assert taken.spilled == 0, (name, taken)
        assert taken.registers <= CEILINGS[ceiling], (name, taken)
        # two evaluations on an A100 (164 KiB), three of anything else
        assert taken.shared <= 164 * 1024 // 2, (name, taken)
        # a product that is added without being rounded would leave both ends with other bits
        if name.startswith(("encode_integers", "decode_integers")):
            assert "fma.rn.f32" not in taken.ptx, name
    assert seen == CEILINGS.keys()
