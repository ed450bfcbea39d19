"""Checkpoints: everything a run needs to go on, as safetensors and JSON.

    checkpoints/epoch-000010/
        state.json                      epoch, graph, values of every part, checksums
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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.files import sha256_file, write_tensors
from distributed_ignn.reading.plain_files import open_plain
from distributed_ignn.reading.strict_json import read_json
from distributed_ignn.reading.tensors import read_tensors
from distributed_ignn.runs.layout import STATE
from distributed_ignn.runs.spool.places import Places

FORMAT_VERSION = 3
_READ_VERSIONS = (2, FORMAT_VERSION)
NODES = "nodes"
_OWN_SUM = "state_sha256"
_COMMON = "common.safetensors"
#: Types of the values that restoring reads from the state; a bool is no int here.
_KINDS: dict[str, tuple[type, ...]] = {
    "world_size": (int,),
    "sha256": (dict,),
    "epoch": (int,),
}
_NAME = re.compile(r"epoch-(\d{6,})")

logger = logging.getLogger(__name__)

TensorDict = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Holds what a checkpoint saves.

    Args:
        state: JSON values.
        common: tensors that are the same on every rank.
        rows: tensors [O, ...] whose rows belong to this rank's nodes.
    """

    state: dict[str, Any]
    common: TensorDict
    rows: TensorDict

    def apart(self) -> Snapshot:
        """Return a copy in main memory, which later steps do not touch."""
        common, rows = (
            {key: value.detach().to("cpu", copy=True) for key, value in part.items()}
            for part in (self.common, self.rows)
        )
        return Snapshot(dict(self.state), common, rows)


def val_metric(path: Path) -> float | None:
    """Return the metric of the model in a checkpoint; None where it cannot be told."""
    try:
        value = _read_state(path).get("val_metric")
    except UserError:
        return None
    return float(value) if isinstance(value, int | float) else None


def has_converged(path: Path) -> bool:
    """Say whether the solves of a checkpoint's epoch converged; True where it does not tell."""
    try:
        return _read_state(path).get("converged") is not False
    except UserError:
        return False


def checkpoint_name(epoch: int) -> str:
    """Return the name of the folder with the state after so many epochs."""
    return f"epoch-{epoch:06d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """List complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def checkpoint_names(
    folder: Path, comm: Communicator, *, converged_last: bool = False
) -> list[str]:
    """Name the checkpoints that rank 0 sees in a folder, oldest first, on every rank.

    Args:
        folder: ``checkpoints`` of a run.
        comm: this rank's communicator.
        converged_last: put those whose solves converged behind all others.

    Raises:
        UserError: the folder cannot be read (on every rank).
    """

    def listing() -> list[str]:
        found = list_checkpoints(folder) if comm.is_main else []
        return [p.name for p in (sorted(found, key=has_converged) if converged_last else found)]

    listed = comm.together(listing, doing=f"read {folder}")
    names: list[str] = comm.gather_json(listed)[0]
    return names


def load_newest(
    folder: Path,
    comm: Communicator,
    nodes: Tensor,
    places: Places | None = None,
    *,
    converged: bool = False,
) -> Snapshot | None:
    """Read the newest checkpoint that is sound on every rank; None where there is none at all.

    One that is damaged is passed over with a warning. Every rank calls it.

    Args:
        folder: ``checkpoints`` of a run.
        comm: this rank's communicator.
        nodes: owned global ids [O].
        places: of the attempt, where ``folder`` stands for a URL.
        converged: prefer any whose solves converged to all others.

    Raises:
        UserError: the folder cannot be read, or all of its checkpoints are damaged (on every rank).
    """
    names = checkpoint_names(folder, comm, converged_last=converged)
    places = places or Places(comm)
    for name in reversed(names):
        try:
            snapshot = places.wait(
                partial(load_checkpoint, folder / name, comm, nodes, places.fetch),
                doing=f"read {folder / name}",
            )
        except UserError as error:
            if name == names[0]:
                raise
            logger.warning("%s; going back to the one before", error)
            continue
        return snapshot
    return None


def load_checkpoint(
    path: Path,
    comm: Communicator,
    nodes: Tensor,
    fetch: Callable[[Path], None] = lambda path: None,
) -> Snapshot:
    """Read a checkpoint for the nodes of this rank, whatever number of ranks wrote it.

    Args:
        path: one folder of ``list_checkpoints``.
        comm: this rank's communicator.
        nodes: owned global ids [O].
        fetch: called with each file before it is read, to let it be there.

    Raises:
        UserError: a file is missing, damaged, or of another format.
    """

    def fetched(name: str) -> Path:
        fetch(path / name)
        return path / name

    fetch(path / STATE)
    state = _read_state(path)
    common = _read_tensors(fetched(_COMMON), state)
    writers = int(state["world_size"])
    if writers == comm.world_size:
        own = _read_rows(fetched(_rank_name(comm.rank, writers)), state)
        if torch.equal(own[NODES], nodes.cpu()):
            rows = {k[4:]: v for k, v in own.items() if k.startswith("row/")}
            return Snapshot(state, common, rows)
    parts = (_read_rows(fetched(_rank_name(w, writers)), state) for w in range(writers))
    return Snapshot(state, common, _gather_rows(path, parts, nodes.cpu()))


def _gather_rows(path: Path, parts: Iterable[TensorDict], nodes: Tensor) -> TensorDict:
    """Take the rows of ``nodes`` out of all writers' ``parts`` of the checkpoint in ``path``."""
    result: TensorDict = {}
    found = torch.zeros(nodes.numel(), dtype=torch.bool)
    order = torch.argsort(nodes)
    ordered = nodes[order]
    for tensors in parts:
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


def write_rank(
    folder: Path, comm: Communicator, snapshot: Snapshot, nodes: Tensor
) -> dict[str, str]:
    """Write this rank's files; return their sha256 by name."""
    rows = {f"row/{key}": value for key, value in snapshot.rows.items()}
    files = {_rank_name(comm.rank, comm.world_size): {NODES: nodes, **rows}}
    if comm.is_main:
        files[_COMMON] = snapshot.common
    for name, tensors in files.items():
        write_tensors(folder / name, tensors)
    return {name: sha256_file(folder / name) for name in files}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = read_json(path / STATE)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete checkpoint ({STATE} cannot be read); choose another one"
        ) from error
    known = isinstance(state, dict) and state.get("version") in _READ_VERSIONS
    if not known or not {"world_size", "sha256", "epoch"} <= state.keys():
        raise UserError(
            f"{path} has an unknown format, this release reads versions "
            f"{' and '.join(map(str, _READ_VERSIONS))}; choose another checkpoint"
        )
    if sealed(state) != state:
        raise UserError(
            f"{path} is damaged, the checksum of {STATE} differs; choose another checkpoint"
        )
    if not all(type(state.get(key)) in kinds for key, kinds in _KINDS.items()):
        raise UserError(f"{path} is damaged, {STATE} holds other values; choose another checkpoint")
    return state


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with the checksum of its other values."""
    values = {key: value for key, value in state.items() if key != _OWN_SUM}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return values | {_OWN_SUM: digest}


def _read_rows(path: Path, state: Mapping[str, Any]) -> TensorDict:
    """Read one rank's file, whose tensors have one row for every node that it names."""
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
