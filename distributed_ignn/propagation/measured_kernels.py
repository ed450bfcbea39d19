"""Which sparse product is fastest on a kind of GPU, as ``make gpu`` measured it there.

It writes ``configs/hardware/here-gpu.yaml``; any file of that folder may say so of a GPU, which it
names as torch does:

    device: NVIDIA H200
    kernels:
      float32: {csr: 0.0123, triton: 0.0071}    # seconds of one evaluation of the map

Ranks of one job have to read the same files, or they add in different orders.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distributed_ignn.config.shipped import CONFIG_FOLDER
from distributed_ignn.errors import UserError
from distributed_ignn.reading.strict_yaml import read_yaml

logger = logging.getLogger(__name__)

FOLDER = CONFIG_FOLDER / "hardware"

Seconds = dict[str, dict[str, Annotated[float, Field(gt=0)]]]
"""Of one evaluation of the map, by number format and kernel."""


class _Found(BaseModel):
    """What a file says of kernels; the rest of it is the planner's."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    device: str | None = None
    kernels: Seconds | None = None


def fastest_kernel(dtype: torch.dtype, device: torch.device, able: tuple[str, ...]) -> str | None:
    """The fastest of the kernels that were measured on a GPU like ``device``; None if none was.

    The first call of a process with the same arguments says in the log what is taken, and why.

    Args:
        dtype: number format of the state.
        device: a GPU; where this machine has none, nothing is known.
        able: names of the kernels that can run.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(device)
    return _chosen(FOLDER, name, str(dtype).removeprefix("torch."), able)


@cache
def _chosen(folder: Path, device: str, kind: str, able: tuple[str, ...]) -> str | None:
    for path in sorted(folder.glob("*.yaml")):
        found = _read(path)
        seconds = (found.kernels or {}).get(kind, {}) if found.device == device else {}
        usable = {name: value for name, value in seconds.items() if name in able}
        if usable:
            best = min(usable, key=lambda name: usable[name])
            others = ", ".join(f"{name} {value:.3g}" for name, value in usable.items())
            logger.info(
                "train.kernel auto takes %s: the fastest on %s in %s, by %s (seconds of an "
                "evaluation: %s)",
                *(best, device, kind, path, others),
            )
            return best
    logger.info(
        "train.kernel auto takes csr: nothing in %s was measured on %s in %s; make gpu measures it",
        *(folder, device, kind),
    )
    return None


def _read(path: Path) -> _Found:
    try:
        return _Found.model_validate(read_yaml(path))
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"hardware profile {path} cannot be read for train.kernel = auto: {reason}; write it "
            "anew with make gpu, or name a kernel with --train.kernel csr"
        ) from error
