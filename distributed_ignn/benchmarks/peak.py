"""The largest memory that a process has held."""

from __future__ import annotations

from pathlib import Path

import torch

from distributed_ignn.comm.communicator import Communicator


def peak_memory(comm: Communicator) -> int:
    """Bytes, of this rank: of the GPU where there is one, else the largest resident size."""
    if comm.device.type == "cuda":
        return torch.cuda.max_memory_allocated(comm.device)
    return _status("VmHWM")


def resident_memory(comm: Communicator) -> int:
    """Bytes that this rank holds now."""
    if comm.device.type == "cuda":
        return torch.cuda.memory_allocated(comm.device)
    return _status("VmRSS")


def _status(key: str) -> int:
    """A line of /proc/self/status in bytes.

    getrusage would not do: a process that was started by a larger one inherits that one's peak.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
