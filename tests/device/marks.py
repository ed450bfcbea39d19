"""What tests of Triton's kernels are marked with; apart from what ``make gpu`` needs, too."""

from __future__ import annotations

import importlib.util

import pytest

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed; it comes with CUDA builds of torch and with the extra dev",
)
