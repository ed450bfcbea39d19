"""What memory this process holds, what the machine has left, and how the ranks share it.

All numbers are bytes. On a GPU they are those of torch's allocator and of the driver.
"""

from __future__ import annotations

import ctypes
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from distributed_ignn.comm.communicator import Communicator

# of malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_MAPPED = 4 << 20  # bytes of a block from which on it is a mapping of its own
_MOST_MAPPED = 32 << 20  # the largest that glibc comes to by itself
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_UNIFIED = "memory.max", "memory.current"
_LEGACY = "memory.limit_in_bytes", "memory.usage_in_bytes"


def resident(device: torch.device) -> int:
    """Held now: resident size of the process, or allocated on its GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _field(_STATUS, "VmRSS") or 0


def peak(device: torch.device) -> int:
    """The largest value that ``resident`` has had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    known = _field(_STATUS, "VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if known is None else known


def forget_peak(device: torch.device) -> None:
    """Have ``peak`` begin anew, where the kernel knows how."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        _CLEAR.write_text("5")  # the largest resident size, see proc(5)


def available(device: torch.device) -> int | None:
    """What may still be taken on this machine or GPU; None where that cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_field(_MEMINFO, "MemAvailable")]
    for folder, (limit, usage) in _control_groups():
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None:
            # files that were read count as used, and make room when it is needed
            found.append(max(most - used, 0) + _cached(folder / "memory.stat"))
    known = [value for value in found if value is not None]
    return min(known) if known else None


def place(comm: Communicator) -> str:
    """Names what this rank shares its memory with: a machine, or one GPU of it."""
    host = socket.gethostname()
    if comm.device.type != "cuda":
        return host
    return f"GPU {torch.cuda.get_device_properties(comm.device).uuid} of {host}"


def can_keep_freed_memory() -> bool:
    """Whether ``keep_freed_memory`` has an effect: the C library is asked for it as glibc is."""
    return _glibc() is not None


def return_freed_memory() -> None:
    """Have the C library give freed blocks of 4 MiB and more back at once, where it is glibc.

    It would keep blocks of up to 32 MiB for later once it has seen one of them freed, which leaves
    a process of many short-lived arrays with holes. Calling it again also returns what is free now.
    """
    _map_blocks(_MAPPED)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed from now on for the next array, where it is glibc.

    A block that has just been given back comes as pages that the kernel has to fill with zeros
    first. What is free now is returned; ``return_freed_memory`` undoes it.
    """
    _set_allocator((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))  # no mappings; never trimmed


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """``return_freed_memory``, until the end of the block; whatever was set inside is undone.

    glibc raises its thresholds by itself only until one has been set. So that a process goes on as
    fast as before, they then stay where it would have raised them to.
    """
    return_freed_memory()
    try:
        yield
    finally:
        _map_blocks(_MOST_MAPPED)


def _map_blocks(smallest: int) -> None:
    """Give blocks of so many bytes and more mappings of their own, which go back when freed."""
    _set_allocator(
        (_M_MMAP_MAX, 65536), (_M_MMAP_THRESHOLD, smallest), (_M_TRIM_THRESHOLD, 2 * smallest)
    )


def _set_allocator(*settings: tuple[int, int]) -> None:
    library = _glibc()
    if library is not None:
        for parameter, value in settings:
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, where its allocator can be told what to do with freed blocks."""
    with suppress(OSError):
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
            return library
    return None


def _control_groups() -> Iterator[tuple[Path, tuple[str, str]]]:
    """All control groups of this process, with the names of their limit and usage.

    A container, SLURM or systemd may set a limit on any level, of either version. Where only a part
    of the hierarchy is mounted, its root stands for what is above it.
    """
    roots = {_MOUNT: (_UNIFIED, "/"), _MOUNT / "memory": (_LEGACY, "/")}
    try:
        lines = [line.split(":", 2) for line in _GROUPS.read_text().splitlines()]
    except OSError:
        lines = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if "memory" in controllers.split(","):
            roots[_MOUNT / "memory"] = _LEGACY, path
        elif number == "0":
            roots[_MOUNT] = _UNIFIED, path
            roots[_MOUNT / "unified"] = _UNIFIED, path
    for root, (names, path) in roots.items():
        folder = root / path.strip("/")
        above = [folder, *folder.parents]
        for group in above[: len(above) - len(root.parents)]:
            yield group, names


def _field(path: Path, key: str) -> int | None:
    """A line "key:   number kB" of a file in /proc."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _cached(path: Path) -> int:
    """Bytes of files in the memory of a control group, and of those below, that it can drop."""
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    found = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    # version 1 counts its own group and all below apart
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as in "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
