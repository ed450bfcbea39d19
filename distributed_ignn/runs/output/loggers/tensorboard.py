"""Events that ``tensorboard --logdir`` shows, and the settings beside the final figures."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from distributed_ignn.runs.output.loggers.protocol import Course

_FIGURES = ("best_val", "test_at_best_val", "seconds_total")


class TensorBoard:
    """See ``Logger``.

    Args:
        told: of the run.
    """

    def __init__(self, told: Course) -> None:
        self._hook = threading.excepthook
        threading.excepthook = _quiet_about_events
        self._settings = dict(told.settings)
        self._writer = SummaryWriter(str(told.folder), purge_step=told.epochs_done + 1)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """See ``Logger``."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)

    def finish(self, summary: Mapping[str, float]) -> None:
        """See ``Logger``; settings and final figures go to the tab of hyper-parameters."""
        figures = {f"final/{name}": summary[name] for name in _FIGURES if name in summary}
        writer = self._writer._get_file_writer()
        # add_hparams of the library would write them into a folder of their own
        for part in hparams(self._settings, figures):
            writer.add_summary(part)
        for name, value in figures.items():
            self._writer.add_scalar(name, value)

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
