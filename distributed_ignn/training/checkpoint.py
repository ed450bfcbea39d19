"""Checkpoints: everything a run needs to go on, as safetensors and JSON.

    checkpoints/epoch-000010/
        state.json                      epoch, schedule position, best so far, checksums
        common.safetensors              replicated parameters, optimisers, best weights, RNG
        rank-00000-of-00002.safetensors rows of this rank's nodes: warm starts, embeddings

A folder is written under a hidden name and renamed by rank 0 when every rank has finished, so a
reader never sees half of one. Every file's sha256 stands in state.json and is compared on loading.
Rows carry global node ids, so another number of ranks can read them.

torch.distributed.checkpoint is not used: it keeps its index as a pickle, which can run code when it
is read, and its ranks agree through pickled objects; and rows of a METIS part are no rectangle of a
whole tensor, which is what it can cut anew for another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json, sha256_file, sync, write_tensors

FORMAT_VERSION = 2
NODES = "nodes"
_STATE = "state.json"
_OWN_SUM = "state_sha256"
_COMMON = "common.safetensors"
_NAME = re.compile(r"epoch-(\d{6,})")
_REMAINS = re.compile(r"\.epoch-\d{6,}.*\.tmp")

logger = logging.getLogger(__name__)

TensorDict = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What is saved.

    Args:
        state: JSON values.
        common: tensors that are the same on every rank.
        rows: tensors [O, ...] whose rows belong to this rank's nodes.
    """

    state: dict[str, Any]
    common: TensorDict
    rows: TensorDict


class CheckpointStore:
    """Writes the checkpoints of one run; every rank calls it together.

    Args:
        folder: ``checkpoints`` of the run.
        comm: this rank's communicator.
        keep: how many of the newest to keep, besides the one with the best validation metric.
    """

    def __init__(self, folder: Path, comm: Communicator, keep: int) -> None:
        self._folder = folder
        self._comm = comm
        self._keep = keep

    def save(self, epoch: int, snapshot: Snapshot, nodes: Tensor) -> Path:
        """Write the checkpoint of ``epoch`` epochs done; ``nodes`` are the owned global ids.

        Raises:
            UserError: the folder cannot be written (on every rank).
        """
        comm = self._comm
        final = self._folder / f"epoch-{epoch:06d}"
        # its own name, so that a rank of an earlier attempt that wakes up late writes elsewhere
        token = comm.gather_json(uuid.uuid4().hex[:8] if comm.is_main else None)[0]
        temporary = self._folder / f".{final.name}.{token}.tmp"
        doing = f"write the checkpoint in {self._folder}"
        try:
            comm.together(lambda: self._begin(temporary) if comm.is_main else None, doing=doing)
            written = comm.together(
                lambda: _write_rank(temporary, comm, snapshot, nodes), doing=doing
            )
            digests = {n: d for part in comm.gather_json(written) for n, d in part.items()}
            comm.together(
                lambda: self._finish(temporary, final, snapshot, digests) if comm.is_main else None,
                doing=doing,
            )
        except UserError:
            if comm.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return final

    def _begin(self, temporary: Path) -> None:
        """An empty folder, beside no remains of a killed run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if _REMAINS.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir()

    def _finish(
        self, temporary: Path, final: Path, snapshot: Snapshot, digests: Mapping[str, str]
    ) -> None:
        state = {
            "version": FORMAT_VERSION,
            "world_size": self._comm.world_size,
            "sha256": dict(digests),
            **snapshot.state,
        }
        atomic_write_json(temporary / _STATE, state | {_OWN_SUM: _sum_of(state)})
        _remove(final)
        temporary.rename(final)
        sync(self._folder)
        self._retain(final)

    def _retain(self, newest: Path) -> None:
        """Remove all but the newest few and the best, and what was written before a run went back.

        Later epochs are of a run that was resumed from before them and now takes another course.
        """
        found = list_checkpoints(self._folder)
        place = found.index(newest) + 1
        course = found[:place]
        validated = [path for path in course if _val_metric(path) is not None]
        best = max(validated, key=lambda path: _val_metric(path) or 0.0, default=newest)
        kept = {*course[-self._keep :], best}
        for path in found:
            if path not in kept:
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that no part of one is ever seen under its name."""
    if path.exists():
        hidden = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        path.rename(hidden)
        shutil.rmtree(hidden)


def _val_metric(path: Path) -> float | None:
    """Of the model in a checkpoint; None where it cannot be told."""
    try:
        value = _read_state(path).get("val_metric")
    except UserError:
        return None
    return float(value) if isinstance(value, int | float) else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def load_newest(folder: Path, comm: Communicator, nodes: Tensor) -> Snapshot | None:
    """The newest checkpoint that is sound on every rank; None where there is none at all.

    One that is damaged is passed over with a warning. Every rank calls it.

    Args:
        folder: ``checkpoints`` of a run.
        comm: this rank's communicator.
        nodes: owned global ids [O].

    Raises:
        UserError: the folder cannot be read, or all of its checkpoints are damaged (on every rank).
    """
    listed = comm.together(
        lambda: [p.name for p in list_checkpoints(folder)] if comm.is_main else [],
        doing=f"read {folder}",
    )
    names = comm.gather_json(listed)[0]
    for name in reversed(names):
        try:
            snapshot = comm.together(
                lambda path=folder / name: load_checkpoint(path, comm, nodes),  # type: ignore[misc]
                doing=f"read {folder / name}",
            )
        except UserError as error:
            if name == names[0]:
                raise
            logger.warning("%s; going back to the one before", error)
            continue
        return snapshot
    return None


def load_checkpoint(path: Path, comm: Communicator, nodes: Tensor) -> Snapshot:
    """Read a checkpoint for the nodes of this rank, whatever number of ranks wrote it.

    Args:
        path: one folder of ``list_checkpoints``.
        comm: this rank's communicator.
        nodes: owned global ids [O].

    Raises:
        UserError: a file is missing, damaged, or of another format.
    """
    state = _read_state(path)
    common = _read_tensors(path / _COMMON, state)
    writers = int(state["world_size"])
    if writers == comm.world_size:
        own = _read_tensors(path / _rank_name(comm.rank, writers), state)
        if torch.equal(own[NODES], nodes.cpu()):
            rows = {k[4:]: v for k, v in own.items() if k.startswith("row/")}
            return Snapshot(state, common, rows)
    return Snapshot(state, common, _gather_rows(path, state, writers, nodes.cpu()))


def _gather_rows(path: Path, state: Mapping[str, Any], writers: int, nodes: Tensor) -> TensorDict:
    """Rows of ``nodes`` from all writers' files."""
    result: TensorDict = {}
    found = torch.zeros(nodes.numel(), dtype=torch.bool)
    order = torch.argsort(nodes)
    ordered = nodes[order]
    for writer in range(writers):
        tensors = _read_tensors(path / _rank_name(writer, writers), state)
        theirs = tensors[NODES]
        place = torch.searchsorted(ordered, theirs).clamp_max(max(nodes.numel() - 1, 0))
        mine = torch.zeros_like(theirs, dtype=torch.bool)
        if nodes.numel():
            mine = ordered[place] == theirs
        found[order[place[mine]]] = True
        for key, value in tensors.items():
            if not key.startswith("row/"):
                continue
            target = result.setdefault(key[4:], value.new_zeros((nodes.numel(), *value.shape[1:])))
            target[order[place[mine]]] = value[mine]
    if not found.all():
        raise UserError(
            f"{path} belongs to another graph, it lacks node {int(nodes[~found][0])}; choose "
            "another checkpoint"
        )
    return result


def _rank_name(rank: int, world_size: int) -> str:
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def _write_rank(
    folder: Path, comm: Communicator, snapshot: Snapshot, nodes: Tensor
) -> dict[str, str]:
    """Write this rank's files; their sha256 by name."""
    rows = {f"row/{key}": value for key, value in snapshot.rows.items()}
    files = {_rank_name(comm.rank, comm.world_size): {NODES: nodes, **rows}}
    if comm.is_main:
        files[_COMMON] = snapshot.common
    for name, tensors in files.items():
        write_tensors(folder / name, tensors)
    return {name: sha256_file(folder / name) for name in files}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / _STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete checkpoint ({_STATE} cannot be read); choose another one"
        ) from error
    known = isinstance(state, dict) and state.get("version") == FORMAT_VERSION
    if not known or not {"world_size", "sha256", "epoch"} <= state.keys():
        raise UserError(
            f"{path} has an unknown format, this release reads version {FORMAT_VERSION}; choose "
            "another checkpoint"
        )
    if state.pop(_OWN_SUM, None) != _sum_of(state):
        raise UserError(
            f"{path} is damaged, the checksum of {_STATE} differs; choose another checkpoint"
        )
    return state


def _sum_of(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _read_tensors(path: Path, state: Mapping[str, Any]) -> TensorDict:
    try:
        if sha256_file(path) != state["sha256"][path.name]:
            raise UserError(f"{path} is damaged, its checksum differs; choose another checkpoint")
        with safe_open(path, framework="pt") as file:
            # copies: rows mapped from a file are not aligned, and their products round differently
            return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{path} is missing or damaged; choose another checkpoint") from error
