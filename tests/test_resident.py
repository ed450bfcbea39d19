"""The peak of a step is that of the step, not of what came before it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from distributed_ignn.resident import read_peak, reset_peak

_MB = 2**20


def _resident(size: int) -> int:
    """Bytes of an array that is written to, so that it is there."""
    return int(np.ones(size, np.uint8).sum(dtype=np.int64))


def test_each_step_has_its_own_peak() -> None:
    start = reset_peak()
    _resident(200 * _MB)
    large = read_peak(start).process
    start = reset_peak()
    small = read_peak(start).process
    if large == small:
        pytest.skip("the kernel does not let its mark be reset")
    assert 150 * _MB < large - small < 260 * _MB


def test_a_larger_child_is_seen_and_a_smaller_one_is_not() -> None:
    start = reset_peak()
    own = read_peak(start).process
    program = f"import numpy; numpy.ones({own + 300 * _MB}, numpy.uint8)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert own + 300 * _MB < read_peak(start).child < own + 500 * _MB
    start = reset_peak()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    assert read_peak(start).child == 0
