"""Where Triton's kernels run; whoever has a kernel and a way without it asks here, and only here.

Each kernel's module is imported when it is first used: Triton is not everywhere, takes a second to
load, and decides on being imported whether it compiles or interprets.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import shutil
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

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
    return None if interpreted() else _against_compiling()


def kernels_obstacle(device: torch.device) -> str | None:
    """Why a rank on ``device`` leaves to torch what torch can do, as a clause; None if not."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 is set"
    return triton_obstacle(device)


def leave_to_torch(everything: bool) -> None:
    """Switch the kernels off that torch can do without, or on again where they can run.

    Ranks with and without them reduce different numbers, so a job agrees on it.
    """
    _agreed["off"] = everything


_agreed = {"off": False}


def triton_kernels_for(name: str, like: Tensor, *formats: torch.dtype) -> ModuleType | None:
    """The kernels in ``distributed_ignn.device.NAME``; None where torch has to do it.

    Args:
        name: of the module.
        like: what they would read, which decides device and format.
        formats: number formats that they know.
    """
    if like.dtype not in formats or _agreed["off"] or kernels_obstacle(like.device) is not None:
        return None
    return importlib.import_module(f"distributed_ignn.device.{name}")


@cache
def _against_compiling() -> str | None:
    """Why Triton, which is installed, cannot compile for a GPU, as a clause; None if it can.

    Triton builds its driver from C when it is first used, so it is used here, before a solve is.
    """
    if not torch.backends.cuda.is_built():
        return "this torch is built without CUDA"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "Triton needs a C compiler, and there is none"
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # whatever stops it: torch can go on
        told = str(error).partition("\n")[0][:200]
        reason = (
            "Triton cannot build its driver, which takes a C compiler, Python's headers and "
            f"libcuda ({type(error).__name__}: {told})"
        )
        logger.warning("%s; torch's operations are used instead", reason)
        return reason
    return None
