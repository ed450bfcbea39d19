"""``torch.cuda`` of the emulated GPU: devices, memory, streams, events, random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.pseudo_gpu.graphs import graph_patches
from tests.pseudo_gpu.streams import stream_patches

if TYPE_CHECKING:
    from tests.pseudo_gpu.emulator import EmulatedGPU

TOTAL_BYTES = 141 * 10**9
_FREE_AT_START = 140 * 10**9
_NAME = "emulated H200"
Patches = list[tuple[Any, str, Any]]


def cuda_patches(gpu: EmulatedGPU) -> Patches:
    """What takes the place of ``torch.cuda``'s functions."""
    patches = [
        *_devices(gpu),
        *_memory(gpu),
        *stream_patches(gpu),
        *_random(gpu),
        *graph_patches(gpu),
    ]
    return [*patches, (torch.version, "cuda", "13.0"), (torch._VF, "gru_cell", _gru_cell)]


def _devices(gpu: EmulatedGPU) -> Patches:
    def properties(device: Any = None) -> Any:
        return SimpleNamespace(
            uuid=f"GPU-emulated-{gpu.first + gpu.index_of(device)}",
            name=_NAME,
            total_memory=TOTAL_BYTES,
            multi_processor_count=132,
            major=9,
            minor=0,
            L2_cache_size=60 * 2**20,
            warp_size=32,
            max_threads_per_multi_processor=2048,
            shared_memory_per_multiprocessor=233472,
            shared_memory_per_block_optin=232448,
            regs_per_multiprocessor=65536,
            gcnArchName="sm_90",
        )

    def set_device(device: Any) -> None:
        gpu.current_device = gpu.index_of(device)

    @contextmanager
    def on_device(device: Any) -> Iterator[None]:
        before = gpu.current_device
        set_device(device)
        try:
            yield
        finally:
            gpu.current_device = before

    def on_device_of(tensor: Tensor) -> Any:
        return on_device(tensor.device) if tensor.device.type == "cuda" else nullcontext()

    cuda = torch.cuda
    nvtx = [(cuda.nvtx, f"range_{name}", lambda *given: 0) for name in ("push", "pop")]
    return [
        *nvtx,
        *((cuda, name, lambda: True) for name in ("is_available", "is_initialized")),
        *((cuda, name, lambda: None) for name in ("init", "_lazy_init")),
        (cuda, "is_bf16_supported", lambda including_emulation=True: True),
        (cuda, "device_count", lambda: gpu.devices),
        # torch names it where it reports the failure of a collective
        (cuda.nccl, "version", lambda: (2, 27, 3)),
        (cuda, "current_device", lambda: gpu.current_device),
        (cuda, "set_device", set_device),
        (cuda, "device", on_device),
        (cuda, "device_of", on_device_of),
        (cuda, "get_device_name", lambda device=None: properties(device).name),
        (cuda, "get_device_properties", properties),
        (cuda, "get_device_capability", lambda device=None: (9, 0)),
        (cuda, "get_arch_list", lambda: ["sm_80", "sm_90"]),
    ]


def _memory(gpu: EmulatedGPU) -> Patches:
    memory = gpu.memory

    def reset(device: Any = None) -> None:
        memory.peak = memory.now

    def stats(device: Any = None) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": memory.now,
            "allocated_bytes.all.peak": memory.peak,
            "reserved_bytes.all.current": memory.peak,
            "reserved_bytes.all.peak": memory.peak,
            "active_bytes.all.current": memory.now,
            "active_bytes.all.peak": memory.peak,
            "num_alloc_retries": 0,
            "num_ooms": 0,
        }

    cuda = torch.cuda
    return [
        (cuda, "mem_get_info", lambda device=None: (_FREE_AT_START - memory.now, TOTAL_BYTES)),
        (cuda, "memory_stats", stats),
        (cuda, "memory_allocated", lambda device=None: memory.now),
        (cuda, "max_memory_allocated", lambda device=None: memory.peak),
        (cuda, "memory_reserved", lambda device=None: memory.peak),
        (cuda, "max_memory_reserved", lambda device=None: memory.peak),
        (cuda, "reset_peak_memory_stats", reset),
        (cuda, "empty_cache", lambda: None),
    ]


def _random(gpu: EmulatedGPU) -> Patches:
    def seed_all(seed: int) -> None:
        for index in range(gpu.devices):
            gpu.seed(index)[:] = int(seed), 0

    def seed_one(seed: int) -> None:
        gpu.seed(gpu.current_device)[:] = int(seed), 0

    def get_state(device: Any = "cuda") -> Tensor:
        """Seed and offset, uint8 [16], as of CUDA's generator."""
        return torch.tensor(gpu.seed(gpu.index_of(device)), dtype=torch.int64).view(torch.uint8)

    def set_state(state: Tensor, device: Any = "cuda") -> None:
        gpu.seed(gpu.index_of(device))[:] = state.view(torch.int64).tolist()

    cuda = torch.cuda
    return [
        (cuda, "manual_seed", seed_one),
        (cuda, "manual_seed_all", seed_all),
        (cuda, "initial_seed", lambda: gpu.seed(gpu.current_device)[0]),
        (cuda, "get_rng_state", get_state),
        (cuda, "set_rng_state", set_state),
        (cuda, "get_rng_state_all", lambda: [get_state(i) for i in range(gpu.devices)]),
    ]


def _gru_cell(x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> Tensor:
    """In parts, since torch takes a kernel for the whole cell that a CPU build lacks."""
    linear = torch.nn.functional.linear
    (r_x, u_x, n_x), (r_h, u_h, n_h) = (
        part.chunk(3, 1) for part in (linear(x, w_x, b_x), linear(h, w_h, b_h))
    )
    update = torch.sigmoid(u_x + u_h)
    fresh = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return torch.lerp(fresh, h, update)
