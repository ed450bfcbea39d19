"""How many entries of a tall array are worked off together."""

from __future__ import annotations

from functools import cache

import torch

_SHARE = 128  # of a GPU's memory: one array of eight bytes an entry


def block_entries(device: torch.device, on_cpu: int) -> int:
    """Entries of a block on ``device``.

    On a CPU what is made on the way should stay in the cache. A GPU has no such cache, and every
    block costs launches: there an array is taken whole, as long as an array of eight bytes an entry
    is at most 1/128 of the memory (137 million entries of 141 GB). The share is of the memory
    that the GPU has, not of what is free: blocks decide in which order numbers are added.

    Args:
        device: where the array is.
        on_cpu: entries of a block on a CPU.
    """
    return _on_gpu(device.index) if device.type == "cuda" else on_cpu


@cache
def _on_gpu(index: int | None) -> int:
    where = torch.cuda.current_device() if index is None else index
    return max(1, int(torch.cuda.get_device_properties(where).total_memory) // (8 * _SHARE))
