"""MLflow: to ``MLFLOW_TRACKING_URI``, or into a file below the output folder.

A run that is resumed, or goes back, goes on in the same one: its id lies in the output folder.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.runs.output.loggers.protocol import Course

_ID = "mlflow-run"
_EXPERIMENT = "distributed_ignn"
_BATCH = 100  # parameters that a server takes at once
_LONGEST = 500  # letters of a parameter


class MLflow:
    """See ``Logger``.

    Args:
        told: of the run.

    Raises:
        UserError: a run cannot be begun there.
    """

    def __init__(self, told: Course) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{told.folder}/mlflow.db"
        kept = told.folder / _ID
        try:
            with _quiet():
                self._client = MlflowClient(tracking_uri=place, registry_uri=place)
            if kept.is_file():
                self._run = kept.read_text().strip()
                self._client.update_run(self._run, status="RUNNING")
                return
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
            found = self._client.get_experiment_by_name(name)
            number = found.experiment_id if found else self._client.create_experiment(name)
            run = self._client.create_run(number, run_name=told.folder.name)
            self._run = run.info.run_id
            settings = [Param(k, str(v)[:_LONGEST]) for k, v in told.settings.items()]
            for first in range(0, len(settings), _BATCH):
                self._client.log_batch(self._run, params=settings[first : first + _BATCH])
        except Exception as error:  # its own, of servers and databases
            raise UserError(
                f"train.loggers: MLflow cannot begin a run at {place} ({in_one_line(error)}); "
                "correct MLFLOW_TRACKING_URI, or unset it for a file in the output folder"
            ) from error
        atomic_write_text(kept, self._run + "\n")

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """See ``Logger``."""
        self._send(epoch, figures)

    def finish(self, summary: Mapping[str, float]) -> None:
        """See ``Logger``."""
        self._send(0, {f"final/{name}": value for name, value in summary.items()})
        self._client.set_terminated(self._run)

    def _send(self, epoch: int, figures: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, float(value), now, epoch) for name, value in figures.items()]
        try:
            self._client.log_batch(self._run, metrics=metrics)
        except Exception as error:  # of a server that is gone
            raise OSError(f"MLflow: {in_one_line(error)}") from error

    def close(self) -> None:
        """See ``Logger``."""
        with suppress(Exception):
            if self._client.get_run(self._run).info.status == "RUNNING":
                self._client.set_terminated(self._run, status="KILLED")


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow tells of the tables that it makes; its own levels come back."""
    told = [logging.getLogger(name) for name in ("mlflow.store", "alembic")]
    before = [logger.level for logger in told]
    for logger in told:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(told, before, strict=True):
            logger.setLevel(level)
