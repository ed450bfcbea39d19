"""Loggers: programs that are told the figures of a run, besides metrics.jsonl.

``train.loggers`` names them. A logger is a class of the shape of ``Logger`` that stands in
``LOGGERS`` as a ``Backend``; an installed package adds its own by an entry point of the group
``distributed_ignn.loggers`` that names a ``Backend``, and a program by entering one. Only rank 0
has them. (The pattern is torchtitan's container of loggers.)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from distributed_ignn.config.dotted import dotted
from distributed_ignn.errors import UserError
from distributed_ignn.runs.output.loggers.protocol import Backend, Course, Logger

__all__ = ["LOGGERS", "Backend", "Course", "Logger", "Loggers", "check_loggers", "course"]

NONE = "none"
_GROUPS = {
    "loss": "loss/training",
    "solver_loss": "loss/solver",
    "local_loss": "loss/local_steps",
    "train_metric": "metric/training",
    "val_metric": "metric/validation",
    "best_val": "metric/best_validation",
    "residual": "residual/forward",
    "residual_adjoint": "residual/adjoint",
    "tolerance": "residual/tolerance",
    "seconds": "seconds/epoch",
    "solver_seconds": "seconds/solver",
    "bytes_sent": "communication/bytes_sent",
    "exchanges": "communication/exchanges",
}
_PREFIXES = ("evaluations", "converged", "local")


def _lazily(module: str, name: str) -> Callable[[Course], Logger]:
    """A class that is imported when it is first needed; some take seconds."""

    def make(course: Course) -> Logger:
        found: Logger = getattr(importlib.import_module(f"{__name__}.{module}"), name)(course)
        return found

    return make


class _Backends(dict[str, Backend]):
    """By name; those of installed packages are looked up when a name is not known."""

    def __missing__(self, name: str) -> Backend:
        self._load()
        if name not in self:
            raise KeyError(name)
        return self[name]

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name):
            self._load()
        return super().__contains__(name)

    def _load(self) -> None:
        for point in entry_points(group="distributed_ignn.loggers"):
            if not super().__contains__(point.name):
                self[point.name] = point.load()


LOGGERS: dict[str, Backend] = _Backends(
    tensorboard=Backend(
        _lazily("tensorboard", "TensorBoard"), "events for tensorboard --logdir", "tensorboard"
    ),
    wandb=Backend(
        _lazily("wandb", "WeightsAndBiases"), "Weights & Biases, by its environment", "wandb"
    ),
    mlflow=Backend(
        _lazily("mlflow", "MLflow"), "MLFLOW_TRACKING_URI, else a folder of the run", "mlflow"
    ),
)
"""The loggers there are, by name."""


def chosen(names: str) -> list[str]:
    """The names in ``train.loggers``."""
    return [] if names == NONE else names.split(",")


def check_loggers(names: str) -> None:
    """Refuse a logger whose package is not installed, before data is read.

    Raises:
        UserError: naming it.
    """
    for name in chosen(names):
        needs = LOGGERS[name].needs
        if needs is not None and importlib.util.find_spec(needs) is None:
            raise UserError(
                f"train.loggers = {names}: {needs} is not installed; pip install {needs}, or leave "
                f"{name} out"
            )


def course(folder: Any, epochs_done: int, settings: Mapping[str, Any]) -> Course:
    """What loggers are told at the start: the settings of a run by dotted name.

    Args:
        folder: of the run.
        epochs_done: see ``Course``.
        settings: sections and keys.
    """
    plain = {
        name: value if isinstance(value, bool | int | float | str) else _text(value)
        for name, value in dotted(settings)
    }
    return Course(folder, epochs_done, plain)


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def grouped(name: str) -> str:
    """The tag of a figure: what belongs together stands together."""
    if name in _GROUPS:
        return _GROUPS[name]
    first, _, rest = name.partition("_")
    return f"{first}/{rest}" if first in _PREFIXES and rest else f"run/{name}"


class Loggers:
    """Calls several loggers as one.

    Args:
        names: ``train.loggers``.
        told: of the run.
    """

    def __init__(self, names: str, told: Course) -> None:
        self._all = [LOGGERS[name].make(told) for name in chosen(names)]

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """See ``Logger``; figures by the names of metrics.jsonl."""
        tagged = {grouped(name): float(value) for name, value in figures.items()}
        for each in self._all:
            each.log(epoch, tagged)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """See ``Logger``; of a summary, what are numbers."""
        numbers = {
            name: value
            for name, value in summary.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for each in self._all:
            each.finish(numbers)

    def close(self) -> None:
        """See ``Logger``."""
        for each in self._all:
            each.close()
