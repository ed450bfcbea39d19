"""How a command ends: with 0, or with a code and one line on what happened and what to do."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.resident import use_huge_pages

LOG_ONLY = {"log_only": True}
"""``extra=LOG_ONLY`` of a logging call: for the log files, not for the screen."""
_TELLER_SECONDS = 5.0
_WAITS = "watchdog talks"  # comm.watchdog.TALKS, whose import takes seconds that --help need not


def run_main(main: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    0; 2 after a UserError, 3 if that is an IncompleteError; 75 after a JobError; 128 + signal where
    a signal ended it. The reason is printed as one line to stderr: a UserError as ``error: ...`` by
    its teller, which is one rank where every rank raises the same one, a JobError by the first rank
    that knows of it. Any other exception is a bug and passes through with its stack trace. What the
    library logs meanwhile is shown, see ``shown_log``. The process is taken to be ours: see
    ``use_huge_pages``.
    """
    use_huge_pages()
    code = _exit_code(main)
    waits = any(thread.name == _WAITS for thread in threading.enumerate())
    if waits or (code and _group_is_left()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # it would abort an interpreter that is taken down, or keep it for ever
    return code


def _group_is_left() -> bool:
    """Whether ranks are still connected: others may be gone, and nobody can take leave of them."""
    found = sys.modules.get("torch.distributed")
    return found is not None and found.is_available() and found.is_initialized()


def _exit_code(main: Callable[[], None]) -> int:
    try:
        with shown_log():
            main()
    except UserError as error:
        elsewhere = _is_told_elsewhere(error)
        _say(f"error: {error}", unless=elsewhere)
        if elsewhere:
            # torchrun ends all ranks when the first has ended, and that must not be one in silence
            time.sleep(_TELLER_SECONDS)
        return error.exit_code
    except JobError as error:
        _say(f"error: {error}", unless=error.told)
        return JobError.EXIT_CODE
    except Stopped as stopped:
        _say(str(stopped), unless=_is_other_rank())
        return stopped.exit_code
    except KeyboardInterrupt:
        _say("stopped by SIGINT", unless=_is_other_rank())
        return 128 + signal.SIGINT
    return 0


def _is_told_elsewhere(error: UserError) -> bool:
    if error.teller == "rank" or not _is_other_rank():
        return False
    # the first rank of another machine may be the only one that knows
    return error.teller == "job" or os.environ.get("LOCAL_RANK") != "0"


def _say(text: str, *, unless: bool) -> None:
    if not unless:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def shown_log(stream: io.TextIOBase | None = None) -> Iterator[None]:
    """Show what this library logs, by rank 0 alone; the logs of other libraries are left to them.

    Args:
        stream: where to; standard error by default.
    """
    if _is_other_rank():
        yield
        return
    logger, handler = logging.getLogger("distributed_ignn"), _Plain(stream)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library that shows everything would show these lines twice
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _Plain(logging.Handler):
    """Lines without time and origin."""

    def __init__(self, stream: io.TextIOBase | None) -> None:
        super().__init__(logging.INFO)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "log_only"):
            return
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        # looked up for each line: a live display takes the place of sys.stderr for a while
        print(prefix + self.format(record), file=self._stream or sys.stderr, flush=True)


def _is_other_rank() -> bool:
    """Whether a rank 0 reports for this process; one with a meaningless RANK reports itself."""
    rank, world_size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return rank.isdecimal() and world_size.isdecimal() and 0 < int(rank) < int(world_size)
