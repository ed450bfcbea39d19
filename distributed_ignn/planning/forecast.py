"""Forecasts over numbers of ranks: memory, seconds of an epoch, efficiency.

Efficiency is T(1) / (P T(P)) with T(1) predicted for one device that holds the whole graph,
whether or not it fits there; that one does no exchange and is perfectly balanced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from distributed_ignn.comm.codecs import HaloCodec
from distributed_ignn.planning.epoch import Cost, EpochModel
from distributed_ignn.planning.equations import Machine
from distributed_ignn.planning.footprint import MemoryItem, memory_items
from distributed_ignn.planning.hardware import Profile
from distributed_ignn.planning.workload import CODECS, Part, Workload

PartOf = Callable[[int], Part]
"""Sizes of the largest of P parts."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One number of ranks.

    Args:
        part: sizes of the largest part.
        codec: of the halo rows.
        cost: an epoch of the slowest rank.
        memory: uses of memory of that rank.
        capacity: bytes that a rank has.
        efficiency: see above.
    """

    part: Part
    codec: HaloCodec
    cost: Cost
    memory: tuple[MemoryItem, ...]
    capacity: float
    efficiency: float

    @property
    def seconds(self) -> float:
        """Of an epoch."""
        return self.cost.seconds

    @property
    def bytes(self) -> float:
        """Memory of a rank."""
        return sum(item.bytes for item in self.memory)

    @property
    def fits(self) -> bool:
        return self.bytes <= self.capacity


def forecast(
    part_of: PartOf,
    ranks: Sequence[int],
    work: Workload,
    profile: Profile,
) -> list[Forecast]:
    """One forecast per number of ranks.

    Args:
        part_of: the sizes of a part.
        ranks: numbers of ranks.
        work: the settings.
        profile: the hardware.
    """
    alone = EpochModel(part_of(1), work, Machine(profile, 1)).epoch().seconds
    found = []
    for count in ranks:
        part = part_of(count)
        cost = EpochModel(part, work, Machine(profile, count)).epoch()
        found.append(
            Forecast(
                part,
                work.codec,
                cost,
                tuple(memory_items(part, work, profile.process_bytes)),
                profile.memory_bytes,
                alone / (count * cost.seconds),
            )
        )
    return found


def by_codec(
    part_of: PartOf, ranks: Sequence[int], work: Workload, profile: Profile
) -> dict[HaloCodec, list[Forecast]]:
    """The same for every codec; all are taken to need the same number of evaluations."""
    return {
        codec: forecast(part_of, ranks, replace(work, codec=codec), profile) for codec in CODECS
    }
