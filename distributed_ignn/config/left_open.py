"""Settings of training that may be left to the graph: what ``auto`` stands for there.

The rule reads counts of the whole graph, so every rank, every cut and every resumed run finds the
same numbers. What it chooses was measured on validation nodes (docs/experiments.md, section
Defaults for any graph).
"""

from __future__ import annotations

from typing import NamedTuple

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


def decided(config: RunConfig, trained: int, classes: int) -> RunConfig:
    """The run with numbers in the place of ``auto`` in ``train``.

    Args:
        config: the run; a copy is returned where it leaves anything open.
        trained: training nodes of the whole graph.
        classes: of the whole graph; 0 where they are not known, which counts as few classes.
    """
    found = _found(config, trained, classes)
    if not found:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update=found)})


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
