"""Checkpoints: everything a run needs to go on, as safetensors and JSON.

    checkpoints/epoch-000010/
        state.json                      epoch, schedule position, best so far, checksums
        common.safetensors              replicated parameters, optimisers, best weights, RNG
        rank-00000-of-00002.safetensors rows of this rank's nodes: warm starts, embeddings

A folder is written under a hidden name and renamed by rank 0 when every rank has finished, so a
reader never sees half of one. Rows carry global node ids, so another number of ranks can read them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json, sha256_file, sync, write_tensors
from distributed_ignn.reading.plain_files import open_plain
from distributed_ignn.reading.strict_json import read_json
from distributed_ignn.reading.tensors import read_tensors

FORMAT_VERSION = 1
NODES = "nodes"
_STATE = "state.json"
_COMMON = "common.safetensors"
#: Types of the values that restoring reads from the state; a bool is no int here.
_KINDS: dict[str, tuple[type, ...]] = {
    "world_size": (int,),
    "sha256": (dict,),
    "epoch": (int,),
}
_NAME = re.compile(r"epoch-(\d{6,})")

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
    """Reads and writes the checkpoints of one run; every rank calls it together.

    Args:
        folder: ``checkpoints`` of the run.
        comm: this rank's communicator.
        keep: how many of the newest to keep.
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
        final = self._folder / f"epoch-{epoch:06d}"
        temporary = self._folder / f".{final.name}.tmp"
        rank_file = temporary / _rank_name(self._comm.rank, self._comm.world_size)
        doing = f"write the checkpoint in {self._folder}"
        main = self._comm.is_main
        self._comm.together(lambda: _fresh(temporary) if main else None, doing=doing)
        self._comm.together(lambda: _write_rank(rank_file, snapshot, nodes), doing=doing)
        self._comm.together(
            lambda: self._finish(temporary, final, snapshot) if main else None, doing=doing
        )
        return final

    def _finish(self, temporary: Path, final: Path, snapshot: Snapshot) -> None:
        write_tensors(temporary / _COMMON, snapshot.common)
        files = sorted(path for path in temporary.iterdir() if path.suffix == ".safetensors")
        state = {
            "version": FORMAT_VERSION,
            "world_size": self._comm.world_size,
            "sha256": {path.name: sha256_file(path) for path in files},
            **snapshot.state,
        }
        atomic_write_json(temporary / _STATE, state)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(self._folder)
        self._retain(final)

    def _retain(self, newest: Path) -> None:
        """Remove all but the newest few, and what was written before the run went back."""
        found = list_checkpoints(self._folder)
        place = found.index(newest) + 1
        # later epochs are of a run that was resumed from before them and now takes another course
        for path in [*found[: max(place - self._keep, 0)], *found[place:]]:
            shutil.rmtree(path)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def newest_checkpoint(folder: Path, comm: Communicator) -> Path | None:
    """The newest complete checkpoint as rank 0 sees it, the same on every rank; None without any.

    Raises:
        UserError: the folder cannot be read (on every rank).
    """
    found = comm.together(
        lambda: list_checkpoints(folder) if comm.is_main else [], doing=f"read {folder}"
    )
    name = comm.gather_json(found[-1].name if found else None)[0]
    return None if name is None else folder / name


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
        own = _read_rows(path / _rank_name(comm.rank, writers), state)
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
        tensors = _read_rows(path / _rank_name(writer, writers), state)
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


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_rank(path: Path, snapshot: Snapshot, nodes: Tensor) -> None:
    tensors = {NODES: nodes}
    tensors |= {f"row/{key}": value for key, value in snapshot.rows.items()}
    write_tensors(path, tensors)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = read_json(path / _STATE)
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
    if not all(type(state.get(key)) in kinds for key, kinds in _KINDS.items()):
        raise UserError(
            f"{path} is damaged, {_STATE} holds other values; choose another checkpoint"
        )
    return state


def _read_rows(path: Path, state: Mapping[str, Any]) -> TensorDict:
    """The tensors of one rank's file, each with one row for every node that it names."""
    tensors = _read_tensors(path, state)
    nodes = tensors.get(NODES)
    if (
        nodes is None
        or nodes.dim() != 1
        or nodes.dtype is not torch.int64
        or any(value.shape[:1] != nodes.shape for value in tensors.values())
    ):
        raise UserError(f"{path} is damaged, it lacks rows of nodes; choose another checkpoint")
    return tensors


def _read_tensors(path: Path, state: Mapping[str, Any]) -> TensorDict:
    try:
        open_plain(path, follow_links=False).close()  # a link may lead out of the folder
        if sha256_file(path) != state["sha256"][path.name]:
            raise UserError(f"{path} is damaged, its checksum differs; choose another checkpoint")
        # copies: rows mapped from a file are not aligned, and their products round differently
        return read_tensors(path, copy=True, follow_links=False)[0]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; choose another checkpoint") from error
