"""What the host of a GPU does for an evaluation: kernels that it launches, times that it waits.

Counts are estimates, made on emulated GPUs (``make pseudo-gpu``), unless a profile holds what
``make gpu`` counted on real ones. Their seconds are the profile's: those of a launch and of a wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from distributed_ignn.lab.planning.hardware import Asked, Profile
from distributed_ignn.solvers.methods import METHODS

CLASSICAL = Asked(launches=54, syncs=1)
"""Of one steady evaluation with Anderson's method, halo exchange included."""

LIGHTER = {"picard": Asked(launches=26, syncs=1), "broyden": Asked(launches=35, syncs=1)}
"""The same of methods that do less."""

LEARNED = Asked(launches=88, syncs=2)
"""The same of a learned one, with its estimate."""

CODEC = Asked(launches=44, syncs=0)
"""More where halo rows are encoded."""

EXCHANGE = Asked(launches=9, syncs=0)
"""Less where there is no other rank: what is packed, sent and added."""

EPOCH = Asked(launches=250, syncs=10)
"""Of the rest of an epoch: encoder, readout, loss, backward pass, optimiser."""


def estimated(method: str) -> Asked:
    """Of one steady evaluation by a method."""
    return LEARNED if METHODS[method].learned else LIGHTER.get(method, CLASSICAL)


class Counted(NamedTuple):
    """How often an evaluation asks, and whether that was counted on a GPU."""

    asked: Asked
    measured: bool


@dataclass(frozen=True, slots=True)
class HostWork:
    """For one method on one number of ranks.

    Args:
        profile: of the hardware.
        method: of the solve.
        ranks: P.
        coded: whether halo rows are encoded.
    """

    profile: Profile
    method: str
    ranks: int
    coded: bool

    def evaluation(self) -> Counted:
        """Of one steady evaluation."""
        known = (self.profile.asked or {}).get(self.method)
        more = CODEC if self.coded and self.ranks > 1 else Asked(launches=0, syncs=0)
        less = Asked(launches=0, syncs=0) if self.ranks > 1 else EXCHANGE
        base = known or estimated(self.method)
        asked = Asked(
            launches=max(0.0, base.launches + more.launches - less.launches),
            syncs=base.syncs + more.syncs,
        )
        return Counted(asked, known is not None and not more.launches)

    def seconds(self, asked: Asked) -> float:
        """What launches and waits take, none of it hidden."""
        waits = asked.syncs * (self.profile.sync_seconds or 0.0)
        return asked.launches * self.profile.operation_seconds + waits
