"""Train every combination of some settings and keep the one that validates best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from rich.console import Console

from distributed_ignn.cli import run_main
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import parse_options_and_run
from distributed_ignn.config.options import (
    Options,
    OutputFolder,
    Seeds,
    Shown,
    check_outputs,
)
from distributed_ignn.lab.studies.outcome import spread
from distributed_ignn.lab.studies.search import Request, search, table
from distributed_ignn.launchers.this_rank import on_this_rank

_EXAMPLES = """\
examples:
  ignn search --dataset citeseer --grid model.hidden=32,64 train.lr=0.002,0.005 --seeds 0,1
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn search --dataset acm \\
    --grid model.kappa=0.8,0.95
  ignn train --config runs/search-citeseer/best.yaml

Each setting of the grid is a flag of ignn train without its dashes; the other settings are given
as for ignn train. The mean of the best validation metric over the seeds decides. In --out:
search.json, best.yaml with all settings of the chosen combination, and runs/, from which a search
that was interrupted goes on. In a checkout, launch/search.py is the same command.
"""


def _split_grid(texts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Values by dotted name, of texts such as ``model.hidden=32,64``."""
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name, parts = name.removeprefix("--").replace("-", "_"), tuple(values.split(","))
        if not equals or not all(parts):
            raise ValueError(
                f"has {text!r}: name a setting and its values, as in model.hidden=32,64"
            )
        if name in grid or len(set(parts)) < len(parts):
            raise ValueError(f"names {name} or one of its values twice; leave one out")
        grid[name] = parts
    return grid


def _check_grid(texts: tuple[str, ...]) -> tuple[str, ...]:
    _split_grid(texts)
    return texts


class _Options(Options):
    grid: Annotated[tuple[str, ...], AfterValidator(_check_grid), Shown("KEY=VALUE,...")] = Field(
        description="settings and the values to try, in all combinations"
    )
    seeds: Seeds = Field((0,), description="a run of each combination for each")
    out: OutputFolder | None = Field(None, description="runs/search-DATASET if not given")


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options, config = parse_options_and_run(
        _Options, argv, name="ignn search", about=__doc__, more=_EXAMPLES
    )
    check_outputs(options)
    out = options.out or Path("runs") / f"search-{Path(config.dataset).stem}"
    request = Request(config, _split_grid(options.grid), options.seeds, out.absolute())
    request.combinations()  # refuse what is wrong before any rank joins
    on_this_rank(lambda comm: _search(request, comm), config.device, config.comm)


def _search(request: Request, comm: Communicator) -> None:
    console = Console(stderr=True, highlight=False)
    results, chosen = search(
        request, comm, lambda text: console.print(text, soft_wrap=True) if comm.is_main else None
    )
    if not comm.is_main:
        return
    shown = Console(highlight=False)
    shown.print(table(results, chosen["metric"]))
    mean, deviation = spread(chosen["test"])
    settings = " ".join(f"--{name} {value}" for name, value in chosen["settings"].items())
    shown.print(f"chosen: {settings}", soft_wrap=True)
    shown.print(f"test {chosen['metric']} of the chosen: {mean:.4f} +- {deviation:.4f}")
    shown.print(f"written: {request.out}/search.json, best.yaml", soft_wrap=True)
