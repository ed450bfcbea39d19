"""Two machines for tests: network namespaces with addresses of their own, joined by a cable.

Everything but the network is shared: files, memory, processes. A machine is lost by killing all
that runs in its namespace, and a network goes silent by taking the cable down.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.link import INTERFACE, Link, LinkSettings

ADDRESSES = ("10.0.0.1", "10.0.0.2")
_FAST = LinkSettings("10gbit")


@dataclass(frozen=True, slots=True)
class TwoMachines:
    """Machines 0 and 1; see ``two_machines``."""

    link: Link

    def command(self, end: int, *command: str) -> list[str]:
        """The command as it is to be started so that it runs on a machine.

        The process that is started becomes the command, so signals to it reach the command.
        """
        return [*self.link.command(end), *command]

    @staticmethod
    def environment() -> dict[str, str]:
        """What programs on both need, because the host's name is that of neither network."""
        return {"GLOO_SOCKET_IFNAME": INTERFACE}

    def set_cable(self, *, up: bool) -> None:
        """Plug the cable in, or pull it: packets are then lost without a word to anybody."""
        state = "up" if up else "down"
        name = self.link.namespaces[1]
        subprocess.run(["ip", "-n", name, "link", "set", INTERFACE, state], check=True)

    def processes(self, end: int) -> list[int]:
        """Ids of what runs on a machine."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.link.namespaces[end]],
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(line) for line in listed.stdout.split()]

    def lose(self, end: int) -> None:
        """Kill everything on a machine at once, as a power cut would."""
        deadline = time.monotonic() + 10
        while (running := self.processes(end)) and time.monotonic() < deadline:
            for process in running:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        assert not running, f"processes {running} do not end"


def why_not() -> str:
    """Why this machine cannot make namespaces; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "ip and tc of iproute2 are not installed"
    try:
        with Link(_FAST):
            return ""
    except UserError as error:
        return f"this machine makes no namespaces: {error}"


@contextmanager
def two_machines() -> Iterator[TwoMachines]:
    """Both, until the end of ``with``; then all that still runs there is killed."""
    with Link(_FAST) as link:
        machines = TwoMachines(link)
        try:
            yield machines
        finally:
            for end in range(2):
                machines.lose(end)
