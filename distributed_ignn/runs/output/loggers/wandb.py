"""Weights & Biases: project, account and mode are those of its environment.

A run that is resumed, or goes back, goes on in the same one: its id lies in the output folder. The
figure ``epoch`` is what all others are shown over, since its own count of steps never goes back.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress

from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.runs.output.loggers.protocol import Course

_ID = "wandb-id"
_PROJECT = "distributed_ignn"


class WeightsAndBiases:
    """See ``Logger``.

    Args:
        told: of the run.

    Raises:
        UserError: a run cannot be begun there.
    """

    def __init__(self, told: Course) -> None:
        import wandb

        kept = told.folder / _ID
        number = kept.read_text().strip() if kept.is_file() else secrets.token_hex(4)
        atomic_write_text(kept, number + "\n")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=os.environ.get("WANDB_NAME", told.folder.name),
                dir=str(told.folder),
                id=number,
                resume="allow",
                config=dict(told.settings),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # its own, of network and account
            raise UserError(
                f"train.loggers: Weights & Biases cannot begin a run ({in_one_line(error)}); "
                "WANDB_MODE=offline keeps it on this machine until wandb sync"
            ) from error
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """See ``Logger``."""
        self._run.log({"epoch": epoch, **figures})

    def finish(self, summary: Mapping[str, float]) -> None:
        """See ``Logger``."""
        self._run.summary.update(dict(summary))

    def close(self) -> None:
        """See ``Logger``."""
        with suppress(Exception):  # of a network that is gone
            self._run.finish()
