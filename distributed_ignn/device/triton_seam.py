"""Where Triton's kernels run; whoever has a kernel and a way without it asks here, and only here.

Each kernel's module is imported when it is first used: Triton is not everywhere, takes a second to
load, and decides on being imported whether it compiles or interprets.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

SWITCH = "IGNN_TRITON"
"""Environment variable: with 0, torch does what it can do, too; ``train.kernel`` is apart."""


def interpreted() -> bool:
    """Whether kernels run on the CPU, by Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_obstacle(device: torch.device) -> str | None:
    """Why kernels cannot run on ``device``, as a clause; None if they can."""
    if device.type != "cuda" and not interpreted():
        return f"Triton needs a CUDA device, and this is a {device.type.upper()}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    return None


def triton_kernels_for(name: str, like: Tensor, *formats: torch.dtype) -> ModuleType | None:
    """The kernels in ``distributed_ignn.device.NAME``; None where torch has to do it.

    Args:
        name: of the module.
        like: what they would read, which decides device and format.
        formats: number formats that they know.
    """
    if like.dtype not in formats or not _wanted(like.device.type):
        return None
    return importlib.import_module(f"distributed_ignn.device.{name}")


def _wanted(kind: str) -> bool:
    if os.environ.get(SWITCH) == "0":
        return False
    return interpreted() or (kind == "cuda" and _compiles())


@cache
def _compiles() -> bool:
    """Whether there is a GPU build of torch, Triton, and the C compiler that it calls."""
    return (
        torch.backends.cuda.is_built()
        and importlib.util.find_spec("triton") is not None
        and any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    )
