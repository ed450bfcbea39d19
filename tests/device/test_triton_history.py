"""Entering and mixing by kernels: the numbers of torch's operations, in a third of the passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from tests.device.evaluation_cases import passes_of_an_evaluation
from tests.device.history_cases import history_errors, passes, squares_error, sums_repeat
from tests.device.marks import needs_triton
from tests.device.triton_runs import run_interpreted

# bfloat16 is cut off by the interpreter, where a GPU and torch round; in float32, a sum of one
# number may cancel
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 0.15}


def _checks(comm: Communicator) -> list[Any]:
    return [history_errors(comm), squares_error(comm), sums_repeat(comm)]


def _passes(comm: Communicator) -> list[dict[str, float]]:
    return [passes(comm, 5, None), passes(comm, 5, torch.bfloat16)]


@needs_triton
def test_kernels_enter_and_mix_as_torch_does() -> None:
    ((errors, squares, repeat),) = run_interpreted(_checks)
    assert len(errors) == 19
    wrong = {}
    for name, error in errors.items():
        kind = "bfloat16" if "bfloat16" in name else "float64" if "float64" in name else "float32"
        if error > TOLERANCE[kind]:
            wrong[name] = error
    assert wrong == {}
    assert squares[0] < 1e-6
    assert squares[1] == 1.0
    assert repeat


@needs_triton
def test_an_evaluation_passes_over_the_state_24_times_at_most() -> None:
    (found,) = run_interpreted(passes_of_an_evaluation)
    # the map reads z for the product and for the residual, and b; it writes product and image
    assert found["judged first"]["kernels"] == pytest.approx(5 + 17)
    assert found["entered at once"]["kernels"] == pytest.approx(5 + 19)
    for way in found.values():
        assert way["torch"] == 0.0
        assert way["kernels"] <= 24.0
        # the map; entering; mixing
        assert way["launches"] == 3


@needs_triton
def test_a_step_passes_over_the_state_twenty_times_at_most_and_the_plan_knows() -> None:
    ((found, rounded),) = run_interpreted(_passes)
    assert found["launches"] == 3
    assert found["push and mix"] == pytest.approx(19.0, rel=1e-3)
    assert found["enter and mix"] == pytest.approx(17.0, rel=1e-3)
    assert found["average"] == pytest.approx(found["planned"], rel=1e-3)
    # eleven arrays of differences at half the size
    assert rounded["push and mix"] == pytest.approx(13.5, rel=1e-3)
    assert rounded["average"] == pytest.approx(rounded["planned"], rel=1e-3)
