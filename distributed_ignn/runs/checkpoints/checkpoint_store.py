"""Writes the checkpoints of a run together on all ranks, and removes those that are not kept."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import JobError, UserError
from distributed_ignn.files import atomic_write_json, sync
from distributed_ignn.runs.checkpoints.checkpoint import (
    FORMAT_VERSION,
    Snapshot,
    checkpoint_name,
    has_converged,
    list_checkpoints,
    sealed,
    val_metric,
    write_rank,
)
from distributed_ignn.runs.layout import STATE
from distributed_ignn.runs.spool.places import Places
from distributed_ignn.runs.spool.run_place import RunPlace

_REMAINS = re.compile(r"\.epoch-\d{6,}.*\.tmp")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Writing:
    """Holds a checkpoint on its way to the disk."""

    final: Path
    temporary: Path
    snapshot: Snapshot
    digests: Future[dict[str, str]]


class CheckpointStore:
    """Writes the checkpoints of one run; every rank calls it together.

    Args:
        folder: ``checkpoints`` of the run.
        comm: this rank's communicator.
        keep: how many of the newest to keep, besides the one with the best validation metric and
            the newest whose solves converged.
        places: of the attempt, where ``folder`` stands for a URL.
        sent_to: the output that the checkpoints go to, if that is a URL.
    """

    def __init__(
        self,
        folder: Path,
        comm: Communicator,
        keep: int,
        places: Places | None = None,
        sent_to: RunPlace | None = None,
    ) -> None:
        self._folder = folder
        self._comm = comm
        self._keep = keep
        self._places = places or Places(comm)
        self._sent_to = sent_to
        # who makes the folder that the ranks of a machine write into
        self._makes = comm.is_main or (sent_to is not None and sent_to.first)
        self._doing = f"write the checkpoint in {folder}"
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: _Writing | None = None

    def save(self, epoch: int, snapshot: Snapshot, nodes: Tensor) -> Path:
        """Write the checkpoint of ``epoch`` epochs done; ``nodes`` are the owned global ids.

        Raises:
            UserError: the folder cannot be written (on every rank).
        """
        self.begin(epoch, snapshot, nodes)
        return self.finish()

    def begin(self, epoch: int, snapshot: Snapshot, nodes: Tensor) -> None:
        """Start to write in a thread; nothing is seen of it before ``finish``.

        Args:
            epoch: epochs done.
            snapshot: its tensors must not change meanwhile, see ``Snapshot.apart``.
            nodes: owned global ids.

        Raises:
            UserError: the folder cannot be written (on every rank).
            RuntimeError: the one before has not been finished.
        """
        if self._writing is not None:
            raise RuntimeError("a checkpoint is being written")
        comm = self._comm
        final = self._folder / checkpoint_name(epoch)
        # its own name, so that a rank of an earlier attempt that wakes up late writes elsewhere
        token = comm.gather_json(uuid.uuid4().hex[:8] if comm.is_main else None)[0]
        temporary = self._folder / f".{final.name}.{token}.tmp"
        self._wait(lambda: self._begin(temporary, final), works=self._makes)
        digests = self._writer.submit(self._write, temporary, final, snapshot, nodes)
        self._writing = _Writing(final, temporary, snapshot, digests)

    @property
    def writing(self) -> bool:
        """Whether a checkpoint was begun and not finished."""
        return self._writing is not None

    @property
    def written(self) -> bool:
        """Whether this rank's part of it is on the disk, or has failed."""
        return self._writing is not None and self._writing.digests.done()

    def finish(self) -> Path:
        """Wait for all ranks, and give the checkpoint its name.

        Raises:
            UserError: the folder cannot be written (on every rank).
            RuntimeError: none was begun.
        """
        one, self._writing = self._writing, None
        if one is None:
            raise RuntimeError("no checkpoint is being written")
        comm = self._comm
        try:
            written = self._wait(one.digests.result)
            digests = {n: d for part in comm.gather_json(written) for n, d in part.items()}
            self._wait(self._send_records)
            self._wait(lambda: self._finish(one, digests), works=comm.is_main)
        except (UserError, JobError):
            if self._makes:
                shutil.rmtree(one.temporary, ignore_errors=True)
            raise
        if self._makes and not comm.is_main:  # rank 0's machine keeps what it has written
            shutil.rmtree(one.temporary, ignore_errors=True)
        return one.final

    def close(self) -> None:
        """Let go of the thread; what is not finished is given up."""
        self._writer.shutdown(wait=True)

    def _wait(self, action: Callable[[], T], *, works: bool = True) -> T | None:
        return self._places.wait(action, works=works, doing=self._doing)

    def _write(
        self, temporary: Path, final: Path, snapshot: Snapshot, nodes: Tensor
    ) -> dict[str, str]:
        """Write this rank's files, and send them; return their sha256 by name."""
        digests = write_rank(temporary, self._comm, snapshot, nodes)
        if self._sent_to is not None:
            for name in digests:
                self._sent_to.push_part(temporary / name, final)
        return digests

    def _send_records(self) -> None:
        """Let the records of all epochs before a checkpoint be where it is about to be."""
        if self._sent_to is not None:
            self._sent_to.push_records()

    def _begin(self, temporary: Path, final: Path) -> None:
        """Make an empty folder, and remove the remains of a killed run beside it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if _REMAINS.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        if self._sent_to is not None and self._comm.is_main:
            self._sent_to.forget(final)
        temporary.mkdir()

    def _finish(self, one: _Writing, digests: Mapping[str, str]) -> None:
        state = {
            "version": FORMAT_VERSION,
            "world_size": self._comm.world_size,
            "sha256": dict(digests),
            **one.snapshot.state,
        }
        atomic_write_json(one.temporary / STATE, sealed(state))
        if self._sent_to is not None:
            self._sent_to.publish(one.temporary / STATE, one.final)
        before = _hide(one.final)  # of the same epoch, which a run came to again
        one.temporary.rename(one.final)
        sync(self._folder)
        if before is not None:  # removing takes its time, in which there is one of that name
            shutil.rmtree(before)
        self._retain(one.final)

    def _retain(self, newest: Path) -> None:
        """Remove all but those to keep, and what was written before a run went back.

        Later epochs are of a run that was resumed from before them and now takes another course.
        """
        found = list_checkpoints(self._folder)
        place = found.index(newest) + 1
        course = found[:place]
        metrics = {path: val_metric(path) for path in course}
        validated = {path: value for path, value in metrics.items() if value is not None}
        best = max(validated, key=validated.__getitem__, default=newest)
        solved = next(filter(has_converged, reversed(course)), newest)
        kept = {*course[-self._keep :], best, solved}
        for path in found:
            if path not in kept:
                if self._sent_to is not None:
                    self._sent_to.remove(path)
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that no part of one is ever seen under its name."""
    hidden = _hide(path)
    if hidden is not None:
        shutil.rmtree(hidden)


def _hide(path: Path) -> Path | None:
    """Take the name from a checkpoint, if there is one; where it is then."""
    if not path.exists():
        return None
    hidden = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    path.rename(hidden)
    return hidden


def keep_newest(folder: Path) -> None:
    """Remove all checkpoints but the newest, which holds the best weights besides the last.

    That is enough to predict with a finished run.

    Raises:
        OSError: one cannot be removed.
    """
    for path in list_checkpoints(folder)[:-1]:
        _remove(path)
