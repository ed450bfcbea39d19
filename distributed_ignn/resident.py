"""What Linux gives a process: huge pages, and the peak of its resident memory in a step.

``resource.getrusage`` knows only the peak of the whole process, which hides every later and smaller
step; the kernel's own mark can be reset.
"""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from pathlib import Path

_PROCESS = Path("/proc/self")


def use_huge_pages() -> None:
    """Let torch ask for its CPU blocks of 2 MiB and more in huge pages, unless the user has chosen.

    A solve makes and frees arrays of n x D numbers all the time, which Linux maps anew each time;
    with pages of 4 KiB a copy of 60 MB takes 31 ms instead of 7 (measured), most of it in page
    faults. It is an environment variable, which children inherit and which torch reads at its first
    large allocation, so that only a process of this project's own sets it, when it starts.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@dataclass(frozen=True, slots=True)
class Peak:
    """Largest resident memory in bytes, mapped files that were touched included.

    Args:
        process: of this process since ``reset_peak``; since its start where that cannot be reset.
        child: of the largest child process that ended since then; 0 without one, and where an
            earlier child or this process was larger, which the kernel does not tell apart.
    """

    process: int
    child: int


def reset_peak() -> int:
    """Start measuring; returns the mark of the children, for ``read_peak``."""
    # on another system, or where it is not permitted, the peak counts from the start
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")
    return _largest_child()


def read_peak(children: int) -> Peak:
    """The peak since ``reset_peak`` returned ``children``."""
    child, process = _largest_child(), _high_water_mark()
    return Peak(process, child if child > max(children, process) else 0)


def _high_water_mark() -> int:
    try:
        status = (_PROCESS / "status").read_text()
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def _largest_child() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
