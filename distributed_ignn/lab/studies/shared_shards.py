"""Shards that the runs of a study share: a graph is read and divided once, not for every run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distributed_ignn.comm.apart import apart
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, absolute_paths
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.storage.request import data_settings, partition_request
from distributed_ignn.graph.storage.shard_store import MANIFEST, prepare_shards, read_manifest
from distributed_ignn.runs.layout import SHARDS
from distributed_ignn.runs.shards import source_of
from distributed_ignn.urls.url import Url

_SOURCE = "source.txt"


def shard_folder(config: RunConfig, parts: int, cache: Path) -> Path:
    """The shards of a run's data, which all runs with these data share.

    To be called by one process on each file system.

    Args:
        config: the run, with absolute paths.
        parts: its ranks.
        cache: folder of the study for shards.

    Raises:
        UserError: the data cannot be read or prepared so, or the folder cannot be written.
    """
    if isinstance(config.partition.dir, Url):
        raise UserError(
            f"partition.dir = {config.partition.dir} is a URL, and many runs read their shards "
            "from one folder; copy them to one and name that"
        )
    if config.partition.dir is not None:
        return config.partition.dir
    settings = data_settings(config.dataset, config.data)
    wanted, source = (parts, settings, partition_request(config.partition)), source_of(config)
    for path in sorted(cache.glob(f"*/{MANIFEST}")):
        try:
            found = read_manifest(path.parent)
        except UserError:  # of another version, or damaged: left alone
            continue
        alike = (found.parts, found.settings, found.request) == wanted
        if alike and (not source or _source_of_shards(path.parent) == source):
            return path.parent
    load = partial(load_dataset, config.dataset, config.data_root, config.data)
    folder = prepare_shards(load, cache, parts, config.partition, settings)[0]
    if source:
        atomic_write_text(folder / _SOURCE, source)
    return folder


def _source_of_shards(folder: Path) -> str:
    """What ``source_of`` said when the shards were written or last found to be of that graph."""
    path = folder / _SOURCE
    return path.read_text() if path.is_file() else ""


def shards_for_all(config: RunConfig, out: Path, comm: Communicator) -> Path:
    """The shards of a run, written where they are not there yet by a rank on each machine.

    Args:
        config: the run.
        out: folder of the study.
        comm: this rank's communicator; every rank calls it.

    Raises:
        UserError: see ``shard_folder`` (on every rank).
    """
    first, config = comm.local_rank == 0, absolute_paths(config)
    with comm.activity.phase("preparing shards"):
        folder = apart(
            comm,
            lambda: shard_folder(config, comm.world_size, out / SHARDS),
            works=first,
            doing=f"write to --out {out}",
            way_out="choose another --out",
        )
    return Path(comm.gather_json(str(folder))[0])
