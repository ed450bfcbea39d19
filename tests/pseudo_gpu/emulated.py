"""Ranks on emulated GPUs, and how their results are compared with those of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.pseudo_gpu.emulator import EmulatedGPU
from tests.ranks import run_ranks

CUDA = torch.device("cuda")
TIMEOUT = 240  # seconds of a start of ranks, on a machine that has other work


def run_emulated(fn: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """``run_ranks`` with an emulated GPU for each rank, over NCCL's rules.

    Tensors in results have to be on the CPU.
    """
    return run_ranks(
        fn,
        world_size,
        *args,
        timeout=TIMEOUT,
        device=CUDA,
        backend="nccl",
        inside=EmulatedGPU,
    )


def largest_difference(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], but: tuple[str, ...] = ()
) -> tuple[float, str]:
    """Largest difference of an entry over the largest entry of its tensor, and that one's name.

    Args:
        found, expected: the same names, on the CPU.
        but: beginnings of names that are left out.
    """
    assert found.keys() == expected.keys()
    differences = [(0.0, "nothing")]
    for name, value in expected.items():
        if not name.startswith(but) or not but:
            assert found[name].shape == value.shape, name
            scale = max(float(value.abs().max()), 1e-30) if value.numel() else 1.0
            gap = float((found[name] - value).abs().max()) if value.numel() else 0.0
            differences.append((gap / scale, name))
    return max(differences)
