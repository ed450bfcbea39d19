"""Entering and mixing by kernels: the numbers of torch's operations, in a third of the passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from tests.device.history_cases import history_errors, passes, squares_error, sums_repeat
from tests.device.triton_runs import (
    Resources,
    needs_triton,
    resources,
    run_compiling,
    run_interpreted,
)

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
def test_a_step_passes_over_the_state_twenty_times_at_most_and_the_plan_knows() -> None:
    ((found, rounded),) = run_interpreted(_passes)
    assert found["launches"] == 3
    assert found["push and mix"] == pytest.approx(19.0, rel=1e-3)
    assert found["enter and mix"] == pytest.approx(17.0, rel=1e-3)
    assert found["average"] == pytest.approx(found["planned"], rel=1e-3)
    # eleven arrays of differences at half the size
    assert rounded["push and mix"] == pytest.approx(13.5, rel=1e-3)
    assert rounded["average"] == pytest.approx(rounded["planned"], rel=1e-3)


def compiled_history(comm: Communicator, capability: int) -> dict[str, Resources]:
    """Kernels of a memory of five and of ten, with differences in float32 and in bfloat16."""
    import triton.language as tl

    from distributed_ignn.device import triton_history as kernels

    found = {}
    for memory, stored in ((5, "*fp32"), (5, "*bf16"), (10, "*fp32")):
        case = f"M = {memory}, {stored.removeprefix('*')}"
        numbers = {"partial_ptr": "*fp64", "count": "i32 16", "steps": "i32"}
        arrays = dict.fromkeys(("point_ptr", "ahead_ptr", "before_ptr", "held_ptr"), "*fp32")
        arrays |= {"fresh_ptr": "*fp32", "residual_ptr": stored, "estimate_ptr": stored}
        constants = {"HAS_SLOT": True, "HOLDS_RESIDUAL": True, "KEEP": True, "EXTRA": 2}
        block = kernels._BLOCK if memory + 2 <= kernels._FEW else kernels._BLOCK // 2
        found[f"enter_kernel, {case}"] = resources(
            kernels.enter_kernel,
            numbers | arrays | {"older_ptrs": (stored,) * (memory - 1)},
            constants | {"COMPUTE": tl.float32, "BLOCK": block},
            capability,
        )
        differences = {"estimate_ptrs": (stored,) * memory, "change_ptrs": (stored,) * memory}
        weights = {"alpha_ptr": "*fp64", "beta_ptr": "*fp64", "mixed_ptr": "*fp32"}
        found[f"mix_kernel, {case}"] = resources(
            kernels.mix_kernel,
            numbers | arrays | differences | weights | {"residual_ptr": "*fp32"},
            {"HOLDS_RESIDUAL": True, "HAS_BETA": True, "COMPUTE": tl.float32, "BLOCK": 512},
            capability,
        )
    found["finish_kernel"] = resources(
        kernels.finish_kernel,
        {"partial_ptr": "*fp64", "total_ptr": "*fp64", "programs": "i32"},
        {"SUMS": 7, "GRAM": 6, "SQUARE": True, "BLOCK": kernels.PROGRAMS},
        capability,
        num_warps=kernels.FINISH_WARPS,
    )
    found["squares_kernel"] = resources(
        kernels.squares_kernel,
        {"point_ptr": "*fp32", "image_ptr": "*fp32", "partial_ptr": "*fp64"}
        | {"count": "i32 16", "steps": "i32"},
        {"COMPUTE": tl.float32, "BLOCK": kernels._BLOCK},
        capability,
    )
    return found


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_within_their_registers(capability: int) -> None:
    found = run_compiling(compiled_history, capability)
    assert len(found) == 8
    # at 128 registers four programs of four warps are on a unit
    ceilings = {"enter_kernel": 128, "mix_kernel": 64, "finish_kernel": 64, "squares_kernel": 64}
    for name, taken in found.items():
        assert taken.spilled == 0, (name, taken)
        assert taken.registers <= ceilings[name.partition(",")[0]], (name, taken)
