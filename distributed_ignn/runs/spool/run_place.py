"""The output of a run that is a URL: what of it lies where, and what goes there when.

Of every machine, the ranks send their own files of a checkpoint and the first rank sends their
logs; what else there is belongs to rank 0. ``state.json`` makes a checkpoint valid and goes last,
after the records of its epochs. Rank 0 keeps the state of every checkpoint in its folder, which
lists them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.graph.storage.manifest import MANIFEST
from distributed_ignn.runs.layout import (
    CHECKPOINTS,
    CRASHES,
    KEPT_SOLVER,
    LOGS,
    RECORD,
    REPORT,
    SETTINGS,
    SHARDS,
    STATE,
)
from distributed_ignn.runs.spool.mirror import Mirror
from distributed_ignn.runs.spool.places import Places
from distributed_ignn.runs.spool.remote_lock import BEAT_SECONDS, SILENT_SECONDS, RemoteLock

logger = logging.getLogger(__name__)

_CHECKPOINTS, _SHARDS, _LOGS, _CRASHES = (
    f"{folder}/" for folder in (CHECKPOINTS, SHARDS, LOGS, CRASHES)
)
_EVENTS, _TABLES = "events.out.tfevents", (".parquet", ".csv", ".npz")
_OF_A_RUN = (SETTINGS, RECORD, KEPT_SOLVER)


class RunPlace:
    """The output of one attempt, as this rank sees it.

    Args:
        mirror: the place.
        comm: this rank's communicator.

    Attributes:
        begun: whether the place holds a run by now; before, nothing of one is sent but shards.
    """

    def __init__(self, mirror: Mirror, comm: Communicator) -> None:
        self._mirror = mirror
        self._comm = comm
        self._lock = RemoteLock(mirror.store)
        self.begun = False

    @property
    def folder(self) -> Path:
        """Of this machine."""
        return self._mirror.folder

    @property
    def first(self) -> bool:
        """Whether this rank is the first one of its machine."""
        return self._comm.local_rank == 0

    def read(self) -> None:
        """Fetch what an attempt begins with; the first rank of a machine does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mirror.fetch_changed(self._begins_with)

    def _begins_with(self, name: str) -> bool:
        if name.startswith(_LOGS):
            return True
        if not self._comm.is_main:
            return False
        if name.startswith((_CHECKPOINTS, _SHARDS)):
            return name.endswith((f"/{STATE}", f"/{MANIFEST}"))
        return "/" not in name and not (name.startswith(_EVENTS) or name.endswith(_TABLES))

    def take(self, patience: float) -> None:
        """Hold the place for this run, and clear what a killed one has left; rank 0 does.

        Args:
            patience: seconds to wait for another run that holds it; if any, then until one of
                another machine that was killed counts no more.

        Raises:
            UserError: another run holds it.
        """
        self._lock.take(max(patience, SILENT_SECONDS + BEAT_SECONDS) if patience else 0.0)
        listed = self._mirror.fetch_changed(self._begins_with)
        parts = [name for name in listed if name.startswith(_CHECKPOINTS)]
        whole = {name.rpartition("/")[0] for name in parts if name.endswith(f"/{STATE}")}
        self._mirror.store.remove(name for name in parts if name.rpartition("/")[0] not in whole)

    def forget(self, checkpoint: Path) -> None:
        """From here on there is no valid checkpoint of this name, until it is written again."""
        if checkpoint.exists():
            self._mirror.store.remove([f"{self._mirror.name(checkpoint)}/{STATE}"])

    def push_part(self, path: Path, checkpoint: Path) -> None:
        """Send a file of a checkpoint that has not got its name yet.

        Args:
            path: the file.
            checkpoint: as the folder will be called.
        """
        self._mirror.store.push(path, f"{self._mirror.name(checkpoint)}/{path.name}")

    def publish(self, state: Path, checkpoint: Path) -> None:
        """Send what makes a checkpoint valid; all of its files are there.

        Raises:
            UserError: another run has taken the place.
        """
        if self._lock.lost:
            raise UserError(
                f"output = {self._mirror.url} was taken by another run while this one could not "
                "reach it; stop one of them"
            )
        self.push_part(state, checkpoint)

    def remove(self, checkpoint: Path) -> None:
        """Remove a checkpoint, beginning with what makes it valid."""
        name = self._mirror.name(checkpoint)
        self._mirror.store.remove([f"{name}/{STATE}"])
        self._mirror.store.remove(self._mirror.store.listing(name))

    def withdraw(self, name: str) -> None:
        """Remove a record that this machine has removed."""
        self._mirror.store.remove([name])

    def push_records(self) -> None:
        """Send what is new of all that this machine says of the run; its first rank does."""
        if self.first:
            self._mirror.push_changed(self._records())

    def _records(self) -> Iterator[Path]:
        for path in sorted(self.folder.rglob("*")):
            name = self._mirror.name(path)
            own = self._comm.is_main or name.startswith((_LOGS, _CRASHES))
            joined = name.startswith(_CRASHES) and not self._comm.is_main
            hidden = any(step.startswith(".") for step in path.relative_to(self.folder).parts)
            if (
                own
                and not hidden
                and not name.startswith((_CHECKPOINTS, _SHARDS))
                and not (joined and path.name == REPORT)  # rank 0 joins them
                and path.is_file()
            ):
                yield path

    def end(self, places: Places, *, crashed: bool) -> None:
        """Send what is left of a run that is over, or say where it is; let others have the place.

        No rank is waited for, and a place that did not answer is not asked again.

        Args:
            places: of the attempt.
            crashed: whether it broke off, which is reported also of a run that had not begun.
        """
        try:
            if (self.begun or crashed) and not places.cut:
                self.push_records()
        except UserError as error:
            logger.warning("%s", error)
            places.cut = True
        if self.first and self.begun and places.cut:
            logger.warning("what was not sent to %s is in %s", self._mirror.url, places.keep())
        self._lock.release(quietly=places.cut)


def fetch_run(run: Path, places: Places) -> None:
    """Fetch what a finished run is read from, but for shards and tensors of checkpoints.

    Those are fetched when they are read. One rank of a machine calls it; where the run is in a
    folder, nothing is done.

    Args:
        run: folder that stands for the output.
        places: where it is had from.

    Raises:
        UserError: the place cannot be read.
    """
    mirror = places.of(run)
    if mirror is not None:
        mirror.fetch_changed(_is_read)


def _is_read(name: str) -> bool:
    if name.startswith(_CHECKPOINTS):
        return name.endswith(f"/{STATE}")
    return (name.startswith(_SHARDS) and name.endswith(f"/{MANIFEST}")) or name in _OF_A_RUN
