"""Settings of a run that depend on the graph: what ``auto`` stands for, and what is not read.

The rule reads counts of the whole graph, so every rank, every cut and every resumed run finds the
same numbers. What it chooses was measured on validation nodes (docs/experiments.md, section
Defaults for any graph).
"""

from __future__ import annotations

from typing import NamedTuple

from distributed_ignn.config.explicit import is_explicit
from distributed_ignn.config.sections import RunConfig

FEW_LABELS = 100
"""Training nodes a class below which labels are few, and unlabelled nodes have to help."""


class _Regularisation(NamedTuple):
    """The settings that may be left open."""

    weight_decay: float
    label_smoothing: float
    consistency: float


_FEW = _Regularisation(weight_decay=5e-3, label_smoothing=0.1, consistency=1.0)
_MANY = _Regularisation(weight_decay=5e-4, label_smoothing=0.0, consistency=0.0)


def decided(
    config: RunConfig, trained: int, classes: int, features: int | None = None
) -> RunConfig:
    """The run with numbers in the place of ``auto`` in ``train``, and what is not read left out.

    That is what ``model`` says of features where there are none. Whoever asks whether anything in
    b(X) is dropped, or what its backward pass keeps, then need not know of that.

    Args:
        config: the run; a copy is returned where anything changes.
        trained: training nodes of the whole graph.
        classes: of the whole graph; 0 where they are not known, which counts as few classes.
        features: columns of the whole graph, 0 without any; None where ``model`` is not asked for.
    """
    found, model = _found(config, trained, classes), config.model
    if features == 0 and not is_explicit(model.kind):
        model = model.without_features
    if not found and model == config.model:
        return config
    train = config.train.model_copy(update=found)
    return config.model_copy(update={"train": train, "model": model})


def what_was_decided(config: RunConfig, trained: int, classes: int) -> str | None:
    """In a line, what ``decided`` puts in the place of ``auto``; None where nothing is open."""
    found = _found(config, trained, classes)
    if not found:
        return None
    values = ", ".join(f"{name} {value:g}" for name, value in found.items())
    return f"{trained / max(classes, 1):,.0f} training nodes a class: train's auto is {values}"


def _found(config: RunConfig, trained: int, classes: int) -> dict[str, float]:
    chosen = (_FEW if trained < FEW_LABELS * classes else _MANY)._asdict()
    return {name: value for name, value in chosen.items() if getattr(config.train, name) == "auto"}
