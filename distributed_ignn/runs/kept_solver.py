"""The learned solver that a run keeps: RUN/solver.safetensors.

Checkpoints hold the solver of the last epoch, but a run is used with the weights that validation
chose. So the solver is fitted to those once more at the end, and again whenever a user asks for it
(``tune.py``). The file holds the weights of all parts, the epoch of the model's weights that they
belong to, and a checksum; the format is safetensors.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.files import sync, temporary_sibling, write_tensors
from distributed_ignn.reading.tensors import read_tensors
from distributed_ignn.runs.layout import KEPT_SOLVER
from distributed_ignn.training.learned_solver import LearnedSolver

_FORMAT = "learned solver, version 1"
_LATER = ("estimator.plain_rate", "adjoint.plain_rate")  # older files do without


def save_solver(run: Path, learned: LearnedSolver, epoch: int, comm: Communicator) -> Path:
    """Write the solver of a run; rank 0 does, every rank calls it.

    Args:
        run: output folder.
        learned: what is written.
        epoch: of the model's weights that it was fitted to.
        comm: this rank's communicator.

    Raises:
        UserError: the file cannot be written (on every rank).
    """
    path = run / KEPT_SOLVER
    comm.together(
        lambda: _write(path, learned, epoch) if comm.is_main else None, doing=f"write {path}"
    )
    return path


def load_solver(run: Path, learned: LearnedSolver, epoch: int, comm: Communicator) -> bool:
    """Take over the solver that a run keeps; every rank calls it.

    Returns:
        False where there is none, or one for the weights of another epoch: the run has gone on
        since, and its newest checkpoint has a newer solver.

    Raises:
        UserError: the file is damaged or belongs to another solver (on every rank).
    """
    path = run / KEPT_SOLVER
    return comm.together(lambda: path.is_file() and _read(path, learned, epoch))


def _write(path: Path, learned: LearnedSolver, epoch: int) -> None:
    tensors = {name: value.detach().cpu() for name, value in learned.named_parameters().items()}
    metadata = {"format": _FORMAT, "epoch": str(epoch), "sha256": _checksum(tensors)}
    temporary = temporary_sibling(path)
    try:
        write_tensors(temporary, tensors, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@torch.no_grad()
def _read(path: Path, learned: LearnedSolver, epoch: int) -> bool:
    remedy = f"fit the solver again: ignn tune {path.parent}"
    try:
        tensors, metadata = read_tensors(path, copy=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged; {remedy}") from error
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path} does not hold a learned solver; {remedy}")
    if metadata.get("sha256") != _checksum(tensors):
        raise UserError(f"{path} is damaged, its checksum differs; {remedy}")
    if metadata.get("epoch") != str(epoch):
        return False
    named = learned.named_parameters()
    absent = {name for name in _LATER if name not in tensors}
    kinds = {name: _kind(value) for name, value in named.items() if name not in absent}
    if {name: _kind(value) for name, value in tensors.items()} != kinds:
        raise UserError(f"{path} belongs to a run with other solver settings; {remedy}")
    for name in kinds:
        named[name].copy_(tensors[name])
    learned.ready = True
    return True


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        # as bytes: numpy lacks some of the formats that a file may hold
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
