"""What a user is meant to read when a command ends early, and the exit code that goes with it."""

from __future__ import annotations

import signal
from typing import Literal

Teller = Literal["machine", "job", "rank"]


class UserError(Exception):
    """Bad input from the user: one line naming the value, the rule and the way out.

    Entry points print it as ``error: ...`` and exit with code 2, without a stack trace. A
    programming error is never wrapped in it.

    Attributes:
        teller: who prints it where there are several ranks: the first rank of each machine, as long
            as ranks have not met; the first of the job, once all of them raise it alike; or every
            rank that raises it.
        exit_code: of the command that ends with it.
    """

    teller: Teller = "machine"
    exit_code = 2


class NoEffectError(UserError):
    """A setting that would change nothing.

    Args:
        message: one line for the user.
        setting: its dotted name.
    """

    def __init__(self, message: str, setting: str) -> None:
        super().__init__(message)
        self.setting = setting

    def __reduce__(self) -> tuple[type[NoEffectError], tuple[str, str]]:
        """See ``Stopped``."""
        return NoEffectError, (str(self), self.setting)


class IncompleteError(UserError):
    """A table is written and some of its runs are missing.

    Entry points print it as any UserError and exit with code 3, so that a script can tell a table
    with gaps from a command that did nothing.
    """

    exit_code = 3


class JobError(Exception):
    """The job was hit from outside: a rank was lost or stopped answering, the network went silent.

    Entry points print it as ``error: ...`` and exit with code 75 (EX_TEMPFAIL: the same command may
    work again), so that whoever started the ranks starts them again.

    Args:
        message: one line for the user.
        told: whether another rank has told the user already.
    """

    EXIT_CODE = 75

    def __init__(self, message: str, *, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


class Stopped(Exception):  # noqa: N818 - not an error
    """The run ended because it was asked to, after its step and a checkpoint.

    Args:
        signum: the signal that asked; the exit code is 128 + signum, as shells have it.
        message: one line for the user.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str]]:
        """An exception is copied by its message alone unless it says otherwise."""
        return Stopped, (self.signum, str(self))

    @property
    def exit_code(self) -> int:
        return 128 + self.signum

    @staticmethod
    def name(signum: int) -> str:
        """``SIGTERM`` for 15; the number where it has no name."""
        try:
            return signal.Signals(signum).name
        except ValueError:
            return f"signal {signum}"
