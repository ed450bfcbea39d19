"""The machine, its libraries, and what would make numbers wrong without a word."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch

from distributed_ignn.comm.communicator import Communicator
from tests.gpu.setting import PARTITION, Budget, Setting, has_metis
from tests.gpu.verdicts import Check, holds, left_out, measured


def look(budget: Budget) -> Iterator[Check]:
    """What is here."""
    (found,) = budget.ranks(describe, 1)
    devices = found["devices"]
    yield measured("GPUs", len(devices), "", ", ".join(sorted({d["name"] for d in devices})))
    yield holds("GPUs are alike", len({d["name"] for d in devices}) <= 1)
    yield holds("TF32 is off", not found["tf32"], "it would void every certificate")
    versions = f"torch {found['torch']}, CUDA {found['cuda']}, NCCL {found['nccl']}"
    yield holds("torch", True, f"{versions}, Python {found['python']}, {found['cores']} cores")
    if budget.setting.real and budget.setting.gpus > 1:
        yield holds("NCCL is there", found["nccl"] is not None)
    if found["triton"] is None:
        yield left_out("Triton", "not installed; its kernels are left out everywhere")
    else:
        yield holds("Triton", True, found["triton"])
    if has_metis():
        yield holds("METIS", True)
    else:
        yield left_out("METIS", f"not installed; graphs are divided by {PARTITION}")


def describe(comm: Communicator, setting: Setting) -> dict[str, Any]:
    """The machine as one rank sees it."""
    cuda = setting.device == "cuda"
    gpus = [torch.cuda.get_device_properties(index) for index in range(setting.gpus)]
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": _nccl() if setting.real else None,
        "triton": _triton(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "tf32": bool(
            torch.backends.cuda.matmul.allow_tf32 or os.environ.get("NVIDIA_TF32_OVERRIDE") == "1"
        ),
        "devices": [
            {
                "name": gpu.name,
                "bytes": gpu.total_memory,
                "capability": f"{gpu.major}.{gpu.minor}",
                "processors": gpu.multi_processor_count,
                "reaches": [
                    other
                    for other in range(setting.gpus)
                    if setting.real
                    and other != index
                    and torch.cuda.can_device_access_peer(index, other)
                ],
            }
            for index, gpu in enumerate(gpus)
        ]
        if cuda
        else [],
    }


def _nccl() -> str | None:
    if not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def _triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return str(triton.__version__)
