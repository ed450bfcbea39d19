"""The Triton kernels compiled, on a GPU; ``tests/graph`` interprets them on the CPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from tests.device.codec_cases import differing, every_scale, nan_is_told
from tests.device.history_cases import history_errors, squares_error, sums_repeat
from tests.device.mask_cases import differing_masks
from tests.parity.cases import sum_reports
from tests.propagation.triton_cases import (
    cell_report,
    evaluation_errors,
    not_a_number,
    product_errors,
)
from tests.ranks import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton"),
    # every width and every sort of entries is compiled, and tuned, on its own
    pytest.mark.timeout(900),
]

# of entering and mixing, relative to the largest number
CLOSE = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 2.0**-6}

GPU = torch.device("cuda", 0)
EXACT = 1e-6


def test_products_agree_with_float64() -> None:
    (errors,) = run_ranks(product_errors, 1, timeout=400, device=GPU)
    assert {name: error for name, error in errors.items() if error > EXACT} == {}


@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_evaluations_agree_with_float64(state: torch.dtype, precision: str) -> None:
    (report,) = run_ranks(evaluation_errors, 1, state, precision, timeout=400, device=GPU)
    rounded = EXACT if state is torch.float32 else 2.0**-8 + EXACT
    for name, errors in report.items():
        assert errors["image"] < rounded, name
        assert errors["squares"] < EXACT, name
        assert errors.get("product", 0.0) < EXACT, name
    assert run_ranks(not_a_number, 1, timeout=400, device=GPU) == [[True, True, True]]


def test_cells_agree_with_float64_on_the_cpu() -> None:
    expected = cell_report(Communicator(), "reduce")
    for world_size in (1, 2):
        reports = run_ranks(cell_report, world_size, "triton", timeout=400, device=GPU)
        for case, values in sum_reports(reports).items():
            fused = not case.endswith("mixed")
            assert values["<known>"] == (world_size if fused else 0), case
            for name in values.keys() - {"<known>", "<steps>"}:
                error = (values[name] - expected[case][name]).norm() / expected[case][name].norm()
                assert error < EXACT, (case, name, world_size)


def test_the_history_is_entered_and_mixed_as_on_the_cpu() -> None:
    (errors,) = run_ranks(history_errors, 1, timeout=400, device=GPU)
    for name, error in errors.items():
        kind = next(kind for kind in reversed(CLOSE) if kind in name)
        assert error < CLOSE[kind], name
    ((relative, nan),) = run_ranks(squares_error, 1, timeout=400, device=GPU)
    assert relative < 1e-6
    assert nan == 1.0
    assert run_ranks(sums_repeat, 1, timeout=400, device=GPU) == [True]


def test_codes_and_masks_are_those_of_the_cpu_bit_by_bit() -> None:
    assert run_ranks(differing, 1, timeout=400, device=GPU) == [[]]
    assert run_ranks(every_scale, 1, timeout=400, device=GPU) == [[True] * 4]
    assert run_ranks(nan_is_told, 1, timeout=400, device=GPU) == [[True, True]]
    assert run_ranks(differing_masks, 1, timeout=400, device=GPU) == [[]]
