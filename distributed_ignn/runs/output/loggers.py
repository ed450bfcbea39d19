"""Loggers: programs that are told the figures of every epoch, besides metrics.jsonl.

A logger is a class of the shape of ``Logger`` whose name stands in ``LOGGERS``. Only rank 0 has
them. (The pattern is torchtitan's container of loggers.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter


class Logger(Protocol):
    """Says what a program that is told the figures of a run can do."""

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Take the figures of an epoch, by name.

        Raises:
            OSError: they cannot be written; the run ends and says so.
        """
        ...

    def close(self) -> None:
        """Write what is left and let go; nothing is raised."""
        ...


class TensorBoard:
    """Writes events that ``tensorboard --logdir`` shows.

    Args:
        folder: output folder of the run.
        epochs_done: events after this epoch are of a course that the run has left.
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self._hook = threading.excepthook
        threading.excepthook = _quiet_about_events
        self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """See ``Logger``."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        """See ``Logger``."""
        with suppress(OSError):  # TensorBoard's own thread met a full disk
            self._writer.close()
        if threading.excepthook is _quiet_about_events:
            threading.excepthook = self._hook


def _quiet_about_events(args: threading.ExceptHookArgs) -> None:
    """Pass over a full disk in TensorBoard's own thread: the next epoch that is logged says so."""
    of_events = type(args.thread).__name__ == "_AsyncWriterThread"
    if not (of_events and isinstance(args.exc_value, OSError)):
        threading.__excepthook__(args)


LOGGERS: list[Callable[[Path, int], Logger]] = [TensorBoard]
"""What makes each logger from the output folder of a run and the epochs that it has done."""


class Loggers:
    """Calls all of ``LOGGERS`` as one.

    Args:
        folder: output folder of the run.
        epochs_done: epochs after this one are logged again.
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self._all = [make(folder, epochs_done) for make in LOGGERS]

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """See ``Logger``."""
        for each in self._all:
            each.log(epoch, figures)

    def close(self) -> None:
        """See ``Logger``."""
        for each in self._all:
            each.close()
