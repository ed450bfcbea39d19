"""Dropout masks by a kernel: the bits of torch's operations, in one launch."""

from __future__ import annotations

from tests.device.marks import needs_triton
from tests.device.mask_cases import differing_masks, launches_of_a_mask
from tests.device.triton_runs import run_interpreted


@needs_triton
def test_the_kernel_draws_the_bits_of_torch() -> None:
    assert run_interpreted(differing_masks) == [[]]
    assert run_interpreted(launches_of_a_mask) == [1]
