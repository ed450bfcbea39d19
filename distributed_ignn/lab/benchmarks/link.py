"""Two network namespaces joined by a cable of limited rate: a slow link between ranks, for real.

A pair of virtual network cards (veth) joins the namespaces; on both, a token bucket (tc qdisc tbf)
limits what leaves, and netem adds a delay where the kernel has it. Nothing outside the two
namespaces is touched, and both vanish when the link closes, with the cards inside. It takes root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from distributed_ignn.errors import UserError

INTERFACE = "wire0"
_PREFIX = "ignn-link-"
_ADDRESSES = ("10.0.0.1", "10.0.0.2")
_RATE = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)")
_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BURST_SECONDS = 0.002  # of sending at the rate; a bucket that is too small slows the link down
_LEAST_BURST = 65536  # the largest piece that a virtual card hands over
_LATENCY = "400ms"  # longest time in the queue before something is dropped


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How the link behaves, in each direction.

    Args:
        rate: as tc writes it, such as 200mbit.
        delay_ms: added one way, in milliseconds; 0 for none.
    """

    rate: str
    delay_ms: float = 0.0

    def __post_init__(self) -> None:
        if _RATE.fullmatch(self.rate) is None or self.bits_per_second <= 0:
            raise UserError(
                f"link rate {self.rate!r} is not a rate above 0; write it as 200mbit or 1gbit"
            )
        if not 0 <= self.delay_ms < 60_000:
            raise UserError(f"link delay {self.delay_ms} must be milliseconds from 0 on")

    @property
    def bits_per_second(self) -> float:
        match = _RATE.fullmatch(self.rate)
        return float(match[1]) * _BITS[match[2]] if match else 0.0

    @property
    def burst(self) -> int:
        """Bytes of the bucket."""
        return max(_LEAST_BURST, round(self.bits_per_second / 8 * _BURST_SECONDS))


class Link:
    """Two namespaces and their cable, from ``with`` to its end.

    Args:
        settings: rate and delay.

    Raises:
        UserError: not root, iproute2 is missing, or the kernel lacks what is needed; one line.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self.namespaces = tuple(f"{_PREFIX}{os.getpid()}-{end}" for end in "ab")

    @property
    def address(self) -> str:
        """Of the first namespace, where ranks meet."""
        return _ADDRESSES[0]

    @property
    def interface(self) -> str:
        """Network card of either namespace."""
        return INTERFACE

    def command(self, end: int) -> list[str]:
        """What to put before a command so that it runs in the first (0) or second (1) one."""
        return ["ip", "netns", "exec", self.namespaces[end]]

    def __enter__(self) -> Self:
        check_privileges()
        remove_leftovers()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _build(self) -> None:
        first, second = self.namespaces
        for name in self.namespaces:
            _tool("ip", "netns", "add", name)
        cable = f"{INTERFACE} netns {first} type veth peer name {INTERFACE} netns {second}"
        _tool("ip", "link", "add", *cable.split())
        for name, address in zip(self.namespaces, _ADDRESSES, strict=True):
            _tool("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _tool("ip", "-n", name, "link", "set", interface, "up")
            self._limit(name)

    def _limit(self, name: str) -> None:
        settings = self._settings
        bucket = f"tbf rate {settings.rate} burst {settings.burst} latency {_LATENCY}"
        _tool(
            "tc", "-n", name, *f"qdisc add dev {INTERFACE} root handle 1:".split(), *bucket.split()
        )
        if settings.delay_ms:
            # the queue of netem counts packets: room for what is on its way at the full rate
            delay = f"netem delay {settings.delay_ms}ms limit 100000"
            try:
                _tool(
                    "tc",
                    "-n",
                    name,
                    *f"qdisc add dev {INTERFACE} parent 1: handle 10:".split(),
                    *delay.split(),
                )
            except UserError as error:
                raise UserError(f"{error}; without a delay no netem is needed") from error

    def _remove(self) -> None:
        """Delete what there is of the link; the cable goes with its namespaces."""
        present = _namespaces()
        for name in self.namespaces:
            if name in present:
                _tool("ip", "netns", "delete", name)


def check_privileges() -> None:
    """Make sure that namespaces and limits can be made at all.

    Raises:
        UserError: not root, or a tool is missing.
    """
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise UserError(f"a rate-limited link needs {tool} of iproute2, which is not installed")
    if os.geteuid() != 0:
        raise UserError("a rate-limited link needs root, for its network namespaces")


def remove_leftovers() -> None:
    """Delete the namespaces of processes that were killed before they could."""
    for name in _namespaces():
        match = re.fullmatch(rf"{_PREFIX}(\d+)-[ab]", name)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            _tool("ip", "netns", "delete", name)


def _namespaces() -> set[str]:
    listed = _tool("ip", "netns", "list").splitlines()
    return {line.split()[0] for line in listed if line}


def _tool(*command: str) -> str:
    """Output of a command of iproute2.

    Raises:
        UserError: it failed; the line names the command and its last words.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.split("\n")
        reason = next((line for line in words if line.strip()), f"exit code {done.returncode}")
        raise UserError(f"{' '.join(command)}: {reason.strip()}")
    return done.stdout
