"""What the communicator's own clock says: waiting, multiplying, packing, reducing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.interleaving import Figure, compare

WAITING = "seconds waiting and multiplying"
#: Tables and their columns, as the clock names them.
TABLES = {
    WAITING: ("exposed", "product"),
    "seconds packing": ("pack", "unpack"),
    "seconds reducing": ("reduce",),
}
NAMES = tuple(name for names in TABLES.values() for name in names)

Seconds = dict[str, float]


def clocked(comm: Communicator, task: Callable[[], object], repeats: int = 1) -> Seconds:
    """Seconds of one call of ``task`` by name, mean over repeats and ranks; every rank calls it."""
    comm.barrier()
    before = comm.clock.read()
    with comm.clock.running():
        for _ in range(repeats):
            task()
    found = comm.clock.since(before)
    own = torch.tensor([found.get(name, 0.0) for name in NAMES], dtype=torch.float64)
    means = comm.sum(own) / (comm.world_size * repeats)
    return dict(zip(NAMES, means.tolist(), strict=True))


def clock_figures(found: Mapping[str, Seconds], baseline: str) -> tuple[Figure, ...]:
    """A column per name of the clock, by variant; names that no variant has are left out."""
    figures: tuple[Figure, ...] = ()
    for table, names in TABLES.items():
        for name in names:
            seconds = {variant: times[name] for variant, times in found.items()}
            if any(seconds.values()):
                figures += compare(seconds, name, baseline, table)
    return figures
