"""A real Ray cluster: one ``ray start`` on each of two machines."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.clusters.namespaces import ADDRESSES, TwoMachines
from tests.jobs import environment

PORT = 6379
_RAY = str(Path(sys.executable).with_name("ray"))


class RayCluster:
    """Head on machine 0, and what is added on machine 1; all ends with ``with``.

    Args:
        machines: where it runs.
    """

    def __init__(self, machines: TwoMachines) -> None:
        self._machines = machines
        # short, because the paths of sockets in it are limited to 107 letters
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        self.environment = machines.environment() | {
            "RAY_ADDRESS": f"{ADDRESSES[0]}:{PORT}",
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }

    def __enter__(self) -> Self:
        head = ("--head", "--port", str(PORT), "--temp-dir", self._folder)
        self._start(0, *head, "--include-dashboard=false", "--disable-usage-stats")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for end in range(2):
            self._machines.lose(end)
        shutil.rmtree(self._folder, ignore_errors=True)

    def add_node(self) -> None:
        """One more node, on machine 1."""
        self._start(1, "--address", self.environment["RAY_ADDRESS"])

    def _start(self, end: int, *flags: str) -> None:
        limits = ("--num-cpus", "1", "--object-store-memory", str(2**27))
        self.on_machine(end, "start", "--node-ip-address", ADDRESSES[end], *flags, *limits)

    def announce_loss(self, seconds: int) -> None:
        """Say that machine 1 will be taken away after so many seconds, as a cloud does."""
        self.on_machine(
            0,
            "drain-node",
            *("--address", self.environment["RAY_ADDRESS"], "--node-id", self._node(1)),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed"),
            *("--deadline-remaining-seconds", str(seconds)),
        )

    def _node(self, end: int) -> str:
        """Id of the node that lives on a machine."""
        program = (
            "import ray; ray.init(log_to_driver=False, logging_level='ERROR');"
            "print(*(n['NodeID'] for n in ray.nodes() if n['Alive'] and "
            f"n['NodeManagerAddress'] == '{ADDRESSES[end]}'))"
        )
        return self._run(0, sys.executable, "-c", program).split()[-1]

    def on_machine(self, end: int, *command: str) -> str:
        """A ``ray`` command; what it says."""
        return self._run(end, _RAY, *command)

    def _run(self, end: int, *command: str) -> str:
        done = subprocess.run(
            self._machines.command(end, *command),
            env=environment() | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout
