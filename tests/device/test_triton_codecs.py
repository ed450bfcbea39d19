"""Halo rows coded by kernels: bit by bit what torch's operations write, in a launch each."""

from __future__ import annotations

from typing import Any

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.propagation.propagate import choose_codec
from tests.device.codec_cases import differing, every_scale, nan_is_told, traffic
from tests.device.marks import needs_triton
from tests.device.triton_runs import run_interpreted


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


def test_rows_stay_as_they_are_on_gpus_unless_a_codec_is_named() -> None:
    for kind, expected in (("cpu", "int4"), ("cuda", "fp32")):
        comm = Communicator(device=torch.device(kind), spans_machines=True)
        assert choose_codec("auto", comm) == expected
        assert choose_codec("int3", comm) == "int3"
    assert choose_codec("auto", Communicator()) == "fp32"
