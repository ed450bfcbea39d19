"""float32 stays float32 on a GPU: no product is rounded to TF32 while a command or a fit runs.

TF32 keeps 10 bits of a factor, a relative error of 5e-4. A residual of 1e-6 would then say nothing
about the map that is meant, and no certificate of an equilibrium would hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distributed_ignn.errors import UserError

_OVERRIDE = "NVIDIA_TF32_OVERRIDE"


def refuse_override(device: torch.device) -> None:
    """Refuse an environment in which NVIDIA's libraries round whatever a program says.

    Raises:
        UserError: it is set so, and the device is a GPU.
    """
    value = os.environ.get(_OVERRIDE, "")
    if device.type == "cuda" and value not in ("", "0"):
        raise UserError(
            f"{_OVERRIDE} = {value} in the environment has GPUs round float32 products to 10 bits, "
            "and no bound on an equilibrium would hold; unset it, or set it to 0"
        )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Have products of float32 computed in float32 inside; the program's own choice comes back."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    # torch refuses products where its older switches, which these are, and its newer ones differ
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
