"""Measure: every figure is a ratio against a named baseline of the same run."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from distributed_ignn.cli import check_output, run_main
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import CommandParser, RunConfig, parse_command
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks import codec_study, solver, sparsifier
from distributed_ignn.lab.benchmarks.benchmark_graph import open_workload
from distributed_ignn.lab.benchmarks.interleaving import Report
from distributed_ignn.lab.benchmarks.short_flags import SHORT_FLAGS, spelled_out
from distributed_ignn.lab.benchmarks.study import Study, tell_nobody
from distributed_ignn.lab.benchmarks.suite import SUITE, WITH_SINGLE
from distributed_ignn.launchers.this_rank import on_this_rank

_STUDIES = ("solver", "sparsifier", "codecs")
_EXAMPLES = f"""\
benchmarks of a graph:
  propagate   the local sparse product by every kernel, beside the copy bandwidth of the machine
  exchange    the halo exchange by codec: bytes, and seconds of packing, sending and unpacking
  iteration   one evaluation of the map against the same in plain torch and against one process,
              and where its time goes
  epoch       a training epoch stage by stage, with the learned solver, Anderson and Picard
  memory      the memory budget of a run beside what it takes, item by item

studies of a trained run (--run DIR):
  solver      distance, residual, test metric and time of every solver after every evaluation;
              --variants trains variants of the learned solver
  sparsifier  how the edges that the error estimator reads change what the learned solver reaches,
              and the time of choosing them
  codecs      evaluations, bytes and seconds of a solve with every way of writing halo rows, and
              whether it ends at the same fixed point; under torchrun or over a link

examples:
  torchrun --standalone --nproc-per-node 2 launch/benchmark.py iteration --scale 0.04 --json it.json
  python launch/benchmark.py propagate --dataset acm --data-root data --width 64
  torchrun --standalone --nproc-per-node 2 launch/benchmark.py exchange --shards shards/small
  python launch/benchmark.py solver --run runs/acm --csv acm.csv --plot acm.png
  torchrun --standalone --nproc-per-node 2 -- launch/benchmark.py codecs --run runs/acm
  python launch/link.py --rate 200mbit launch/benchmark.py codecs --run runs/acm --codecs int4

{SHORT_FLAGS}
--shards DIR keeps the divided graph between calls: the shards of N parts lie in DIR/N, as
launch/partition.py --parts N --out DIR/N writes them; missing ones are written.
"""


def main(argv: Sequence[str]) -> int:
    """Exit code of the command: 0, or 2 after one line about a mistake."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, config = _parse(argv)
    torch.set_num_threads(args.threads)
    on_this_rank(lambda comm: _measure(args, config, comm), config.device, config.comm)


def _measure(args: Namespace, config: RunConfig, comm: Communicator) -> None:
    console = Console(stderr=True, highlight=False)
    tell = console.print if comm.is_main else tell_nobody
    study = None
    if args.name in _STUDIES:
        study = _study(args, comm)
        report = study.report
    else:
        with open_workload(
            config,
            comm,
            rounds=args.rounds,
            shards=args.shards,
            single=args.name in WITH_SINGLE and not args.without_single,
            methods=args.methods,
            tell=tell,
        ) as workload:
            report = SUITE[args.name](workload)
    comm.together(
        lambda: _write(args, report, study) if comm.is_main else None,
        doing="write the results",
        way_out="choose other files",
    )


def _study(args: Namespace, comm: Communicator) -> Study:
    console = Console(stderr=True, highlight=False)
    tell = console.print if comm.is_main else tell_nobody
    if args.name == "sparsifier":
        return sparsifier.run(
            sparsifier.SparsifierOptions(
                args.run,
                keeps=tuple(args.keep),
                seeds=args.seeds,
                rounds=args.rounds,
                max_steps=args.max_steps,
                tell=tell,
            ),
            comm,
        )
    if args.name == "codecs":
        return codec_study.run(
            codec_study.CodecOptions(
                args.run,
                args.rounds,
                tolerance=args.tolerance,
                max_steps=args.max_steps,
                codecs=tuple(args.codecs),
                tell=tell,
            ),
            comm,
        )
    steps = args.solver_steps if args.variants else None
    options = solver.SolverOptions(
        args.run, args.rounds, max_steps=args.max_steps, solver_steps=steps, tell=tell
    )
    return solver.run(options, comm)


def _write(args: Namespace, report: Report, study: Study | None) -> None:
    shown = report if study is None else study
    shown.show(Console(highlight=False))
    if args.json is not None:
        report.write(args.json)
    if study is not None and args.csv is not None:
        study.write_csv(args.csv)
    if study is not None and args.plot is not None:
        study.write_plot(args.plot)


def _parse(argv: Sequence[str]) -> tuple[Namespace, RunConfig]:
    parser = CommandParser(prog="benchmark.py", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("name", choices=(*SUITE, *_STUDIES), help="what to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each rank")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds")
    _add_graph_flags(parser)
    _add_study_flags(parser)
    args, config = parse_command(parser, spelled_out(argv))
    for flag in ("threads", "rounds", "solver-steps", "max-steps", "seeds"):
        value = getattr(args, flag.replace("-", "_"))
        if value < 1:
            raise UserError(f"--{flag} {value} must be at least 1")
    _check_kind(args)
    for flag in ("json", "csv", "plot"):
        check_output(f"--{flag}", getattr(args, flag))
    return args, config


def _add_graph_flags(parser: CommandParser) -> None:
    group = parser.add_argument_group("benchmarks of a graph")
    group.add_argument("--shards", type=Path, metavar="DIR", help="folder of shards, see below")
    group.add_argument(
        "--methods",
        nargs="+",
        choices=("neural", "anderson", "picard"),
        default=(),
        help="solvers to train with (epoch); all by default",
    )
    group.add_argument(
        "--without-single", action="store_true", help="leave the baseline of one process out"
    )


def _add_study_flags(parser: CommandParser) -> None:
    group = parser.add_argument_group("studies of a trained run")
    group.add_argument("--run", type=Path, metavar="DIR", help="run folder")
    group.add_argument("--csv", type=Path, metavar="FILE", help="every measured row")
    group.add_argument("--plot", type=Path, metavar="FILE", help="a PNG")
    group.add_argument(
        "--variants", action="store_true", help="train variants of the learned solver (solver)"
    )
    group.add_argument(
        "--solver-steps", type=int, default=100, help="gradient steps of each network (solver)"
    )
    group.add_argument(
        "--seeds", type=int, default=3, help="draws of the edges per choice (sparsifier)"
    )
    group.add_argument(
        "--keep",
        type=float,
        nargs="+",
        default=[0.1, 0.2, 0.3, 0.5, 0.7],
        help="shares of edges kept (sparsifier)",
    )
    group.add_argument("--max-steps", type=int, default=100, help="most evaluations of a solve")
    group.add_argument(
        "--tolerance", type=float, default=1e-6, help="relative residual to solve to (codecs)"
    )
    group.add_argument(
        "--codecs",
        nargs="+",
        choices=codec_study.CODECS,
        default=codec_study.CODECS,
        help="ways of writing halo rows, beside fp32 (codecs)",
    )


def _check_kind(args: Namespace) -> None:
    """Flags of one kind of benchmark mean nothing to the other."""
    if args.name in _STUDIES:
        if args.run is None:
            raise UserError(
                f"benchmark {args.name} needs a trained run; name its folder with --run DIR"
            )
        if not args.tolerance > 0:
            raise UserError(f"--tolerance {args.tolerance} must be above 0")
        if not all(0 < keep <= 1 for keep in args.keep):
            raise UserError(f"--keep {args.keep} must lie above 0 and at most be 1")
        return
    for flag in ("csv", "plot", "run"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag} is for studies of a trained run, not for {args.name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
