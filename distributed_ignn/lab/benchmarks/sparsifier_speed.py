"""How the time of choosing edges grows with the graph.

Heavy-tailed synthetic graphs of growing size, one process; the exponent is the slope of
log(seconds) over log(entries), least squares. 1 is linear time. Seconds are CPU time of this
process: choosing runs on the CPU, and what else the machine does must not bend the slope.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import DataConfig, PartitionConfig, SyntheticConfig
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shard
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.propagation.sparsify import SPARSIFIERS, WHOLE, sparsify

_METHODS = (*SPARSIFIERS, WHOLE)
_KEEP = 0.3


@dataclass(frozen=True, slots=True)
class Speed:
    """CPU seconds of one method.

    Args:
        method: of choosing edges.
        entries: of each graph, growing.
        seconds: of CPU time for each graph.
    """

    method: str
    entries: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """Slope of log(seconds) over log(entries)."""
        x, y = ([math.log(v) for v in values] for values in (self.entries, self.seconds))
        return statistics.linear_regression(x, y).slope

    def sentence(self) -> str:
        return f"{self.method}: CPU seconds grow as entries to the power {self.exponent:.2f}"


def measure_speed(scales: Sequence[float], rounds: int, comm: Communicator) -> list[Speed]:
    """Median CPU seconds per method and graph, on this rank alone; every rank calls it.

    Args:
        scales: sizes of synthetic-products over ogbn-products, at least two, growing.
        rounds: interleaved rounds.
        comm: this rank's communicator; the main rank measures and tells the others.
    """
    counts, seconds = [], []
    for scale in scales:
        found = _measure(scale, rounds, comm) if comm.is_main else [0.0] * (1 + len(_METHODS))
        entries, *times = comm.sum(torch.tensor(found, dtype=torch.float64)).tolist()
        counts.append(int(entries))
        seconds.append(times)
    columns = zip(*seconds, strict=True)
    return [
        Speed(method, tuple(counts), column)
        for method, column in zip(_METHODS, columns, strict=True)
    ]


def _measure(scale: float, rounds: int, comm: Communicator) -> list[float]:
    """Entries of the graph, then the seconds of each method."""
    alone = Communicator(device=comm.device)
    shard = _shard(scale)

    def choose(method: str) -> None:
        sparsify(shard, alone, method, _KEEP, torch.float32)

    times: list[list[float]] = [[] for _ in _METHODS]
    for round_number in range(rounds + 1):
        for method, seconds in zip(_METHODS, times, strict=True):
            started = time.process_time()
            choose(method)
            if round_number:  # the first one warms caches up
                seconds.append(time.process_time() - started)
    entries = shard.channels[0].owned.num_entries - shard.num_owned
    return [float(entries), *map(statistics.median, times)]


def _shard(scale: float) -> GraphShard:
    settings = DataConfig(synthetic=SyntheticConfig(scale=scale))
    data = load_dataset("synthetic-products", Path(), settings)  # generated, nothing is read
    return build_shard(data, assign_parts(data.graphs, 1, PartitionConfig()).plan, 0)
