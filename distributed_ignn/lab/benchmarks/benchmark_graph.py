"""The graph of a benchmark, cut into shards once, by one process, and read by every rank.

A folder of shards holds one folder per number of parts (``DIR/1``, ``DIR/2``, ...), each as
``ignn partition --parts N --out DIR/N`` writes it. What is missing is written there, by a
process of its own: a rank that generated the graph would carry that memory in its peak. The one
part is for the baseline of a single process.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distributed_ignn.comm.apart import apart
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, absolute_paths
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.partition import PartitionStats, assign_parts
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.storage.request import data_settings
from distributed_ignn.graph.storage.shard_store import (
    MANIFEST,
    find_shards,
    read_manifest,
    read_shard,
    write_shards,
)
from distributed_ignn.lab.benchmarks.study import Tell, tell_nobody
from distributed_ignn.runs.memory.machine import resident


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """One graph on all ranks of a job.

    Args:
        config: whose ``model.hidden`` is D, and whose other sections a benchmark may read.
        comm: this rank's communicator.
        root: folder of the shards, one folder per number of parts.
        shard: this rank's part.
        stats: of the partition.
        rounds: interleaved rounds of a measurement; medians count.
        single: whether a single process is measured too.
        process_bytes: what this process held before it read its shard.
        methods: names of those to compare, where there is a choice; all by default.
        tell: told what has been finished.
    """

    config: RunConfig
    comm: Communicator
    root: Path
    shard: GraphShard
    stats: PartitionStats
    rounds: int
    single: bool
    process_bytes: int
    methods: tuple[str, ...] = ()
    tell: Tell = tell_nobody

    @property
    def width(self) -> int:
        """D."""
        return self.config.model.hidden

    def whole(self) -> GraphShard:
        """The graph as one part, for a single process; to be called by one rank."""
        return read_shard(self.root / "1", 0, verify=False)

    def settings(self) -> dict[str, Any]:
        """What was measured on, for the report."""
        return {
            "dataset": self.config.dataset,
            "nodes": self.stats.nodes,
            "entries": self.stats.entries,
            "width": self.width,
            "ranks": self.comm.world_size,
            "threads": torch.get_num_threads(),
            "device": self.comm.device.type,
            "partition": self.config.partition.method,
            "cut_entries": self.stats.cut_entries,
            "halo_rows": self.stats.halo_rows,
            "rounds": self.rounds,
        }


@contextmanager
def open_workload(
    config: RunConfig,
    comm: Communicator,
    *,
    rounds: int,
    shards: Path | None = None,
    single: bool = True,
    methods: Sequence[str] = (),
    tell: Tell = tell_nobody,
) -> Iterator[Workload]:
    """Find or write the shards, read this rank's; every rank calls it.

    Args:
        shards: folder of shards on a file system that all ranks see; a temporary one by default.
        single: whether the whole graph is needed as well.
        rounds, methods, tell: see ``Workload``.

    Raises:
        UserError: the shards in the folder are others, or it cannot be written.
    """
    config = absolute_paths(config)
    parts = (comm.world_size, 1) if single else (comm.world_size,)
    with tempfile.TemporaryDirectory(prefix="shards-") as own:
        (root, *_) = comm.gather_json(str((shards or Path(own)).absolute()))
        folder = Path(root)
        apart(comm, lambda: prepare(config, folder, parts, tell), works=comm.is_main)
        before = resident(comm.device)
        shard = comm.together(
            lambda: read_shard(folder / str(comm.world_size), comm.rank, verify=False)
        )
        stats = read_manifest(folder / str(comm.world_size)).statistics
        yield Workload(
            config, comm, folder, shard, stats, rounds, single, before, tuple(methods), tell
        )
        comm.barrier()  # the first rank removes the folder


def prepare(config: RunConfig, root: Path, parts: Sequence[int], tell: Tell = tell_nobody) -> None:
    """Write the shards that are missing in ``root``, in another process.

    Args:
        config: names the dataset and how it is divided.
        parts: numbers of parts that are needed.

    Raises:
        UserError: as ``open_workload``.
    """
    if config.partition.dir is not None:
        raise UserError("partition.dir is for training; a benchmark takes --shards DIR")
    if (root / MANIFEST).exists():
        raise UserError(
            f"{root} holds shards itself; a benchmark wants the folder above, with the shards of N "
            "parts in its folder N"
        )
    missing = _missing(config, root, parts)
    if not missing:
        return
    tell(f"{config.dataset}: dividing the graph into {' and '.join(map(str, missing))} parts")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(_write, config, root, missing).result()


def _missing(config: RunConfig, root: Path, parts: Sequence[int]) -> list[int]:
    settings = data_settings(config.dataset, config.data)
    return [
        number
        for number in dict.fromkeys(parts)
        if find_shards(root / str(number), number, config.partition, settings) is None
    ]


def _write(config: RunConfig, root: Path, parts: Sequence[int]) -> None:
    """Load the dataset once and cut it for every number of parts."""
    settings = data_settings(config.dataset, config.data)
    data = load_dataset(config.dataset, config.data_root, config.data)
    for number in parts:
        assignment = assign_parts(data.graphs, number, config.partition)
        write_shards(root / str(number), data, assignment, config.partition, settings=settings)
