"""Halo rows coded by kernels: bit by bit what torch's operations write, in a launch each."""

from __future__ import annotations

from typing import Any

from distributed_ignn.comm.communicator import Communicator
from tests.device.codec_cases import differing, every_scale, nan_is_told, traffic
from tests.device.triton_runs import needs_triton, run_interpreted


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
