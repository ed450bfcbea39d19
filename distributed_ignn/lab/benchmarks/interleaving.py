"""Interleaved timing on all ranks, and how the figures are shown and stored."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

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
        section: what the figures of one table have in common, besides the baseline.
    """

    name: str
    value: float
    unit: str
    baseline: str
    ratio: float
    section: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of one benchmark, with what they were measured on.

    Args:
        benchmark: its name.
        settings: what was measured on.
        figures: against their baselines.
        rows: courses behind the figures, where there are any.
    """

    benchmark: str
    settings: Mapping[str, Any]
    figures: tuple[Figure, ...] = field(default=())
    rows: tuple[Mapping[str, Any], ...] = field(default=())

    def tables(self) -> tuple[Table, ...]:
        """One per section and baseline."""
        groups = groupby(self.figures, key=lambda figure: (figure.section, figure.baseline))
        return tuple(
            _table(
                ", ".join(part for part in (self.benchmark, section) if part), base, tuple(group)
            )
            for (section, base), group in groups
        )

    def show(self, console: Console) -> None:
        """Print the tables and what was measured on."""
        for table in self.tables():
            console.print(table)
        console.print("  ".join(f"{key}={value}" for key, value in self.settings.items()))

    def write(self, path: Path) -> None:
        """Store as JSON; a variant that never arrives has value null."""
        content = asdict(self)
        for figure in content["figures"]:
            for key in ("value", "ratio"):
                if not math.isfinite(figure[key]):
                    figure[key] = None
        if not self.rows:
            del content["rows"]
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, content)


def _table(title: str, baseline: str, figures: tuple[Figure, ...]) -> Table:
    """A row per variant; per unit a column with the value and one with the ratio."""
    table = Table(title=f"{title}; ratio = {baseline} / variant")
    table.add_column("variant")
    units = dict.fromkeys(figure.unit for figure in figures)
    for unit in units:
        table.add_column(unit, justify="right")
        table.add_column("ratio", justify="right")
    cells = {(f.name, f.unit): (_shown(f.value, ".4g"), _shown(f.ratio, ".2f")) for f in figures}
    for name in dict.fromkeys(figure.name for figure in figures):
        table.add_row(name, *chain.from_iterable(cells.get((name, u), ("", "")) for u in units))
    return table


def _shown(value: float, style: str) -> str:
    return format(value, style) if math.isfinite(value) else "-"


def compare(
    values: Mapping[str, float], unit: str, baseline: str, section: str = ""
) -> tuple[Figure, ...]:
    """Figures of all variants against one of them.

    A variant that never arrives (infinite) has ratio 0, or nan if the baseline never does either.
    """
    base = values[baseline]
    return tuple(
        Figure(name, value, unit, baseline, _ratio(base, value), section)
        for name, value in values.items()
    )


def _ratio(base: float, value: float) -> float:
    """base / value; two methods that need nothing are equally good."""
    if value == 0.0:
        return 1.0 if base == 0.0 else math.inf
    return base / value


def largest(values: Mapping[str, float], comm: Communicator) -> dict[str, float]:
    """Each value's largest over ranks."""
    found = comm.max(torch.tensor(list(values.values()), dtype=torch.float64))
    return dict(zip(values, found.tolist(), strict=True))


def check_alike(
    results: Mapping[str, tuple[Tensor, ...]], comm: Communicator, tolerance: float = 1e-4
) -> None:
    """Make sure that variants compute the same before their times are compared.

    Args:
        results: of every variant, the same number of tensors of the same shapes.
        tolerance: on the largest difference, relative to the first variant's largest entry.

    Raises:
        RuntimeError: a variant differs from the first one, on every rank.
    """
    first, *_ = results.values()
    for name, found in results.items():
        pairs = list(zip(first, found, strict=True))
        worst = [max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)]
        scale = [max((float(a.abs().max()) for a, _ in pairs if a.numel()), default=0.0)]
        most = comm.max(torch.tensor(worst + scale, dtype=torch.float64))
        if not float(most[0]) <= tolerance * float(most[1]):
            raise RuntimeError(f"{name} differs from {next(iter(results))} by {float(most[0])}")


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
            finish_device(comm)
            started = time.perf_counter()
            variant()
            finish_device(comm)
            elapsed = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
            slowest = float(comm.max(elapsed))
            if round_number:
                times[name].append(slowest)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def finish_device(comm: Communicator) -> None:
    """Wait until the device has done what it was told, so that a clock tells the truth."""
    if comm.device.type == "cuda":
        torch.cuda.synchronize(comm.device)
