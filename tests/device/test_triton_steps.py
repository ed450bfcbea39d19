"""The kernels between two evaluations: what torch's operations decide, in one launch each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from tests.device.marks import needs_triton
from tests.device.step_cases import judged_first, small_steps, whole_solves
from tests.device.triton_runs import (
    Resources,
    resources,
    run_compiling,
    run_interpreted,
)


def _checks(comm: Communicator) -> tuple[Any, Any, Any]:
    return small_steps(comm), whole_solves(comm), judged_first(comm)


@needs_triton
def test_kernels_decide_as_torch_does() -> None:
    (((found, expected), solves, judged),) = run_interpreted(_checks)
    assert len(found) == len(expected) == 24
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-300, nan_ok=True)
    for fused, plain, launches in solves:
        assert fused.steps == plain.steps
        assert fused.outcome is plain.outcome
        assert torch.allclose(fused.image, plain.image, rtol=0.0, atol=1e-12)
        # an iterate is entered with two launches, judged, weighed and mixed with one each
        assert launches == 8 * 5

    # whether a singular system is found to be one hangs on last bits: both ways find it, though
    (one, times), (other, expected_times) = judged.pop("anderson, singular")
    assert min(times, expected_times) >= 5
    assert one.steps == other.steps
    restarts = {}
    for name, ((one, times), (other, expected_times)) in judged.items():
        assert one.residuals == pytest.approx(other.residuals, rel=1e-6, abs=1e-12), name
        assert one.steps == other.steps, name
        assert torch.allclose(one.image, other.image, rtol=1e-9, atol=1e-11), name
        assert times == expected_times, name
        restarts[name] = times
    assert restarts["anderson, misled"] == 1


def compiled_steps(comm: Communicator, capability: int) -> dict[str, Resources]:
    from distributed_ignn.device.triton_steps import judge_kernel, weights_kernel

    numbers = ("sums_ptr", "residual_ptr", "best_ptr", "tolerance_ptr", "left_ptr")
    judge = dict.fromkeys(numbers, "*fp64")
    judge |= {"going_ptr": "*i8", "better_ptr": "*i8", "last": "i32"}
    weights: dict[str, Any] = dict.fromkeys(
        (*numbers[:3], "gram_ptr", "left_best_ptr", "alpha_ptr", "beta_ptr"), "*fp64"
    )
    weights |= {"count_ptr": "*i64", "back_ptr": "*i8"}
    constants = {"REGULARIZATION": 1e-8, "BETA": 1.0, "GROWTH": 2.0, "LARGEST": 1e4}
    found = {"judge": resources(judge_kernel, judge, {}, capability, num_warps=1)}
    for size, room in ((6, 8), (11, 16)):
        shape = constants | {"N": size, "SIZE": room}
        found[f"weights {size}"] = resources(
            weights_kernel, weights, shape, capability, num_warps=1
        )
    return found


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spills(capability: int) -> None:
    for name, found in run_compiling(compiled_steps, capability).items():
        assert found.spilled == 0, (name, found.registers)
        assert found.registers <= 168, (name, found.registers)
