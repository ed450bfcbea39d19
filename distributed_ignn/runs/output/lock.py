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

import errno
import fcntl
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from distributed_ignn.errors import UserError

logger = logging.getLogger(__name__)

LOCK = ".lock"
_POLL_SECONDS = 0.1
_QUIET_SECONDS = 2.0
_HELD = (errno.EAGAIN, errno.EACCES)
_NOT_KNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class OutputLock:
    """Of one folder; not held until ``take``.

    Args:
        output: the folder.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._file: int | None = None

    def take(self, patience: float) -> None:
        """Hold the folder, which has to exist.

        Args:
            patience: seconds to wait for another run that holds it.

        Raises:
            UserError: another run still does.
            OSError: nothing can be written there.
        """
        began, said = time.monotonic(), False
        while not self._try():
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
        if self._file is not None:
            with suppress(OSError):  # the folder has become read-only, or is gone
                (self._output / LOCK).unlink()
            os.close(self._file)
            self._file = None

    def _try(self) -> bool:
        file = os.open(self._output / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                os.close(file)
                return False
            if error.errno not in _NOT_KNOWN:
                os.close(file)
                raise
            logger.debug("no locks in %s: %s", self._output, error.strerror)
        if os.fstat(file).st_nlink == 0:  # removed by who had it before: a file that nobody meets
            os.close(file)
            return False
        self._file = file
        return True
