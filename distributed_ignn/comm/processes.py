"""Processes of this machine, told apart from later ones that were given the same number."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process.

    Args:
        place: see ``place``.
        pid: its id there.
        born: when it was started, in ticks since the machine was.
    """

    place: str
    pid: int
    born: str

    @classmethod
    def this(cls) -> Process:
        """Return the process that asks."""
        return cls(place(), os.getpid(), born(os.getpid()))

    def has_ended(self) -> bool:
        """Whether it is gone, as far as this process can see: not from another machine."""
        return self.place == place() and born(self.pid) != self.born


def place() -> str:
    """The same for processes that see each other in ``/proc``: machine and space of process ids."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return uuid.uuid4().hex


def born(pid: int) -> str:
    """When a process was started; empty where it is gone."""
    with suppress(OSError):
        # the name, in parentheses, may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""
