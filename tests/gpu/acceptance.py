"""Runs the sections of ``make gpu`` one after the other and writes down what they find."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json
from tests.gpu.prepared_graphs import Preparation
from tests.gpu.sections import (
    agreement,
    ceilings,
    exchange_speed,
    launch_counts,
    leaks,
    missing_ranks,
    product_speed,
    profile_file,
    repeats,
    surroundings,
    training_speed,
)
from tests.gpu.setting import SIZES, Budget, Setting, kind_of_machine
from tests.gpu.verdicts import Check, tabulate

SECONDS = 590.0
"""For everything, so that a limit of ten minutes is kept."""
_PATIENCE = 4.0
"""Times as much where only the checks are tried: a busy CPU does what GPUs were counted on for."""

_FIGURES = {
    "gpu": "measured on this machine's GPUs",
    "emulated": "of a CPU under an emulated GPU; no figure is a GPU's",
    "cpu": "of a CPU; no figure is a GPU's",
}

Look = Callable[[Budget, Preparation], Iterator[Check]]


def _alone(look: Callable[[Budget], Iterator[Check]]) -> Look:
    """A section that needs no large graph."""
    return lambda budget, graphs: look(budget)


#: By name: what is looked at, and seconds that it may take. Large graphs are made meanwhile. The
#: profile, which users go on with, is written in time even where all before it takes its limit.
SECTIONS: dict[str, tuple[Look, float]] = {
    "environment": (_alone(surroundings.look), 30.0),
    "ceilings": (_alone(ceilings.look), 40.0),
    "agreement": (_alone(agreement.look), 150.0),
    "determinism": (_alone(repeats.look), 60.0),
    "products": (product_speed.look, 140.0),
    "host": (launch_counts.look, 60.0),
    "profile": (_alone(profile_file.look), 80.0),
    "exchange": (exchange_speed.look, 60.0),
    "lost ranks": (_alone(missing_ranks.look), 120.0),
    "leaks": (_alone(leaks.look), 60.0),
    "epochs": (training_speed.look, 150.0),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for.

    Args:
        device: cuda or cpu.
        sizes: a key of ``SIZES``.
        sections: keys of ``SECTIONS``; all of them if empty.
        report: where the JSON goes.
    """

    device: str
    sizes: str
    sections: tuple[str, ...]
    report: Path


@dataclass(slots=True)
class _Found:
    """Of one section."""

    name: str
    checks: list[Check]
    seconds: float = 0.0


def run(options: Options) -> int:
    """Look at everything, show and write it; the number of checks that failed.

    Raises:
        UserError: there is no GPU, no such section, or the report cannot be written.
    """
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        raise UserError(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    kind = kind_of_machine(options.device)
    console = Console(highlight=False)
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="gpu-graphs-") as folder:
        gpus = 0 if kind == "cpu" else torch.cuda.device_count()
        sizes = SIZES[options.sizes]
        patience = _PATIENCE if sizes.brief else 1.0
        setting = Setting(kind, gpus, sizes, folder, started + SECONDS * patience)
        console.print(f"{gpus} GPUs; figures are {_FIGURES[kind]}")
        with closing(Preparation(setting)) as graphs:
            names = options.sections or tuple(SECTIONS)
            found = [_look(name, setting, graphs, console, options.report) for name in names]
    seconds = time.time() - started
    console.print(tabulate(f"make gpu: {_FIGURES[kind]}", [(f.name, f.checks) for f in found]))
    failed = sum(check.verdict == "failed" for one in found for check in one.checks)
    console.print(f"{failed} checks failed; {seconds:.0f} s; {options.report}")
    _write(options, setting, found, seconds)
    return failed


def _look(
    name: str, setting: Setting, graphs: Preparation, console: Console, report: Path
) -> _Found:
    """One section; what it raises is a check that failed, and what it found before stays."""
    look, seconds = SECTIONS[name]
    seconds *= _PATIENCE if setting.sizes.brief else 1.0
    found, started = _Found(name, []), time.time()
    console.print(f"{name}: up to {seconds:.0f} s")

    def add(check: Check) -> None:
        found.checks.append(check)
        console.print(
            f"  {time.time() - started:6.1f} s  {check.line()}", soft_wrap=True, markup=False
        )

    try:
        for check in look(Budget(setting, seconds, report), graphs):
            add(check)
    except Exception as error:
        if not isinstance(error, UserError):
            console.print(traceback.format_exc(), soft_wrap=True, markup=False)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        add(Check(f"{name} came to its end", "failed", note=lines[-1]))
    found.seconds = time.time() - started
    return found


def _write(options: Options, setting: Setting, found: list[_Found], seconds: float) -> None:
    content: dict[str, Any] = {
        "kind": setting.kind,
        "figures_are_of_a_gpu": setting.real,
        "sizes": options.sizes,
        "gpus": setting.gpus,
        "torch": torch.__version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "sections": [
            {
                "name": one.name,
                "seconds": round(one.seconds, 1),
                "budget": SECTIONS[one.name][1],
                "checks": [check.as_json() for check in one.checks],
            }
            for one in found
        ],
    }
    try:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(options.report, content)
    except OSError as error:
        raise UserError(f"cannot write {options.report}: {error.strerror or error}") from error
