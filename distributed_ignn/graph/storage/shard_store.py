"""Shards on disk: a folder with one safetensors file per part and a manifest.

A folder is written under a hidden name and renamed when complete, so a reader never sees half of
one. Shards are memory-mapped when read. Nothing here is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import JsonValue

from distributed_ignn.config import PartitionConfig
from distributed_ignn.errors import UserError
from distributed_ignn.files import (
    atomic_write_json,
    sha256_file,
    sync,
    temporary_sibling,
    write_tensors,
)
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.node_ids import NodeIds
from distributed_ignn.graph.partitioning.merging import merge_shards
from distributed_ignn.graph.partitioning.partition import Assignment, assign_clusters, assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shard, plan_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.storage.manifest import (
    COMMAND,
    FORMAT_VERSION,
    MANIFEST,
    NODE_IDS,
    DatasetSize,
    Manifest,
    PartSize,
    ShardFile,
    parse_manifest,
    part_name,
    version_of,
)
from distributed_ignn.graph.storage.request import (
    asked_for,
    check_same,
    check_settings,
    partition_request,
)
from distributed_ignn.graph.storage.shard_file import read_shard_file, write_shard_file
from distributed_ignn.long_steps import long_step
from distributed_ignn.reading.plain_files import in_one_line, open_plain, read_plain
from distributed_ignn.reading.strict_json import JSON_LIMIT
from distributed_ignn.reading.tensors import read_tensors

logger = logging.getLogger(__name__)

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "DatasetSize",
    "Manifest",
    "PartSize",
    "ShardFile",
    "find_shards",
    "prepare_shards",
    "read_manifest",
    "read_node_ids",
    "read_part",
    "read_shard",
    "whole_graph",
    "write_shards",
]


def prepare_shards(
    load: Callable[[], GraphData],
    cache: Path,
    parts: int,
    config: PartitionConfig,
    settings: Mapping[str, JsonValue],
) -> tuple[Path, Manifest]:
    """Find the shards of a run, or write them; to be called by one rank on each file system.

    With ``config.dir`` the shards there are used if they were made from ``settings`` for as many
    ranks; the dataset itself is not loaded. Otherwise it is, and shards of the same data and the
    same partitioning are looked for in ``cache`` and written there if absent.

    Args:
        load: reads the dataset.
        cache: folder of the folders of shards.
        parts: ranks of the run.
        settings: as ``data_settings`` gives them.

    Returns:
        The folder to call ``read_shard`` with, and its manifest.

    Raises:
        UserError: the shards in ``config.dir`` do not fit the run, the graph cannot be divided so,
            or ``cache`` cannot be written.
    """
    if config.dir is not None:
        manifest = read_manifest(config.dir, parts=parts)
        check_settings(config.dir, manifest.settings, settings, "data")
        wanted = manifest.request | asked_for(config)
        check_settings(config.dir, manifest.request, wanted, "partition")
        return config.dir, manifest
    data = load()
    with long_step(f"reading {data.name} once more for its fingerprint"):
        fingerprint = data.fingerprint()
    identity = [FORMAT_VERSION, fingerprint, parts, partition_request(config), dict(settings)]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "_", data.name)  # of the user's own file it may be a path
    folder = cache / f"{name}-{parts}-{key}"
    if folder.exists():
        return folder, read_manifest(folder, parts=parts, fingerprint=fingerprint)
    assignment = assign_parts(data.graphs, parts, config)
    written = write_shards(
        folder, data, assignment, config, settings=settings, fingerprint=fingerprint
    )
    return folder, written


def write_shards(
    folder: Path,
    data: GraphData,
    assignment: Assignment,
    config: PartitionConfig,
    *,
    settings: Mapping[str, JsonValue] | None = None,
    fingerprint: str | None = None,
) -> Manifest:
    """Cut ``data`` and write every shard and the manifest, in one step that happens or does not.

    Args:
        folder: must not exist, be empty, or hold the same shards already, as when another process
            was faster; those are kept.
        settings: what ``data`` was loaded with, see ``data_settings``.
        fingerprint: of ``data``, where it is known.

    Returns:
        The manifest now in ``folder``.

    Raises:
        UserError: ``folder`` holds something else, or cannot be written.
    """
    temporary = temporary_sibling(folder)
    try:
        temporary.mkdir(parents=True)
        if config.clusters > 0:
            with long_step(f"dividing {data.name} into {config.clusters} clusters"):
                data = replace(data, clusters=assign_clusters(data.graphs, config))
        written = []
        with long_step(f"writing shards of {data.name}", assignment.parts, "parts") as told:
            for part in range(assignment.parts):
                written.append(_write_shard(temporary, build_shard(data, assignment.plan, part)))
                told.advance(1)
        manifest = Manifest(
            version=version_of(written[0].whole),
            dataset=data.name,
            fingerprint=fingerprint or data.fingerprint(),
            settings=dict(settings or {}),
            parts=assignment.parts,
            request=partition_request(config),
            provider=assignment.provider,
            objective=assignment.objective,
            statistics=assignment.stats,
            whole=written[0].whole,
            part_sizes=tuple(part.size for part in written),
            files=tuple(part.file for part in written),
            node_ids=_write_node_ids(temporary, data),
        )
        atomic_write_json(temporary / MANIFEST, manifest.content())
        return _publish(temporary, folder, manifest)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write shards to {folder}: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_shards(
    folder: Path, parts: int, config: PartitionConfig, settings: Mapping[str, JsonValue]
) -> Manifest | None:
    """The manifest of shards that are already in ``folder``; None where it is absent or empty.

    Raises:
        UserError: ``folder`` holds anything else.
    """
    try:
        if not any(folder.iterdir()):
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot use {folder} for shards: {error.strerror}") from error
    manifest = read_manifest(folder)
    check_same(folder, manifest, parts, settings, partition_request(config))
    return manifest


def read_manifest(
    folder: Path, *, parts: int | None = None, fingerprint: str | None = None
) -> Manifest:
    """The checked manifest of a folder of shards.

    Args:
        parts: the number of ranks that are going to read them, if known.
        fingerprint: of the dataset that they have to hold, if known.

    Raises:
        UserError: there are no shards, they are of another format, or they do not match.
    """
    path = folder / MANIFEST
    try:
        manifest = parse_manifest(path, read_plain(path, JSON_LIMIT))
    except OSError as error:
        raise UserError(
            f"{folder} holds no shards ({MANIFEST}: {error.strerror}); write some with {COMMAND} "
            "--out to a new folder"
        ) from error
    if parts is not None and manifest.parts != parts:
        raise UserError(
            f"the shards in {folder} hold {manifest.parts} parts, the run has {parts} "
            f"rank{'' if parts == 1 else 's'}; write new ones with {COMMAND} --parts {parts}"
        )
    if fingerprint is not None and manifest.fingerprint != fingerprint:
        raise UserError(
            f"the shards in {folder} were cut from other data ({in_one_line(manifest.dataset)} "
            f"{in_one_line(manifest.fingerprint[:12])}, not {fingerprint[:12]}); write new ones "
            f"with {COMMAND}"
        )
    return manifest


def read_shard(folder: Path, part: int, *, verify: bool = True) -> GraphShard:
    """One shard, memory-mapped.

    Args:
        part: which, from 0.
        verify: compare the file's checksum first, which reads it once.

    Raises:
        UserError: the manifest is unusable, there is no such part, or its file is damaged.
    """
    manifest = read_manifest(folder)
    if not 0 <= part < manifest.parts:
        raise UserError(
            f"there is no part {part} in {folder}; it holds parts 0..{manifest.parts - 1}"
        )
    entry = manifest.files[part]
    path = folder / entry.name
    try:
        shard = read_shard_file(path) if _is_intact(path, entry, verify=verify) else None
    except OSError as error:
        raise UserError(
            f"part {part} of {manifest.parts} cannot be read: {path}: {error.strerror}; delete "
            f"{folder} and write it again with {COMMAND}"
        ) from error
    except ValueError as error:
        raise _damaged(path, in_one_line(error)) from error
    if shard is None:
        raise _damaged(path, f"it differs from its checksum in {MANIFEST}")
    if (shard.part, shard.parts) != (part, manifest.parts):
        raise _damaged(path, f"it is part {shard.part} of {shard.parts}")
    return shard


def _is_intact(path: Path, entry: ShardFile, *, verify: bool) -> bool:
    """Whether a file is as long as the manifest says and, if asked for, has its checksum."""
    with open_plain(path, follow_links=False) as stream:  # a link may lead out of the folder
        intact = os.fstat(stream.fileno()).st_size == entry.size
    return intact and (not verify or sha256_file(path) == entry.sha256)


def read_node_ids(folder: Path, manifest: Manifest) -> NodeIds | None:
    """What the nodes are called, memory-mapped; None where they have no ids but their numbers.

    Raises:
        UserError: the file is missing or damaged.
    """
    if manifest.node_ids is None:
        return None
    path = folder / manifest.node_ids.name
    try:
        if not _is_intact(path, manifest.node_ids, verify=True):
            raise ValueError(f"it differs from its checksum in {MANIFEST}")
        found = NodeIds(read_tensors(path, copy=False, follow_links=False)[0])
        if len(found) != manifest.whole.num_nodes:
            raise ValueError(f"{len(found)} ids for {manifest.whole.num_nodes} nodes")
    except (OSError, ValueError) as error:
        raise _damaged(path, in_one_line(error)) from error
    return found


def _write_node_ids(folder: Path, data: GraphData) -> ShardFile | None:
    if data.node_ids is None:
        return None
    path = folder / NODE_IDS
    write_tensors(path, data.node_ids.tensors, {})
    return ShardFile(name=path.name, size=path.stat().st_size, sha256=sha256_file(path))


def read_part(folder: Path, part: int, parts: int) -> GraphShard:
    """One of ``parts`` shards: read, or cut from all of them merged where ``folder`` holds others.

    Raises:
        UserError: see ``read_shard``.
    """
    manifest = read_manifest(folder)
    if manifest.parts == parts:
        return read_shard(folder, part)
    data = whole_graph(folder, manifest)
    owner = torch.arange(data.num_nodes) * parts // data.num_nodes
    return build_shard(data, plan_shards(data.graphs, owner, parts), part)


def whole_graph(folder: Path, manifest: Manifest) -> GraphData:
    """What the shards in a folder were cut from.

    Raises:
        UserError: one is damaged.
    """
    merged = merge_shards([read_shard(folder, part) for part in range(manifest.parts)])
    return replace(merged, node_ids=read_node_ids(folder, manifest))


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged: {reason}; delete {path.parent} and write it again with {COMMAND}"
    )


def _publish(temporary: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Rename ``temporary`` to ``folder``, unless the same shards are there already."""
    try:
        os.rename(temporary, folder)  # replaces an empty folder, but no other
    except OSError:
        if not folder.exists():
            raise
        found = read_manifest(folder, fingerprint=manifest.fingerprint)
        check_same(folder, found, manifest.parts, manifest.settings, manifest.request)
        return found
    sync(folder.parent)
    return manifest


@dataclass(frozen=True, slots=True)
class _Written:
    """What the manifest says of one part."""

    file: ShardFile
    size: PartSize
    whole: DatasetSize


def _write_shard(folder: Path, shard: GraphShard) -> _Written:
    path = folder / part_name(shard.part, shard.parts)
    write_shard_file(path, shard)
    logger.info("wrote part %d of %d", shard.part + 1, shard.parts)
    file = ShardFile(name=path.name, size=path.stat().st_size, sha256=sha256_file(path))
    return _Written(file, PartSize.of(shard), DatasetSize.of(shard))
