"""Which emulated GPU this process is inside of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.pseudo_gpu.emulator import EmulatedGPU

ENTERED: list[EmulatedGPU] = []


def emulator() -> EmulatedGPU:
    """The one that was entered last.

    Raises:
        RuntimeError: none is.
    """
    if not ENTERED:
        raise RuntimeError("outside of an emulated GPU")
    return ENTERED[-1]
