"""Find settings for a graph by validation alone, and write them as a file for ignn train."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from rich.console import Console

from distributed_ignn.cli import run_main
from distributed_ignn.config import RunConfig, parse_options_and_settings, resolve_run
from distributed_ignn.config.dotted import names_of
from distributed_ignn.config.idle import refuse_idle
from distributed_ignn.config.keywords import setting_names
from distributed_ignn.config.options import (
    Bare,
    Count,
    Duration,
    Options,
    OutputFolder,
    Seeds,
    Shown,
    check_outputs,
)
from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import UserError
from distributed_ignn.lab.studies.outcome import spread
from distributed_ignn.lab.studies.search.halving import FINALISTS, KEPT, SHARES
from distributed_ignn.lab.studies.search.ledger import (
    BEST,
    OWN,
    RECORD,
    described,
    doubt,
    validation,
)
from distributed_ignn.lab.studies.search.session import (
    TRIALS,
    Request,
    Search,
    search_here,
    search_locally,
)
from distributed_ignn.lab.studies.search.space import SPACE, variants
from distributed_ignn.launchers.local_job import killable
from distributed_ignn.launchers.this_rank import on_this_rank

_EXAMPLE = "ignn search graph.npz --budget 10min"
_EXAMPLES = f"""\
examples:
  {_EXAMPLE}
  ignn search citeseer --trials 40 --seeds 0,1,2 --out runs/found
  ignn search graph.npz --jobs 4 --budget 1h
  ignn search graph.npz --gpus 8 --ranks-per-trial 2 --budget 2h
  ignn search graph.npz --trials 30 --model.hidden 64 --grid model.kappa=0.5,0.8
  ignn search citeseer --grid model.hidden=32,64 train.lr=0.002,0.005 --seeds 0,1
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn search acm --trials 20
  ignn train --config runs/search-graph/best.yaml

The first trial has the settings as they are, the next have those that served some other graph, and
later ones are drawn, more and more of them near the best. A trial trains to {SHARES[0]:.0%} of
train.epochs; of the trials that have come so far one in {KEPT} goes on to {SHARES[1]:.0%}, and one
in {KEPT} of those to the end, each from its checkpoint. The best, and the first trials as far as
there is time, are trained to the end. With a --budget, nothing begins that is not expected to end
within it. Without --budget, --trials or --grid there are {TRIALS} trials. With several --seeds the
{FINALISTS} best trials are trained with all of them, and their mean decides.

A setting that is given on the command line stays as it is; --grid restricts others to some values,
or adds to them. --grid without --trials and --budget trains all its combinations with every seed to
the end, and nothing else.

Trials are trained one after the other in this process; under torchrun by its ranks; with --jobs by
processes of this machine; and with --workers or --gpus (of all trials together), or where
RAY_ADDRESS names a cluster, by Ray Tune. Test nodes are never evaluated; training the result does
that, once.

In --out: {RECORD} (every trial, how often each value was tried), {BEST}, and runs/. The same
command goes on where it was interrupted; one with a larger --budget or more --trials goes on too.
In a checkout, launch/search.py is the same command.

settings that are tried:
"""


def _split_grid(texts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Values by dotted name, of texts such as ``model.hidden=32,64``."""
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name, parts = _dotted(name), tuple(values.split(","))
        if not equals or not all(parts):
            raise ValueError(
                f"has {text!r}: name a setting and its values, as in model.hidden=32,64"
            )
        if name in grid or len(set(parts)) < len(parts):
            raise ValueError(f"names {name} or one of its values twice; leave one out")
        grid[name] = parts
    return grid


def _dotted(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _check_grid(texts: tuple[str, ...]) -> tuple[str, ...]:
    _split_grid(texts)
    return texts


class _Options(Options):
    graph: Annotated[str | None, Bare("FILE", _EXAMPLE, flag=True), Shown("FILE")] = Field(
        None, description="your graph, or the name of a dataset; the same as --dataset"
    )
    budget: Duration | None = Field(None, description="time for the search: 90s, 10min, 2h")
    trials: Count | None = Field(None, description="settings to try at most")
    grid: Annotated[tuple[str, ...], AfterValidator(_check_grid), Shown("KEY=VALUE,...")] = Field(
        (), description="settings and the values to try"
    )
    seeds: Seeds = Field(
        (0,), description="the first one compares all trials, the others the best of them"
    )
    jobs: Count | None = Field(
        None, description="trials at a time, on processes of this machine without Ray"
    )
    ranks_per_trial: Count | None = Field(
        None, description="processes that share the graph in each trial"
    )
    out: OutputFolder | None = Field(None, description="runs/search-DATASET if not given")


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options, flags, path = parse_options_and_settings(
        _Options, argv, name="ignn search", about=__doc__, more=_EXAMPLES + _space()
    )
    check_outputs(options)
    given = names_of(flags)  # as they are called here, however they were typed
    _check_own(given, options)
    if options.graph is not None:
        flags["dataset"] = options.graph
    config = resolve_run(flags, path)
    out = options.out or Path("runs") / f"search-{Path(config.dataset).stem}"
    if config.gpus == 1:
        config = config.model_copy(update={"device": "cuda"})
    _conduct(_request(options, config, given, out), options, config, out)


def _space() -> str:
    """The space, a line for each setting."""
    return "".join(f"  {axis.name:<31}{', '.join(dict.fromkeys(axis.values))}\n" for axis in SPACE)


def _check_own(given: Sequence[str], options: _Options) -> None:
    """Refuse settings that the search decides."""
    if options.graph is not None and "dataset" in given:
        raise UserError(f"{options.graph} and --dataset both name a graph; give one of them")
    for name in ("seed", "output", "resume"):
        if name in given:
            raise UserError(f"--{name} is set by the search; it takes --seeds and --out")


def _request(options: _Options, config: RunConfig, given: Sequence[str], out: Path) -> Request:
    """What is searched.

    Raises:
        UserError: a name of the grid is no setting, or a combination is not allowed.
        NoEffectError: no trial reads a setting.
    """
    grid = _split_grid(options.grid)
    _check_names(grid)
    request = Request(
        config=config.model_copy(update={"workers": None, "gpus": None, "resume": None}),
        grid=grid,
        pinned=(*given, *(["data"] if config.partition.dir else [])),
        seeds=options.seeds,
        out=out.absolute(),
        trials=options.trials,
        budget=options.budget or float("inf"),
        ranks=options.ranks_per_trial or 1,
        slots=options.jobs or 1,
    )
    request.combinations()  # refuse what is wrong before any rank joins
    tried = variants(config, grid, request.pinned, exhaustive=request.is_exhaustive)
    refuse_idle(config, given, tried)
    return request


def _check_names(grid: Mapping[str, tuple[str, ...]]) -> None:
    known = [name for name in setting_names() if name not in OWN and name != "dataset"]
    for name in grid:
        if name in OWN:
            raise UserError(f"--grid {name} is set by the search; it takes --seeds and --out")
        if name not in known:
            raise UserError(f"--grid {name} is no setting{suggest(name, known)}")


def _conduct(request: Request, options: _Options, config: RunConfig, out: Path) -> None:
    """Let whoever is to train the trials do so, and show what was found."""
    if "RANK" in os.environ:
        _check_started(options, config)
        search = on_this_rank(partial(search_here, request), config.device, config.comm)
    elif _is_for_ray(options, config):
        from distributed_ignn.lab.studies.search.ray_search import search_on_ray

        asked = {"workers": config.workers, "gpus": config.gpus}
        config = request.config.model_copy(update=asked)
        search = search_on_ray(replace(request, config=config), out)
    elif request.slots > 1 or request.ranks > 1:
        with killable():
            search = search_locally(request)
    else:
        search = on_this_rank(partial(search_here, request), config.device, config.comm)
    if search is not None:
        _conclude(search)


def _is_for_ray(options: _Options, config: RunConfig) -> bool:
    asked = [name for name in ("workers", "gpus") if getattr(config, name)]
    if options.jobs is not None:
        if config.workers or (config.gpus or 1) > 1:
            raise UserError(
                f"--jobs {options.jobs} starts processes of this machine and --{asked[0]} "
                f"{getattr(config, asked[0])} those of a Ray cluster; give one of them"
            )
        return False
    return bool(config.workers) or (config.gpus or 1) > 1 or "RAY_ADDRESS" in os.environ


def _check_started(options: _Options, config: RunConfig) -> None:
    """Processes are there already; another number would be ignored."""
    started = os.environ.get("WORLD_SIZE", "1")
    asked = {
        "--ranks-per-trial": options.ranks_per_trial,
        "--workers": config.workers,
        "--gpus": config.gpus,
    }
    wrong = [(f, n) for f, n in asked.items() if n is not None and str(n) != started]
    if options.jobs is not None:
        wrong.append(("--jobs", options.jobs))
    for flag, number in wrong:
        raise UserError(
            f"{flag} {number} but {started} processes are started already, by torchrun, and train "
            f"one trial after the other; leave out {flag}"
        )


def _conclude(search: Search) -> None:
    """Write the last files and show the table."""
    chosen, shown = search.conclude(), Console(highlight=False)
    halving, out = search.halving, search.request.out
    shown.print(search.board.table(search.ledger.metric))
    mean, deviation = spread(validation(chosen, halving.plan.seeds))
    spreads = f" +- {deviation:.4f}" if len(halving.plan.seeds) > 1 else ""
    changes = described(chosen.settings) if chosen.settings else "the settings as given"
    shown.print(f"chosen: trial {chosen.number}, {changes}", soft_wrap=True)
    figures = f"{mean:.4f}{spreads}{doubt(chosen.confirmed)}"
    shown.print(f"validation {search.ledger.metric} of the chosen: {figures}")
    shown.print(f"written: {out}/{RECORD}, {BEST}", soft_wrap=True)
    shown.print(f"next: ignn train --config {out}/{BEST}", soft_wrap=True)
