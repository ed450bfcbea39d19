"""How training speeds up with ranks: strong and weak studies, with and without a slow link."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from rich.console import Console

from distributed_ignn.cli import run_main
from distributed_ignn.config import (
    RunConfig,
    absolute_paths,
    choices,
    dump_yaml,
    parse_options_and_settings,
    resolve_run,
)
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.dotted import names_of
from distributed_ignn.config.idle import refuse_idle
from distributed_ignn.config.options import (
    Bare,
    Count,
    Counts,
    Options,
    OutputFolder,
    Shown,
    check_outputs,
)
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text
from distributed_ignn.lab.benchmarks.epoch_stages import methods_of
from distributed_ignn.lab.benchmarks.link import Link, LinkSettings, check_privileges
from distributed_ignn.lab.benchmarks.scaling import (
    Point,
    Row,
    Study,
    points,
    read_row,
    tabulate,
    to_csv,
    with_efficiency,
)
from distributed_ignn.lab.benchmarks.scaling_plot import draw
from distributed_ignn.lab.benchmarks.short_flags import SHORT_FLAGS, spelled_out, with_graph
from distributed_ignn.launchers.local_job import Job, killable, run_job
from distributed_ignn.plots import ENDINGS, save_all_kinds

_STUDIES: dict[str, tuple[Study, ...]] = {
    "strong": ("strong",),
    "weak": ("weak",),
    "both": ("strong", "weak"),
}
_BENCHMARK = ("-m", "distributed_ignn", "benchmark", "epoch")
_EXAMPLE = "ignn scaling strong --scale 0.04 --out runs/scaling"
_EXAMPLES = f"""\
examples:
  {_EXAMPLE}
  ignn scaling weak --scale 0.02 --ranks 1 2 --rounds 3
  ignn scaling both --halo fp32 int4 --link 200mbit --device cpu

A point of a study is one job: it measures an epoch, a solve that starts anew, the bytes sent, the
time spent waiting for halo rows and the peak memory (ignn benchmark epoch, which can be run by
itself). This command starts the ranks of every point, one point after the other, and ends them if
they take longer than --timeout.

strong  the same graph on more ranks
weak    a generated graph of --scale times the ranks
both    one after the other

--link RATE measures every point with more than one rank again, with half of the ranks behind a
cable of that rate (root and iproute2, CPU only). --halo measures several codecs of the halo rows.

In --out: scaling.csv and the plot as scaling.png, .svg and .pdf, renewed after every point, and
points/, from which a study that was interrupted goes on. Points with the same settings are not
measured again.

{SHORT_FLAGS}
Every rank has --threads threads, on which the efficiency depends. In a checkout, launch/scaling.py
is the same command.
"""


class _Options(Options):
    study: Annotated[Literal["strong", "weak", "both"], Bare("STUDY", _EXAMPLE)] = Field(
        description="strong, weak or both, see below"
    )
    ranks: Counts | None = Field(None, description="1 2 4 if not given, or 1 to all GPUs")
    halo: tuple[Annotated[str, Choice(choices.CODECS)], ...] = Field(
        ("fp32",), description="codecs"
    )
    link: Annotated[str, Shown("RATE")] | None = Field(
        None, description="such as 200mbit: also behind such a link"
    )
    delay: Annotated[float, Shown("MS")] = Field(0.0, description="of the link")
    method: Annotated[str, Choice(choices.METHODS)] | None = Field(
        None, description="forward.method if not given"
    )
    out: OutputFolder = Field(Path("runs/scaling"), description="folder of the study")
    rounds: Count = Field(5, description="epochs measured; medians count")
    threads: Count = Field(1, description="CPU threads of each rank")
    timeout: Annotated[float, Shown("S")] = Field(3600.0, gt=0, description="of one point")

    @model_validator(mode="after")
    def _check_delay(self) -> Self:
        if self.link is None and "delay" in self.model_fields_set:
            raise ValueError("--delay has no effect without --link; add a rate, as --link 200mbit")
        return self


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options, config = _parse(argv)
    ranks = _ranks(options, config)
    console = Console(stderr=True, highlight=False)
    link = None if options.link is None else LinkSettings(options.link, options.delay)
    if link is not None:
        check_privileges()
    studies = _STUDIES[options.study]
    todo = [p for s in studies for p in points(s, config, ranks, options.halo, link)]
    out = options.out.absolute()
    try:
        (out / "points").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to --out {options.out}: {reason}; name another") from error
    rows: list[Row] = []
    failed: list[str] = []
    with killable():
        for number, point in enumerate(todo, start=1):
            console.print(f"{number} of {len(todo)}: {point.label}")
            try:
                rows.append(_measure(point, options, out))
            except UserError as error:
                failed.append(f"{point.label}: {error}")
                console.print(f"[red]{failed[-1]}[/red]", soft_wrap=True)
                continue
            _write(with_efficiency(rows), out, config)
    _show(with_efficiency(rows), out, ranks[-1] * options.threads)
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} points failed; the first: {failed[0]}")


def _measure(point: Point, options: _Options, out: Path) -> Row:
    """Run the point's job, unless that has been done."""
    method = options.method or point.config.forward.method
    name = point.name(options.rounds, options.threads, method)
    settings, result = (out / "points" / f"{name}.{kind}" for kind in ("yaml", "json"))
    if not result.exists():
        atomic_write_text(settings, dump_yaml(point.config))
        arguments = {
            "config": settings,
            "shards": out / "shards" / point.shards(),
            "json": result,
            "rounds": options.rounds,
            "threads": options.threads,
            "methods": method,
        }
        flags = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
        command = sys.executable, *_BENCHMARK, *flags
        job = Job(command, point.ranks, options.timeout, options.threads)
        with nullcontext() if point.link is None else Link(point.link) as link:
            run_job(job, link)
    return read_row(point, result)


def _write(rows: Sequence[Row], out: Path, config: RunConfig) -> None:
    atomic_write_text(out / "scaling.csv", to_csv(rows))
    title = f"{config.dataset}, {os.path.basename(out)}"
    save_all_kinds(draw(rows, title), out / "scaling")


def _show(rows: Sequence[Row], out: Path, most: int) -> None:
    console = Console(highlight=False)
    for table in tabulate(rows):
        console.print(table)
    cores = len(os.sched_getaffinity(0))
    if most > cores and not torch.cuda.device_count():
        console.print(
            f"up to {most} threads share {cores} cores: efficiency beyond {cores} threads counts "
            "the missing cores too",
            soft_wrap=True,
        )
    console.print(f"written: {out / 'scaling'}{', '.join(('.csv', *ENDINGS))}", soft_wrap=True)


def _parse(argv: Sequence[str]) -> tuple[_Options, RunConfig]:
    options, flags, path = parse_options_and_settings(
        _Options, spelled_out(argv), name="ignn scaling", about=__doc__, more=_EXAMPLES
    )
    given = names_of(flags)
    if "comm.halo" in given:
        raise UserError("--comm.halo is set by the study; it takes --halo")
    check_outputs(options)
    config = resolve_run(with_graph(flags, path), path)
    method = options.method or config.forward.method
    measured = methods_of(config, [method])[method]
    refuse_idle(measured, (*given, "forward.method"))
    return options, absolute_paths(config)


def _ranks(options: _Options, config: RunConfig) -> list[int]:
    """The numbers of ranks, ascending.

    Raises:
        UserError: this machine has no place for them, or there is nothing to join.
    """
    gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    ranks = sorted(set(options.ranks or _default_ranks(gpus)))
    if gpus and ranks[-1] > gpus:
        raise UserError(
            f"--ranks {ranks[-1]} exceeds the {gpus} GPUs here, one for each rank; name fewer "
            "ranks or use --device cpu"
        )
    if gpus and options.link is not None:
        raise UserError("--link slows down what travels between CPUs; add --device cpu")
    if options.link is not None and ranks[-1] < 2:
        raise UserError("--link joins at least 2 ranks; add them to --ranks")
    return ranks


def _default_ranks(gpus: int) -> list[int]:
    """1, 2, 4 on CPUs, and powers of two up to the number of GPUs, one rank for each."""
    return [2**k for k in range(gpus.bit_length())] if gpus else [1, 2, 4]
