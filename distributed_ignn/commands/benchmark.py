"""Measure: every figure is a ratio against a named baseline of the same run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from rich.console import Console

from distributed_ignn.cli import run_main
from distributed_ignn.comm.codecs import CODECS
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import (
    RunConfig,
    choices,
    parse_options_and_settings,
    resolve_run,
)
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.dotted import dotted, names_of
from distributed_ignn.config.idle import refuse_idle, refuse_unread
from distributed_ignn.config.options import (
    Bare,
    Count,
    Options,
    OutputFile,
    PictureFile,
    ReadBy,
    Share,
    Shares,
    Shown,
    check_outputs,
)
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks import (
    accuracy,
    codec_study,
    epoch_stages,
    solver,
    sparsifier,
)
from distributed_ignn.lab.benchmarks.benchmark_graph import open_workload
from distributed_ignn.lab.benchmarks.courses import Limits
from distributed_ignn.lab.benchmarks.interleaving import Report
from distributed_ignn.lab.benchmarks.short_flags import SHORT_FLAGS, spelled_out, with_graph
from distributed_ignn.lab.benchmarks.study import Study, tell_nobody
from distributed_ignn.lab.benchmarks.suite import SUITE, WITH_SINGLE
from distributed_ignn.launchers.this_rank import on_this_rank

_STUDIES = ("solver", "sparsifier", "codecs")
_COURSE, _EPOCHS = "accuracy", "epoch"
_MEETING = ("backend", "timeout_seconds", "hang_seconds", "shared_memory")
_OF_ANY_RUN = ("device", *(f"comm.{key}" for key in _MEETING))
"""Settings by which the ranks of a study find each other; it has all others from the run."""

_OF_GRAPH = (*SUITE, _COURSE)
_OF_COURSE, _OF_STUDY = ReadBy((_COURSE,)), ReadBy(_STUDIES)
_OF_ROWS = ReadBy((*_STUDIES, _COURSE))
_OF_SOLVER, _OF_SPARSIFIER, _OF_CODECS = (ReadBy((name,)) for name in _STUDIES)
_EXAMPLE = "ignn benchmark propagate --json propagate.json"
_STUDY = "ignn benchmark solver runs/acm --csv acm.csv --plot acm.png"
_EXAMPLES = f"""\
benchmarks of a graph:
  propagate   the local sparse product by every kernel, beside the copy bandwidth of the machine
  exchange    the halo exchange by codec: bytes, and seconds of packing, sending and unpacking
  iteration   one evaluation of the map against the same in plain torch and against one process,
              and where its time goes
  epoch       a training epoch stage by stage, with the learned solver, Anderson and Picard
  memory      the memory budget of a run beside what it takes, item by item
  engines     a step and the memory of every engine beside plain torch, with embeddings of nodes
  accuracy    time to accuracy: validation over seconds, epochs, evaluations and bytes, with and
              without local steps, against explicit networks on the full graph and on samples;
              minutes for each of them (--minutes), one after the other

studies of a trained run (RUN):
  solver      distance, residual, test metric and time of every solver after every evaluation;
              --variants trains variants of the learned solver
  sparsifier  how the edges that the error estimator reads change what the learned solver reaches,
              and the time of choosing them
  codecs      evaluations, bytes and seconds of a solve with every way of writing halo rows, and
              whether it ends at the same fixed point; under torchrun or over a link

examples:
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn benchmark iteration --scale 0.04
  {_EXAMPLE}
  ignn benchmark propagate --dataset acm --data-root data --width 64
  ignn benchmark accuracy --scale 0.02 --target 0.9 --only local exact sage --plot accuracy.png
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn benchmark exchange --json out.json
  {_STUDY}
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn benchmark codecs runs/acm
  ignn link --rate 200mbit benchmark codecs runs/acm --codecs int4

{SHORT_FLAGS}
--shards DIR keeps the divided graph between calls: the shards of N parts lie in DIR/N, as ignn
partition --parts N --out DIR/N writes them; missing ones are written. In a checkout,
launch/benchmark.py is the same command.
"""


class _GraphOptions(Options):
    title: ClassVar[str] = "benchmarks of a graph"

    shards: Annotated[Path | None, Shown("DIR"), ReadBy(_OF_GRAPH)] = Field(
        None, description="folder of shards, see below"
    )
    methods: Annotated[tuple[Annotated[str, Choice(choices.METHODS)], ...], ReadBy((_EPOCHS,))] = (
        Field((), description="solvers to train with (epoch); all by default")
    )
    without_single: Annotated[bool, ReadBy(tuple(WITH_SINGLE))] = Field(
        False, description="leave the baseline of one process out"
    )


class _CourseOptions(Options):
    title: ClassVar[str] = "time to accuracy"

    target: Annotated[Share, _OF_COURSE] = Field(
        0.96, description="metric on the validation nodes (accuracy)"
    )
    minutes: Annotated[float, Field(gt=0), _OF_COURSE] = Field(
        10.0, description="of each training at most (accuracy)"
    )
    most_epochs: Annotated[Count, _OF_COURSE] = Field(
        200, description="of each training but that with local steps, which has train.epochs"
    )
    give_up: Annotated[Count, _OF_COURSE] = Field(
        20, description="epochs without a better validation that end a training"
    )
    only: Annotated[
        tuple[Annotated[str, Choice("distributed_ignn.lab.benchmarks.accuracy:CONTENDERS")], ...],
        _OF_COURSE,
    ] = Field((), description="what to train (accuracy); all by default")


class _StudyOptions(Options):
    title: ClassVar[str] = "studies of a trained run"

    run: Annotated[Path | None, Bare("RUN", _STUDY, flag=True), _OF_STUDY] = Field(
        None, description="output folder of a training run"
    )
    csv: Annotated[OutputFile | None, _OF_ROWS] = Field(None, description="every measured row")
    plot: Annotated[PictureFile | None, _OF_ROWS] = Field(None, description="a .png, .svg or .pdf")
    variants: Annotated[bool, _OF_SOLVER] = Field(
        False, description="train variants of the learned solver (solver)"
    )
    solver_steps: Annotated[Count, _OF_SOLVER] = Field(
        100, description="gradient steps of each network (solver)"
    )
    cpu_time: Annotated[bool, _OF_SOLVER] = Field(
        False,
        description="seconds of the processor, which others on the machine do not lengthen; one "
        "process (solver)",
    )
    seeds: Annotated[Count, _OF_SPARSIFIER] = Field(
        3, description="draws of the edges per choice (sparsifier)"
    )
    keep: Annotated[Shares, _OF_SPARSIFIER] = Field(
        (0.1, 0.2, 0.3, 0.5, 0.7), description="shares of edges kept (sparsifier)"
    )
    max_steps: Annotated[Count, _OF_STUDY] = Field(100, description="most evaluations of a solve")
    tolerance: Annotated[float, Field(gt=0), _OF_CODECS] = Field(
        1e-6, description="relative residual to solve to (codecs)"
    )
    codecs: Annotated[tuple[Annotated[str, Choice(choices.CODECS)], ...], _OF_CODECS] = Field(
        tuple(CODECS), description="ways of writing halo rows, beside fp32 (codecs)"
    )


class _Options(_CourseOptions, _StudyOptions, _GraphOptions):
    name: Annotated[
        str,
        Choice("distributed_ignn.lab.benchmarks.suite:SUITE", (_COURSE, *_STUDIES)),
        Bare("BENCHMARK", _EXAMPLE),
    ] = Field(description="what to measure, see below")
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures here"
    )
    threads: Count = Field(1, description="CPU threads of each rank")
    rounds: Annotated[Count, ReadBy((*SUITE, *_STUDIES))] = Field(
        15, description="interleaved rounds"
    )

    @model_validator(mode="after")
    def _check_run(self) -> Self:
        if self.name in _STUDIES and self.run is None:
            raise ValueError(
                f"benchmark {self.name} needs a trained run; name its folder, as in {_STUDY}"
            )
        return self

    @property
    def trained_run(self) -> Path:
        """The run of a study."""
        if self.run is None:
            raise ValueError("no study of a run")
        return self.run

    @property
    def course(self) -> accuracy.AccuracyOptions:
        """What to train to a target."""
        limits = Limits(self.minutes, self.most_epochs, self.give_up)
        return accuracy.AccuracyOptions(self.target, limits, self.only)

    @property
    def reads_whole_graph(self) -> bool:
        """Whether some rank needs the graph as one part."""
        if self.name == _COURSE:
            return not self.only or bool(accuracy.ON_WHOLE_GRAPH & set(self.only))
        return self.name in WITH_SINGLE and not self.without_single


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options, config = _parse(argv)
    torch.set_num_threads(options.threads)
    on_this_rank(lambda comm: _measure(options, config, comm), config.device, config.comm)


def _parse(argv: Sequence[str]) -> tuple[_Options, RunConfig]:
    options, flags, path = parse_options_and_settings(
        _Options, spelled_out(argv), name="ignn benchmark", about=__doc__, more=_EXAMPLES
    )
    check_outputs(options)
    if options.name in _STUDIES:
        if path is not None:
            raise UserError(f"--config {path} has no effect on a trained run; drop it")
        config = resolve_run(with_graph(flags, None), None)
        refuse_unread(config, dict(dotted(flags)), _OF_ANY_RUN, "a study of a trained run")
        return options, config
    config = resolve_run(with_graph(flags, path), path)
    given = names_of(flags)
    first, *others = _trained_with(options, config)
    refuse_idle(first, (*given, "forward.method"), others)
    return options, config


def _trained_with(options: _Options, config: RunConfig) -> list[RunConfig]:
    """The run with every solver that the benchmark trains it with."""
    if options.name != _EPOCHS:
        return [config]
    return [*epoch_stages.methods_of(config, options.methods).values()]


def _measure(options: _Options, config: RunConfig, comm: Communicator) -> None:
    console = Console(stderr=True, highlight=False)
    tell = console.print if comm.is_main else tell_nobody
    found: Report | Study
    if options.name in _STUDIES:
        found = _study(options, comm)
    else:
        with open_workload(
            config,
            comm,
            rounds=options.rounds,
            shards=options.shards,
            single=options.reads_whole_graph,
            methods=options.methods,
            tell=tell,
        ) as workload:
            if options.name == _COURSE:
                found = accuracy.run(workload, options.course)
            else:
                found = SUITE[options.name](workload)
    comm.together(
        lambda: _write(options, found) if comm.is_main else None,
        doing="write the results",
        way_out="choose other files",
    )


def _study(options: _Options, comm: Communicator) -> Study:
    console = Console(stderr=True, highlight=False)
    tell = console.print if comm.is_main else tell_nobody
    run = options.trained_run
    if options.name == "sparsifier":
        return sparsifier.run(
            sparsifier.SparsifierOptions(
                run,
                keeps=options.keep,
                seeds=options.seeds,
                rounds=options.rounds,
                max_steps=options.max_steps,
                tell=tell,
            ),
            comm,
        )
    if options.name == "codecs":
        return codec_study.run(
            codec_study.CodecOptions(
                run,
                options.rounds,
                tolerance=options.tolerance,
                max_steps=options.max_steps,
                codecs=options.codecs,
                tell=tell,
            ),
            comm,
        )
    steps = options.solver_steps if options.variants else None
    return solver.run(
        solver.SolverOptions(
            run,
            options.rounds,
            max_steps=options.max_steps,
            solver_steps=steps,
            cpu_time=options.cpu_time,
            tell=tell,
        ),
        comm,
    )


def _write(options: _Options, found: Report | Study) -> None:
    found.show(Console(highlight=False))
    report = found if isinstance(found, Report) else found.report
    if options.json_file is not None:
        report.write(options.json_file)
    if isinstance(found, Study) and options.csv is not None:
        found.write_csv(options.csv)
    if isinstance(found, Study) and options.plot is not None:
        found.write_plot(options.plot)
