"""Memory that a process has had in use at most."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_resident() -> int:
    """Bytes resident at the worst moment of this program.

    From /proc where there is one: what ``getrusage`` says starts, on Linux, with the memory of the
    process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
