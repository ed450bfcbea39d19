"""Repeat one of the paper's studies, or the long-range study, and write CSV, PNG and JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from distributed_ignn.cli import check_output, run_main
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import CONFIG_FOLDER, CommandParser, RunConfig, parse_command
from distributed_ignn.errors import UserError
from distributed_ignn.lab.studies import beyond_k, cost, dynamics, long_range, solver_variants
from distributed_ignn.lab.studies.outcome import Outcome, Request, show_outcome, write_outcome
from distributed_ignn.launchers.this_rank import on_this_rank

Study = Callable[[Request, Communicator], Outcome]
LONG_RANGE = "long-range"
STUDIES: dict[str, Study] = {
    "figure3": cost.run,
    "figure4": beyond_k.run,
    "figure5": solver_variants.run_losses,
    "figure7": solver_variants.run_networks,
    "figure8": dynamics.run,
    LONG_RANGE: long_range.run,
}
_EXAMPLES = """\
studies:
  figure3     parameters and training time of the learned solver beside the model's
  figure4     convergence past the K steps that the solver was trained for
  figure5     each term of the solver's loss switched off
  figure7     every variant of the learned solver, with a network and without
  figure8     training with the learned solver, Anderson and Picard, epoch by epoch
  long-range  accuracy over the length of a chain, against GCN, SGC, APPNP and GCNII

examples:
  python launch/reproduce.py figure8 --dataset acm --seeds 0,1,2
  python launch/reproduce.py long-range --hard --lengths 10,50,200 --out runs/hard

A dataset that is not named is citeseer, for long-range chains. Runs that a former call has finished
in the same folder with the same settings are not trained again.
"""
_OWN = ("--output", "--seed", "--resume", "--workers", "--gpus")  # settings that a study decides


def main(argv: Sequence[str]) -> int:
    """Exit code of the command: 0, or 2 after one line about a mistake."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, config = _parse(argv)
    check_output("--out", args.out, folder=True)
    out = args.out or Path("runs") / f"{args.study}-{Path(config.dataset).stem}"
    request = Request(config, args.seeds, out.absolute())
    study = STUDIES[args.study]
    if args.study == LONG_RANGE:
        extent = long_range.Range(
            args.lengths or long_range.LENGTHS, args.depths or long_range.DEPTHS
        )
        study = partial(long_range.run, extent=extent)
    on_this_rank(lambda comm: _conduct(args.study, study, request, comm), config.device)


def _conduct(name: str, study: Study, request: Request, comm: Communicator) -> None:
    writing = f"write to out = {request.out}"
    comm.together(
        lambda: request.out.mkdir(parents=True, exist_ok=True) if comm.is_main else None,
        doing=writing,
        way_out="choose another --out",
    )
    outcome = study(request, comm)
    comm.together(
        lambda: write_outcome(name, request, outcome) if comm.is_main else None, doing=writing
    )
    if comm.is_main:
        show_outcome(name, request, outcome, Console(highlight=False))


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, RunConfig]:
    parser = CommandParser(prog="reproduce.py", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("study", choices=tuple(STUDIES), help="what to repeat")
    parser.add_argument(
        "--seeds", type=_numbers(0), default=(0,), metavar="N,N,...", help="default: 0"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/STUDY-DATASET")
    parser.add_argument(
        "--hard", action="store_true", help="long-range: several classes and feature noise"
    )
    for flag, least in (("--lengths", 2), ("--depths", 1)):
        parser.add_argument(flag, type=_numbers(least), metavar="N,N,...", help="long-range")
    args, run = parse_command(parser, [*argv, *_defaults(argv)])
    named = [flag for flag in _OWN if _holds(argv, flag)]
    if named:
        raise UserError(f"{named[0]} is set by the study; it takes --seeds and --out")
    if args.study != LONG_RANGE and (args.hard or args.lengths or args.depths):
        raise UserError(f"--hard, --lengths and --depths belong to long-range, not {args.study}")
    return args, run


def _defaults(argv: Sequence[str]) -> list[str]:
    """The settings file or the dataset that a study takes if none is named."""
    if _holds(argv, "--config"):
        if "--hard" in argv:
            raise UserError("--hard and --config both name a settings file; give one of them")
        return []
    if LONG_RANGE in argv:
        name = "long-range-hard.yaml" if "--hard" in argv else "long-range.yaml"
        return ["--config", str(CONFIG_FOLDER / name)]
    return [] if _holds(argv, "--dataset") else ["--dataset", "citeseer"]


def _holds(argv: Sequence[str], flag: str) -> bool:
    return any(argument.partition("=")[0] == flag for argument in argv)


def _numbers(least: int) -> Callable[[str], tuple[int, ...]]:
    """A parser of distinct whole numbers from ``least`` on, with commas between them."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if not all(part.isdecimal() and int(part) >= least for part in parts):
            raise argparse.ArgumentTypeError(
                f"{text!r} must be whole numbers from {least} on with commas between them, as in "
                f"{least},{least + 1}"
            )
        numbers = tuple(map(int, parts))
        if len(set(numbers)) < len(numbers):
            raise argparse.ArgumentTypeError(f"{text!r} names a number twice")
        return numbers

    return parse


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
