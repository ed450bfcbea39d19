"""Processes of this machine, told apart from later ones that were given the same number."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from distributed_ignn.files import place


class Process(NamedTuple):
    """A process.

    Args:
        place: see ``files.place``.
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


def born(pid: int) -> str:
    """When a process was started; empty where it is gone."""
    with suppress(OSError):
        # the name, in parentheses, may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""
