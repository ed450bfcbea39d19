"""Measure: every figure is a ratio against a named baseline of the same run."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from distributed_ignn.benchmarks import iteration, solver
from distributed_ignn.benchmarks.report import Report
from distributed_ignn.cli import run_main
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import CommandParser
from distributed_ignn.errors import UserError
from distributed_ignn.training.entry import on_this_rank

_EXAMPLES = """\
benchmarks:
  iteration   one evaluation of the map against the same in plain torch, and parallel efficiency
  solver      evaluations and seconds of every solver on a trained run (--run DIR)

examples:
  torchrun --standalone --nproc-per-node 2 launch/benchmark.py iteration --json iteration.json
  python launch/benchmark.py solver --run runs/acm
"""


def main(argv: Sequence[str]) -> int:
    """Exit code of the command: 0, or 2 after one line about a mistake."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args = _parse(argv)
    torch.set_num_threads(args.threads)
    on_this_rank(lambda comm: _measure(args, comm), args.device)


def _measure(args: Namespace, comm: Communicator) -> None:
    report = _report(args, comm)
    if not comm.is_main:
        return
    report.show(Console(highlight=False))
    if args.json is not None:
        report.write(args.json)


def _report(args: Namespace, comm: Communicator) -> Report:
    if args.name == "iteration":
        return iteration.run(iteration.IterationOptions(args.scale, args.width, args.rounds), comm)
    if args.run is None:
        raise UserError("benchmark solver needs a trained run; name its folder with --run DIR")
    return solver.run(solver.SolverOptions(args.run, args.rounds), comm)


def _parse(argv: Sequence[str]) -> Namespace:
    parser = CommandParser(prog="benchmark.py", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("name", choices=("iteration", "solver"), help="what to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--run", type=Path, metavar="DIR", help="run folder (solver)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each rank")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds")
    parser.add_argument(
        "--scale", type=float, default=0.01, help="size of the graph over ogbn-products (iteration)"
    )
    parser.add_argument("--width", type=int, default=128, help="columns of the state (iteration)")
    args = parser.parse_args(argv)
    for flag in ("threads", "rounds", "width"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)} must be at least 1")
    if not 0 < args.scale <= 1:
        raise UserError(f"--scale {args.scale} must lie above 0 and at most be 1")
    return args


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
