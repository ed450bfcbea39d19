"""Rows that an exchange is moving and copies that are on their way to the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from tests.pseudo_gpu.tensor import address

if TYPE_CHECKING:
    from tests.pseudo_gpu.emulator import EmulatedGPU

_LOOKS_ON = ("detach", "alias", "view", "select", "slice")  # touches no number


class Transfers:
    """What may not be touched yet, by storage.

    Args:
        gpu: which is told of faults.
    """

    def __init__(self, gpu: EmulatedGPU) -> None:
        self._gpu = gpu
        self._moving: dict[int, tuple[bool, str]] = {}  # whether rows may be read, and where from
        # when a copy began, and where; the tensor keeps its address
        self._landing: dict[int, tuple[int, str, Tensor]] = {}
        self.ticks = 0

    def begin(self, tensors: Iterable[Tensor], *, readable: bool) -> None:
        """An exchange sends tensors (which may still be read) or receives into them."""
        place = self._gpu.counts.place()
        for one in tensors:
            if address(one):
                self._moving[address(one)] = readable, place

    def end(self, tensors: Iterable[Tensor]) -> None:
        """The exchange was waited for."""
        for one in tensors:
            self._moving.pop(address(one), None)

    def forget(self) -> None:
        """Nothing is on its way any more."""
        self._moving.clear()
        self._landing.clear()

    def check(self, name: str, numbers: Tensor, *, written: bool) -> None:
        """Refuse rows of an exchange that has not been waited for."""
        readable, place = self._moving.get(address(numbers), (True, ""))
        if place and (written or not readable):
            verb = "overwrites" if readable else "uses"
            self._gpu.fault(f"{name} {verb} rows of an exchange not waited for, begun at {place}")

    @property
    def any_moving(self) -> bool:
        return bool(self._moving)

    def land(self, target: Tensor) -> None:
        """A copy to the host has begun; nobody reads it before it was waited for."""
        self.ticks += 1
        self._landing[address(target)] = self.ticks, self._gpu.counts.place(), target

    def arrive(self, until: int) -> None:
        """Copies to the host that began up to a tick are there."""
        if self._landing:
            self._landing = {k: v for k, v in self._landing.items() if v[0] > until}

    def check_landed(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Refuse copies that the host has not waited for."""
        for one in tensors if self._landing else ():
            began = self._landing.get(address(one))
            if began is not None and name not in _LOOKS_ON:
                self._gpu.fault(f"aten.{name} reads a copy not waited for, begun at {began[1]}")
