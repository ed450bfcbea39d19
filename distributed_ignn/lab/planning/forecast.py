"""Forecasts over numbers of ranks: memory, seconds of an epoch, efficiency.

Efficiency is T(1) / (P T(P)) with T(1) predicted for one device that holds the whole graph,
whether or not it fits there; that one does no exchange and is perfectly balanced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from distributed_ignn.comm.codecs import CODECS
from distributed_ignn.lab.planning.epoch import Cost, EpochModel
from distributed_ignn.lab.planning.equations import Machine
from distributed_ignn.lab.planning.footprint import MemoryItem, memory_items
from distributed_ignn.lab.planning.hardware import Profile
from distributed_ignn.lab.planning.host_work import Counted
from distributed_ignn.lab.planning.workload import Part, Workload

MORE_EVALUATIONS: Mapping[str, float] = {"int2": 1.45}
"""Evaluations with a codec over those with fp32: Anderson with 2 bits was measured to need 1.3 to
1.6 times as many on real graphs, with 3 bits and more as many."""

PartOf = Callable[[int], Part]
"""Sizes of the largest of P parts."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One number of ranks.

    Args:
        part: sizes of the largest part.
        codec: of the halo rows.
        cost: an epoch of the slowest rank.
        evaluation: launches and syncs of its evaluations; None where ranks have no device.
        memory: uses of memory of that rank.
        capacity: bytes that a rank has.
        efficiency: see above.
    """

    part: Part
    codec: str
    cost: Cost
    evaluation: Counted | None
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
        model = EpochModel(part, work, Machine(profile, count))
        cost = model.epoch()
        found.append(
            Forecast(
                part,
                work.codec,
                cost,
                None if profile.on_cpu else model.host().evaluation(),
                tuple(memory_items(part, work, profile.process_bytes, profile.on_cpu)),
                profile.memory_bytes,
                alone / (count * cost.seconds),
            )
        )
    return found


def by_codec(
    part_of: PartOf, ranks: Sequence[int], work: Workload, profile: Profile
) -> dict[str, list[Forecast]]:
    """The same for every codec, with the evaluations that it needs."""
    return {codec: forecast(part_of, ranks, with_codec(work, codec), profile) for codec in CODECS}


def with_codec(work: Workload, codec: str) -> Workload:
    """The settings with another codec; one that slows convergence adds evaluations."""
    more = MORE_EVALUATIONS.get(codec, 1.0)
    return replace(
        work,
        codec=codec,
        forward=math.ceil(work.forward * more),
        adjoint=math.ceil(work.adjoint * more),
        validation=math.ceil(work.validation * more),
    )
