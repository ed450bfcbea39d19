"""One run at a time in an output folder.

Rank 0 holds a lock (flock) on a file there. The kernel lets go of it whatever ends the process, so
nothing has to be tidied up after ``kill -9``. Where a file system knows no locks, nobody is kept
out.

The package filelock, which torch brings along in any version, was tried (4.3.1). It keeps a second
run out, waits, and is free after ``kill -9`` too, but loses three things: its file stays in the
folder, which a run that was refused is to leave empty; it raises where locks are not supported
(ENOLCK, ENOTSUP), so that such a folder could not be used at all; and where flock is missing
(ENOSYS) it changes over to a file that marks the lock, which outlives ``kill -9``.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from distributed_ignn.errors import UserError
from distributed_ignn.files import FileLock

logger = logging.getLogger(__name__)

LOCK = ".lock"
_POLL_SECONDS = 0.1
_QUIET_SECONDS = 2.0


class OutputLock:
    """Of one folder; not held until ``take``.

    Args:
        output: the folder.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._lock = FileLock(output / LOCK)

    def take(self, patience: float) -> None:
        """Hold the folder, which has to exist.

        Args:
            patience: seconds to wait for another run that holds it.

        Raises:
            UserError: another run still does.
            OSError: nothing can be written there.
        """
        began, said = time.monotonic(), False
        while not self._lock.take():
            waited = time.monotonic() - began
            if waited >= patience:
                raise UserError(
                    f"output = {self._output} is in use by another run, which has not ended; wait "
                    "for it or stop it, or choose another --output"
                )
            if waited > _QUIET_SECONDS and not said:
                said = True
                logger.warning(
                    "output = %s is in use by another run; waiting up to %g s for its end",
                    self._output,
                    patience,
                )
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Let others have the folder; does nothing where it is not held."""
        self._lock.release()
