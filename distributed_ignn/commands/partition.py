"""Divide the graph of a dataset once, into shards that training reads with --partition.dir."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from distributed_ignn.cli import run_main
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import (
    PartitionConfig,
    RunConfig,
    absolute_paths,
    choices,
    parse_options_and_settings,
    resolve_run,
)
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.dotted import dotted
from distributed_ignn.config.idle import refuse_unread
from distributed_ignn.config.options import Options, OutputFolderOrUrl, check_outputs
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.partition import PartitionStats, assign_parts
from distributed_ignn.graph.storage.request import data_settings
from distributed_ignn.graph.storage.shard_store import (
    Manifest,
    find_shards,
    read_manifest,
    write_shards,
)
from distributed_ignn.resident import Peak, read_peak, reset_peak
from distributed_ignn.runs.shards import fetch_known, send_shards
from distributed_ignn.runs.spool.attempt import fetched
from distributed_ignn.runs.spool.places import Places, expect, opened

_MOST_PARTS = 2**16  # each is a file, and a rank of the training
_READ = (
    *("dataset", "data_root", "data"),
    *(f"partition.{key}" for key in PartitionConfig.model_fields if key != "dir"),
)
"""Settings that shards depend on; whose seed is ``partition.seed``."""

_EXAMPLES = """\
examples:
  ignn partition --dataset acm --parts 4 --out shards/acm-4
  torchrun --nproc-per-node 4 -m distributed_ignn train --dataset acm --partition.dir shards/acm-4
  ignn partition --dataset acm --parts 4 --out s3://BUCKET/shards/acm-4
  ignn partition --dataset synthetic-products --data.synthetic.scale 1.0 --parts 2 \\
    --out shards/products-2

In a checkout, launch/partition.py is the same command.
"""


def _check_parts(value: int) -> int:
    if value < 1:
        raise ValueError("must be at least 1, the number of ranks")
    if value > _MOST_PARTS:
        raise ValueError(f"must be at most {_MOST_PARTS}, the number of ranks")
    return value


class _Options(Options):
    parts: Annotated[int, AfterValidator(_check_parts)] = Field(
        description="number of ranks of the training"
    )
    out: OutputFolderOrUrl = Field(description="new folder for the shards, or its URL")
    method: Annotated[str, Choice(choices.PARTITIONERS)] | None = Field(
        None, description="short for --partition.method, and stronger"
    )


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options, run = _parse(argv)
    steps: dict[str, _Cost] = {}
    with opened(Communicator(), expect(options.out, run.data.path, run.data.nodes)) as places:
        out = places.local(options.out)
        places.wait(lambda: fetch_known(out, places))
        manifest = _partition(run, options.parts, out, steps, places)
        places.wait(lambda: send_shards(out, places))
    state = "already in" if "compare" in steps else "written to"
    print(f"{manifest.dataset}: {manifest.parts} shards {state} {options.out}")
    Console().print(_table(manifest, steps))


def _parse(argv: Sequence[str]) -> tuple[_Options, RunConfig]:
    options, flags, path = parse_options_and_settings(
        _Options, argv, name="ignn partition", about=__doc__, more=_EXAMPLES
    )
    check_outputs(options)
    if options.method is not None:  # before the rules are asked: others depend on it
        flags["partition"] = {**flags.get("partition", {}), "method": options.method}
    run = resolve_run(flags, path)
    read = _READ if run.device == "cuda" else (*_READ, "device")  # it is done on the CPU anyway
    refuse_unread(run, dict(dotted(flags)), read, "how a graph is divided")
    return options, absolute_paths(run)


def _partition(
    run: RunConfig, parts: int, out: Path, steps: dict[str, _Cost], places: Places
) -> Manifest:
    """Write the shards, or recognise those in ``out``; ``steps`` receives the cost of each step.

    Reading the dataset is not avoided for existing shards: its files may have changed since.
    """
    settings = data_settings(run.dataset, run.data)
    found = find_shards(out, parts, run.partition, settings)
    with _step("load", steps):
        data = load_dataset(run.dataset, run.data_root, fetched(run.data, places))
    if found is not None:
        with _step("compare", steps):
            return read_manifest(out, fingerprint=data.fingerprint())
    with _step("partition", steps):
        assignment = assign_parts(data.graphs, parts, run.partition)
    with _step("write", steps):
        return write_shards(out, data, assignment, run.partition, settings=settings)


@dataclass(frozen=True, slots=True)
class _Cost:
    seconds: float
    peak: Peak


@contextmanager
def _step(name: str, steps: dict[str, _Cost]) -> Iterator[None]:
    children = reset_peak()
    started = time.perf_counter()
    with Console(stderr=True).status(f"{name} ..."):
        yield
    steps[name] = _Cost(time.perf_counter() - started, read_peak(children))


def _table(manifest: Manifest, steps: dict[str, _Cost]) -> Table:
    stats = manifest.statistics
    table = Table()
    table.add_column("quantity")
    table.add_column("value", justify="right")
    cut = stats.cut_entries / max(stats.entries, 1)
    rows = {
        "method": str(manifest.request["method"]),
        "provider": manifest.provider,
        "objective": manifest.objective,
        "parts": f"{manifest.parts} ({stats.empty_parts} empty)",
        "nodes": f"{stats.nodes:,}",
        "entries": f"{stats.entries:,}",
        "cut entries": f"{stats.cut_entries:,} ({cut:.1%})",
        **_weights(stats),
        "halo rows, total": f"{stats.halo_rows:,}",
        "halo rows, largest part": f"{stats.halo_rows_largest:,}",
        "balance of nodes": f"{stats.node_balance:.3f}",
        "balance of entries": f"{stats.entry_balance:.3f}",
        "interior nodes": f"{stats.interior_fraction:.1%}",
        "clusters of the coarse level": str(manifest.request.get("clusters", 0)),
        "size on disk": decimal(manifest.num_bytes),
        **{f"seconds, {name}": f"{cost.seconds:.2f}" for name, cost in steps.items()},
        **{f"peak memory, {name}": _memory(cost.peak) for name, cost in steps.items()},
    }
    for row in rows.items():
        table.add_row(*row)
    return table


def _weights(stats: PartitionStats) -> dict[str, str]:
    """What the cut weighs, where edges have weights."""
    if stats.weight is None or stats.cut_weight is None:
        return {}
    return {"cut weight": f"{stats.cut_weight:.6g} ({stats.cut_weight / stats.weight:.1%})"}


def _memory(peak: Peak) -> str:
    """Of this process and, where METIS ran, of its own process beside it."""
    own = decimal(peak.process)
    return f"{own} and METIS {decimal(peak.child)}" if peak.child else own
