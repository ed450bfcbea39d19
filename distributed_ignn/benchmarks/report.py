"""Interleaved timing on all ranks, and how the figures are shown and stored."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.files import atomic_write_json


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured variant beside its baseline.

    Args:
        name: what was measured.
        value: in ``unit``.
        unit: seconds, evaluations, bytes, ...
        baseline: name of the variant that the ratio refers to.
        ratio: baseline value over this value; above 1 is better than the baseline.
    """

    name: str
    value: float
    unit: str
    baseline: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of one benchmark, with what they were measured on."""

    benchmark: str
    settings: Mapping[str, Any]
    figures: tuple[Figure, ...] = field(default=())

    def show(self, console: Console) -> None:
        """Print a table."""
        table = Table(title=self.benchmark)
        for column in ("variant", "value", "unit", "ratio", "baseline"):
            table.add_column(column, justify="right" if column in ("value", "ratio") else "left")
        for figure in self.figures:
            table.add_row(
                figure.name,
                f"{figure.value:.4g}",
                figure.unit,
                f"{figure.ratio:.2f}",
                figure.baseline,
            )
        console.print(table)
        console.print("  ".join(f"{key}={value}" for key, value in self.settings.items()))

    def write(self, path: Path) -> None:
        """Store as JSON; a variant that never arrives has value null."""
        content = asdict(self)
        for figure in content["figures"]:
            for key in ("value", "ratio"):
                if figure[key] != figure[key] or figure[key] == float("inf"):
                    figure[key] = None
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, content)


def compare(values: Mapping[str, float], unit: str, baseline: str) -> tuple[Figure, ...]:
    """Figures of all variants against one of them."""
    base = values[baseline]
    return tuple(
        Figure(name, value, unit, baseline, base / value if value else float("inf"))
        for name, value in values.items()
    )


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, comm: Communicator
) -> dict[str, float]:
    """Median seconds of each variant over ``rounds`` rounds that run all of them in turn.

    A round's time is that of the slowest rank; every rank starts together. One round before the
    measured ones warms caches up.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, variant in variants.items():
            comm.barrier()
            _finish_device(comm)
            started = time.perf_counter()
            variant()
            _finish_device(comm)
            elapsed = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
            slowest = float(comm.max(elapsed))
            if round_number:
                times[name].append(slowest)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _finish_device(comm: Communicator) -> None:
    if comm.device.type == "cuda":
        torch.cuda.synchronize(comm.device)
