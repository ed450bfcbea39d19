"""How a command ends: with 0, or with a code and one line on what happened and what to do."""

from __future__ import annotations

import atexit
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO, cast

from distributed_ignn.errors import JobError, Stopped, UserError
from distributed_ignn.resident import use_huge_pages

LOG_ONLY = {"log_only": True}
"""``extra=LOG_ONLY`` of a logging call: for the log files, not for the screen."""
LOST_OUTPUT = 74  # EX_IOERR
_TELLER_SECONDS = 5.0


def run_main(main: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    0; 2 after a UserError, 3 if that is an IncompleteError; 75 after a JobError; 128 + signal where
    a signal ended it; 74 where standard output was lost on the way, without which the command goes
    on: its files are worth more than its words. (Of a rank that torchrun would start again for it,
    0: it would do the same once more.) The reason is printed as one line to stderr: a UserError as
    ``error: ...`` by its teller, which is one rank where every rank raises the same one, a JobError
    by the first rank that knows of it. Any other exception is a bug and passes through with its
    stack trace. What the library logs meanwhile is shown, see ``shown_log``. The process is taken
    to be ours: see ``use_huge_pages``.
    """
    use_huge_pages()
    with _kept_going() as output:
        try:
            code = _code_of(main)
        except SystemExit as leaving:  # after --help
            if leaving.code:
                raise
            code = 0
        output.flush()
    return code or (_code_of_loss() if output.lost else 0)


def _code_of(main: Callable[[], None]) -> int:
    """See ``run_main``."""
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


class _Output:
    """Standard output that may be lost: the rest of it is dropped, which is told once.

    Attributes:
        lost: whether anything was dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.lost = False
        self._stream: Any = stream
        if stream is None:
            self._lose("it is closed")

    def write(self, text: str) -> int:
        """As any stream, without failing."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            if isinstance(error, UnicodeError):  # that is another matter, and ours
                raise
            self._lose(getattr(error, "strerror", None) or str(error))
        return len(text)

    def flush(self) -> None:
        """As any stream, without failing."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(getattr(error, "strerror", None) or str(error))

    def let_go(self, stream: TextIO | None) -> None:
        """Close what has taken the place of ``stream``, if anything has."""
        if self._stream is not stream:
            self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, reason: str) -> None:
        if _is_closed(1) if self._stream is None else _is_standard_output(self._stream):
            _point_nowhere(1)
        self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - see let_go
        if self.lost or _is_other_rank():
            return
        self.lost = True
        line = (
            f"warning: standard output cannot be written ({reason}); the command goes on without "
            f"it and ends with code {_code_of_loss()}, files are written as ever"
        )
        _say(line, unless=False)


def _code_of_loss() -> int:
    again, most = (
        os.environ.get(f"TORCHELASTIC_{x}", "") for x in ("RESTART_COUNT", "MAX_RESTARTS")
    )
    restarts = again.isdecimal() and most.isdecimal() and int(again) < int(most)
    return 0 if restarts else LOST_OUTPUT


def _point_nowhere(descriptor: int) -> None:
    """Python writes what it has kept when it ends, and no other file may take this place."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _is_standard_output(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):  # it is in memory, or closed
        return False


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


@contextmanager
def _kept_going() -> Iterator[_Output]:
    """Go on where standard output cannot be written, because it is full, closed or not read."""
    before = sys.stdout
    output = _Output(before)
    sys.stdout = cast(TextIO, output)
    try:
        yield output
    finally:
        sys.stdout = before
        output.let_go(before)


def leave(code: int) -> NoReturn:
    """End this process, for scripts that are nothing but a command.

    A rank of a job does what is registered with ``atexit`` and ends there: a thread of a library
    that is still inside C++, waiting for a network, aborts an interpreter that is taken down, and
    the exit code with it.
    """
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # of a reader that is gone
                if stream is not None:
                    stream.flush()
        os._exit(code)
    sys.exit(code)


def _is_told_elsewhere(error: UserError) -> bool:
    if error.teller == "rank" or not _is_other_rank():
        return False
    # the first rank of another machine may be the only one that knows
    return error.teller == "job" or os.environ.get("LOCAL_RANK") != "0"


def _say(text: str, *, unless: bool) -> None:
    if not unless:
        with suppress(OSError, ValueError):  # where else to say it
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


@contextmanager
def hushed(hush: bool = True) -> Iterator[None]:
    """Of what ``shown_log`` shows, leave out all but warnings and errors, if that is asked."""
    handlers = logging.getLogger("distributed_ignn").handlers
    shown = [handler for handler in handlers if hush and isinstance(handler, _Plain)]
    for handler in shown:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler in shown:
            handler.setLevel(logging.INFO)


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
        with suppress(OSError, ValueError):
            print(prefix + self.format(record), file=self._stream or sys.stderr, flush=True)


def _is_other_rank() -> bool:
    """Whether a rank 0 reports for this process; one with a meaningless RANK reports itself."""
    rank, world_size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return rank.isdecimal() and world_size.isdecimal() and 0 < int(rank) < int(world_size)
