"""What a logger is, what it is told of a run, and how it stands in the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Course:
    """What a logger is told when a run begins or goes on.

    Args:
        folder: of the run.
        epochs_done: a run that has gone back, or is resumed, goes on after this epoch; what was
            logged of later ones is of a course that it has left.
        settings: by dotted name.
    """

    folder: Path
    epochs_done: int
    settings: Mapping[str, Value]


class Logger(Protocol):
    """Says what a program that is told the figures of a run can do."""

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Take the figures of an epoch, by tag, such as ``loss/training``.

        Raises:
            OSError: they cannot be written; the run ends and says so.
        """
        ...

    def finish(self, summary: Mapping[str, float]) -> None:
        """Take the numbers of summary.json, once, at the end of a run.

        Raises:
            OSError: as ``log``.
        """
        ...

    def close(self) -> None:
        """Write what is left and let go; nothing is raised."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """An entry of the list.

    Args:
        make: a logger of a run.
        summary: for the help.
        needs: the module that has to be installed, or None.
    """

    make: Callable[[Course], Logger]
    summary: str = ""
    needs: str | None = None
