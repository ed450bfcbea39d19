"""Halo rows coded by kernels: bit by bit what torch's operations write, in a launch each."""

from __future__ import annotations

from typing import Any

import pytest

from distributed_ignn.comm.communicator import Communicator
from tests.device.codec_cases import differing, every_scale, nan_is_told, traffic
from tests.device.triton_runs import (
    Resources,
    needs_triton,
    resources,
    run_compiling,
    run_interpreted,
)


def _checks(comm: Communicator) -> list[Any]:
    return [differing(comm), every_scale(comm), nan_is_told(comm), traffic(comm)]


@needs_triton
def test_kernels_write_and_read_the_bits_of_torch() -> None:
    ((different, scales, told, moved),) = run_interpreted(_checks)
    assert different == []
    assert scales == [True] * 4
    assert told == [True, True]
    assert moved["kernels"] == ["encode_integers_kernel", "decode_integers_kernel"]
    # the rows, what is held and its update; a payload of an eighth; scales looked for
    assert 3.1 < moved["encode"] < 3.4
    assert 2.1 < moved["decode"] < 2.3


def compiled_codecs(comm: Communicator, capability: int) -> dict[str, Resources]:
    """Every codec's kernels for 128 columns."""
    from distributed_ignn.comm.packing import GROUPS
    from distributed_ignn.device import triton_codecs as kernels

    numbers = dict.fromkeys(("source_stride", "num_rows", "D", "num_groups"), "i32 16")
    numbers |= {"payload_stride": "i32", "count": "i32 16"}
    types = numbers | {"source_ptr": "*fp32", "index_ptr": "*i64", "held_ptr": "*fp32"}
    types |= {"lost_ptr": "*fp64"}
    types |= dict.fromkeys(("threshold_ptr", "scale_ptr", "inverse_ptr"), "*fp32")
    gathers = {"HAS_INDEX": True, "HAS_HELD": True}
    found = {}
    for bits, (group, size) in GROUPS.items():
        groups = 128 // group
        form = {"BITS": bits, "GROUP": group, "SIZE": size, "ROWS": 16, "BLOCK_G": groups}
        bytes_ = types | {"payload_ptr": "*u8"}
        for name, constants in (
            ("encode_integers_kernel", form | gathers | {"LARGEST": 2 ** (bits - 1) - 1}),
            ("decode_integers_kernel", form | {"HAS_HELD": True}),
        ):
            kernel = getattr(kernels, name)
            found[f"{name}, int{bits}"] = resources(
                kernel, bytes_, constants, capability, enable_fp_fusion=False
            )
    halves = types | {"payload_ptr": "*i16"}
    found["encode_bfloat16_kernel"] = resources(
        kernels.encode_bfloat16_kernel,
        halves,
        gathers | {"ROWS": 16, "BLOCK_D": 128},
        capability,
    )
    found["decode_bfloat16_kernel"] = resources(
        kernels.decode_bfloat16_kernel, halves, {"HAS_HELD": True, "BLOCK": 2048}, capability
    )
    return found


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_within_their_registers(capability: int) -> None:
    found = run_compiling(compiled_codecs, capability)
    assert len(found) == 10
    for name, taken in found.items():
        assert taken.spilled == 0, (name, taken)
        assert taken.registers <= (128 if name.startswith("encode") else 64), (name, taken)
        # a product that is added without being rounded would leave both ends with other bits
        assert "bfloat16" in name or "fma.rn.f32" not in taken.ptx, name
