"""Where the shards of a run lie: found or written when it starts, named in its folder for later.

shards.json of the run folder says which shards the run reads. A run that goes on, and the
predictions of a finished one, read those, without the dataset and wherever the run now lies.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from distributed_ignn.comm.apart import apart
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.dataset import FILE_SUFFIXES
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets.ogb_folder import ogb_tables
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.storage.manifest import NODE_IDS
from distributed_ignn.graph.storage.request import data_settings, partition_request
from distributed_ignn.graph.storage.shard_store import (
    MANIFEST,
    Manifest,
    prepare_shards,
    read_manifest,
    read_shard,
    whole_graph,
)
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.runs.layout import RECORD, SHARDS
from distributed_ignn.runs.shard_record import ShardRecord, open_shards, read_record, write_record
from distributed_ignn.runs.spool.places import Places
from distributed_ignn.urls.url import Url

logger = logging.getLogger(__name__)


_OF_SHARDS = re.compile(rf"part-\d+-of-\d+\.safetensors|{re.escape(NODE_IDS)}")


def find_shards(
    config: RunConfig,
    comm: Communicator,
    load: Callable[[], GraphData],
    places: Places | None = None,
) -> ShardRecord:
    """The shards on this rank's machine, whose first rank finds or writes them.

    Where the output is a URL, rank 0 does, for all machines.

    Args:
        config: the run; ``output`` may hold an earlier attempt of it.
        comm: this rank's communicator.
        load: reads the dataset; called where no shards are there yet.
        places: of the attempt, where the settings name URLs.

    Raises:
        UserError: see ``prepare_shards``, or the machines hold different data or have divided it
            differently (on every rank).
    """
    places = places or Places(comm)
    sends = config.partition.dir is None and places.of(config.output) is not None
    works = comm.is_main if sends else comm.local_rank == 0

    def find() -> ShardRecord:
        record = _find(config, comm.world_size, load, places)
        if sends:
            send_shards(record.path(config.output), places)
        return record

    own = places.wait(find, works=works) if places.any else apart(comm, find, works=works)
    gathered = comm.gather_json(own.model_dump() if own else None)
    records = [ShardRecord(**found) if found else None for found in gathered]
    prints = sorted({record.fingerprint[:12] for record in records if record})
    if len(prints) > 1:
        raise UserError(
            f"the machines of this run hold different data ({', '.join(prints)}); copy the same "
            "dataset to all of them, or use --partition.dir on a shared file system"
        )
    if sum(record is not None for record in records) > 1:
        _check_division(own, config.output, comm, places)
    # ranks of one machine are consecutive, and its first rank named the folder
    return next(record for record in reversed(records[: comm.rank + 1]) if record)


def fetch_known(folder: Path, places: Places) -> None:
    """Let the manifest of shards be there, if the place has any; where no URL is meant, nothing.

    Raises:
        UserError: the place holds something else. Parts without a manifest are those of a writer
            that was cut off, and will be written anew.
    """
    mirror = places.of(folder)
    if mirror is None:
        return
    listed = mirror.store.listing()
    others = sorted(name for name in listed if not _OF_SHARDS.fullmatch(name))
    if others and MANIFEST not in listed:
        raise UserError(
            f"{mirror.url} holds no shards but other things ({in_one_line(others[0])}); choose "
            "another place"
        )
    mirror.fetch(folder / MANIFEST)


def send_shards(folder: Path, places: Places) -> None:
    """Send shards to the URL that they are for, if they are not there; else nothing is done.

    Raises:
        UserError: they cannot be sent.
    """
    mirror = places.of(folder)
    if mirror is not None and not mirror.store.exists(mirror.name(folder / MANIFEST)):
        mirror.push_folder(folder, MANIFEST)


def read_own_shard(
    record: ShardRecord, run: Path, comm: Communicator, places: Places
) -> GraphShard:
    """This rank's shard of those that a run reads; every rank calls it.

    Args:
        record: of the shards.
        run: output folder.
        comm: this rank's communicator.
        places: of the attempt.

    Raises:
        UserError: it is missing or damaged (on every rank).
    """

    def read() -> GraphShard:
        folder = record.path(run, places)
        fetch_part(folder, comm.rank, places)
        return read_shard(folder, comm.rank)

    return cast(GraphShard, places.wait(read))


def fetch_part(folder: Path, part: int, places: Places) -> None:
    """Let the file of a part be there, if it is of a URL."""
    if places.of(folder) is not None:
        places.fetch(folder / read_manifest(folder).files[part].name)


def fetch_node_ids(folder: Path, manifest: Manifest, places: Places) -> None:
    """Let the file of the nodes' own ids be there, if they have any and it is of a URL."""
    if manifest.node_ids is not None:
        places.fetch(folder / manifest.node_ids.name)


def _check_division(own: ShardRecord | None, run: Path, comm: Communicator, places: Places) -> None:
    """Refuse machines that have divided the same graph differently, as two METIS libraries do."""

    def division() -> list[JsonValue] | None:
        if own is None:
            return None
        manifest = read_manifest(own.path(run, places))
        sizes = [size.model_dump(mode="json") for size in manifest.part_sizes]
        return [manifest.provider, manifest.statistics.model_dump(mode="json"), *sizes]

    found = [told for told in comm.gather_json(comm.together(division)) if told is not None]
    if any(told != found[0] for told in found):
        providers = ", ".join(sorted({str(told[0]) for told in found}))
        raise UserError(
            f"the machines of this run have divided the graph differently (with {providers}); "
            "install the same METIS library on all of them, name it with --partition.provider, or "
            "use --partition.dir on a shared file system"
        )


def _find(
    config: RunConfig, parts: int, load: Callable[[], GraphData], places: Places
) -> ShardRecord:
    settings = data_settings(config.dataset, config.data)
    if config.partition.dir is None:
        known = _own_shards(config, parts, settings, places)
        if known is not None:
            return known
    else:
        places.fetch(config.partition.dir / MANIFEST)
    cache = config.output / SHARDS
    folder, manifest = prepare_shards(load, cache, parts, config.partition, settings)
    if config.data.edge_weights == "use" and not any(manifest.whole.weighted):
        raise UserError(
            f"data.edge_weights = use and the shards in {folder} have no weights (or all are 1); "
            "write new ones, or drop the setting"
        )
    difference = _difference(config, manifest.fingerprint, settings)
    if difference is not None:
        logger.warning(
            "%s; it goes on, and may have trained on what are test nodes now", difference
        )
    return ShardRecord.of(folder, manifest, config.output, places, source_of(config))


def source_of(config: RunConfig) -> str:
    """Sizes and times of change of the user's own files; empty where there are none (any more).

    Of a folder of OGB's form they are those of its tables.

    Of a URL's nothing is known: what was fetched is new every time.
    """
    own = Path(config.dataset) if config.dataset.endswith(FILE_SUFFIXES) else config.data.path
    paths = [path for path in (own, config.data.nodes) if path is not None]
    here = [path for path in paths if not isinstance(path, Url)]
    found = [file.stat() for path in here for file in (path, *ogb_tables(path)) if file.is_file()]
    return " ".join(f"{file.st_size}:{file.st_mtime_ns}" for file in found)


def store_graph(config: RunConfig, parts: int, load: Callable[[], GraphData]) -> None:
    """Divide a graph that is in memory, so that the run's folder holds it for whoever goes on.

    To be called by one rank on each machine, or before ranks are started there.

    Args:
        config: the run, whose output folder exists.
        parts: its ranks.
        load: makes the graph.

    Raises:
        UserError: the folder holds a run on another graph, or cannot be written.
    """
    if config.partition.dir is not None:
        raise UserError(
            f"partition.dir = {config.partition.dir} holds shards of a dataset, and this graph is "
            "in memory; drop the setting"
        )
    graph = load()
    settings = data_settings(config.dataset, config.data)
    difference = _difference(config, graph.fingerprint(), settings)
    if difference is not None:
        raise UserError(f"{difference}; give the same graph and data settings, or another output")
    cache = config.output / SHARDS
    folder, manifest = prepare_shards(lambda: graph, cache, parts, config.partition, settings)
    try:
        write_record(config.output, ShardRecord.of(folder, manifest, config.output))
    except OSError as error:
        raise UserError(f"cannot write to output = {config.output}: {error.strerror}") from error


def _difference(config: RunConfig, found: str, settings: Mapping[str, JsonValue]) -> str | None:
    """In words, that a run which is to go on had another graph or another split; None if not.

    Args:
        config: the run; ``output`` may hold an earlier attempt.
        found: fingerprint of the graph at hand.
        settings: what it was made with, as ``data_settings`` gives them.
    """
    if not (config.output / RECORD).is_file() or config.resume is None:
        return None
    try:
        known = read_record(config.output)
    except UserError:  # damaged: it is written again
        return None
    if found == known.fingerprint:
        return None
    return (
        f"output = {config.output} holds a run on another graph ({known.fingerprint[:12]}, this "
        f"one is {found[:12]}{_changed(config.output, known, settings)})"
    )


def _changed(run: Path, known: ShardRecord, settings: Mapping[str, JsonValue]) -> str:
    """The first setting of data that is another than it was, if that can still be said."""
    try:
        before = read_manifest(known.path(run)).settings
    except UserError:
        return ""
    for key in sorted({*before, *settings}):
        was, now = before.get(key), settings.get(key)
        if was != now:
            return in_one_line(f"; {key} was {was} and is {now}")
    return ""


def stored_graph(config: RunConfig) -> GraphData:
    """The graph of a run whose data were in memory, from the shards that it has left.

    Raises:
        UserError: there are none, or the settings ask for other data.
    """
    if not (config.output / RECORD).is_file():
        raise UserError(
            f"dataset = {config.dataset} is a graph that a Python program had in memory, and "
            f"output = {config.output} holds no run on it; name a dataset, or the output of one"
        )
    folder, manifest = open_shards(config.output)
    if manifest.settings != data_settings(config.dataset, config.data):
        raise UserError(
            f"the graph of {config.output} was prepared with other settings of data, and it is in "
            "memory no more; leave them as they were, or start again from Python"
        )
    return whole_graph(folder, manifest)


def _own_shards(
    config: RunConfig, parts: int, settings: dict[str, JsonValue], places: Places
) -> ShardRecord | None:
    """The shards of an earlier attempt, if they are still there and what this one asks for."""
    try:
        record = read_record(config.output)
        folder = record.path(config.output, places)
        manifest = read_manifest(folder, parts=parts, fingerprint=record.fingerprint)
    except UserError:  # looked for in the usual way, which reports what is wrong with them
        return None
    source = source_of(config)
    if record.source and source and record.source != source:
        return None  # read again: the fingerprint tells whether the graph is another
    same = manifest.request == partition_request(config.partition)
    return record if same and manifest.settings == settings else None
