"""One run at a time at a URL, as far as an object store allows.

A run that begins leaves an object of its own below ``.runs/`` and then looks who else is there; of
two that begin at once, each of which sees the other, neither goes on. The object is written anew
every ``BEAT_SECONDS``, and counts for as long as ``SILENT_SECONDS``, by the clock of the place; a
process of this machine that has ended counts no more at once. A run that could not write for so
long may be taken for dead while it is not: it notices when it is back, and gives up.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import uuid

from distributed_ignn.cli import LOG_ONLY
from distributed_ignn.comm.processes import Process
from distributed_ignn.errors import UserError
from distributed_ignn.urls.object_store import ObjectStore

logger = logging.getLogger(__name__)

RUNS = ".runs"
BEAT_SECONDS, SILENT_SECONDS = 10.0, 45.0
_POLL_SECONDS = 2.0


class RemoteLock:
    """Of one place; not held until ``take``.

    Args:
        store: the place.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._name = f"{RUNS}/{uuid.uuid4().hex}.json"
        self._over = threading.Event()
        self._heart: threading.Thread | None = None
        self.lost = False

    def take(self, patience: float) -> None:
        """Hold the place.

        Args:
            patience: seconds to wait for another run that holds it.

        Raises:
            UserError: another run still does, or nothing can be written there.
        """
        deadline, said = time.monotonic() + patience, False
        self._write(self._store)
        while (other := self._other()) is not None:
            self._store.remove([self._name])
            if time.monotonic() >= deadline:
                raise UserError(
                    f"output = {self._store.url} is in use by another run{other}, which has not "
                    f"ended, or ended less than {SILENT_SECONDS:g} s ago; wait for it or stop it, "
                    "or choose another --output"
                )
            if not said:
                said = True
                logger.warning(
                    "output = %s is in use by another run%s; waiting up to %g s for its end",
                    self._store.url,
                    other,
                    patience,
                )
            time.sleep(_POLL_SECONDS)
            self._write(self._store)
        self._heart = threading.Thread(target=self._beat, daemon=True, name="heart of the output")
        self._heart.start()

    def release(self, *, quietly: bool = False) -> None:
        """Let others have the place; does nothing where it is not held.

        Args:
            quietly: leave that to time, because the place does not answer.
        """
        if self._heart is None:
            return
        self._over.set()
        self._heart.join()
        self._heart = None
        if quietly:
            return
        try:
            self._store.remove([self._name])
        except UserError as error:
            logger.warning("%s; the next run waits up to %g s", error, SILENT_SECONDS)

    def _write(self, store: ObjectStore) -> None:
        told = {"host": socket.gethostname(), "process": Process.this()}
        store.write(self._name, json.dumps(told).encode())

    def _beat(self) -> None:
        store = ObjectStore(self._store.url, patient=False)
        while not self._over.wait(BEAT_SECONDS):
            try:
                if not store.exists(self._name):
                    self.lost = True
                    return
                self._write(store)
            except UserError as error:  # whoever sends a checkpoint next says so aloud
                logger.warning("%s", error, extra=LOG_ONLY)

    def _other(self) -> str | None:
        """Where another run is that is alive, as far as can be told; those that are not go."""
        now = self._store.modified(self._name)
        for name in self._store.listing(RUNS):
            if name == self._name:
                continue
            written = self._store.modified(name)
            if written is None:  # it has just ended
                continue
            host = self._host_of_living(name)
            fresh = now is None or (now - written).total_seconds() < SILENT_SECONDS
            if host is not None and fresh:
                return host
            self._store.remove([name])
        return None

    def _host_of_living(self, name: str) -> str | None:
        """Where the run of an object is; None if that was here, and it has ended."""
        try:
            told = json.loads(self._store.read(name) or b"")
            process, host = Process(*told["process"]), f" on {str(told['host'])[:64]!r}"
        except (ValueError, KeyError, TypeError):  # whose it is is not known; time will tell
            return ""
        return None if process.has_ended() else host
