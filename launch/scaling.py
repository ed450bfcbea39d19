"""How training speeds up with ranks: strong and weak studies, with and without a slow link."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console

from distributed_ignn.cli import check_output, run_main
from distributed_ignn.config import (
    CommandParser,
    RunConfig,
    absolute_paths,
    dump_yaml,
    parse_command,
)
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_text
from distributed_ignn.lab.benchmarks.exchange import CODECS
from distributed_ignn.lab.benchmarks.link import Link, LinkSettings, check_privileges
from distributed_ignn.lab.benchmarks.plots import save_figure
from distributed_ignn.lab.benchmarks.scaling import (
    Point,
    Row,
    Study,
    draw,
    points,
    read_row,
    tabulate,
    to_csv,
    with_efficiency,
)
from distributed_ignn.lab.benchmarks.short_flags import SHORT_FLAGS, spelled_out
from distributed_ignn.launchers.local_job import Job, killable, run_job

_STUDIES: dict[str, tuple[Study, ...]] = {
    "strong": ("strong",),
    "weak": ("weak",),
    "both": ("strong", "weak"),
}
_BENCHMARK = Path(__file__).with_name("benchmark.py")
_EXAMPLES = f"""\
examples:
  python launch/scaling.py strong --scale 0.04 --out runs/scaling
  python launch/scaling.py weak --scale 0.02 --ranks 1 2 --rounds 3
  python launch/scaling.py both --halo fp32 int4 --link 200mbit --device cpu

A point of a study is one job: it measures an epoch, a solve that starts anew, the bytes sent, the
time spent waiting for halo rows and the peak memory (launch/benchmark.py epoch, which can be run by
itself). This command starts the ranks of every point, one point after the other, and ends them if
they take longer than --timeout.

strong  the same graph on more ranks
weak    a generated graph of --scale times the ranks
both    one after the other

--link RATE measures every point with more than one rank again, with half of the ranks behind a
cable of that rate (root and iproute2, CPU only). --halo measures several codecs of the halo rows.

In --out: scaling.csv and scaling.png, renewed after every point, and points/, from which a study
that was interrupted goes on. Points with the same settings are not measured again.

{SHORT_FLAGS}
Every rank has --threads threads, on which the efficiency depends.
"""


def main(argv: Sequence[str]) -> int:
    """Exit code of the command: 0, or 2 after one line about a mistake."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, config = _parse(argv)
    console = Console(stderr=True, highlight=False)
    link = None if args.link is None else LinkSettings(args.link, args.delay)
    if link is not None:
        check_privileges()
    studies = _STUDIES[args.study]
    todo = [p for s in studies for p in points(s, config, args.ranks, args.halo, link)]
    out: Path = args.out.absolute()
    try:
        (out / "points").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to --out {args.out}: {reason}; name another") from error
    rows: list[Row] = []
    failed: list[str] = []
    with killable():
        for number, point in enumerate(todo, start=1):
            console.print(f"{number} of {len(todo)}: {point.label}")
            try:
                rows.append(_measure(point, args, out))
            except UserError as error:
                failed.append(f"{point.label}: {error}")
                console.print(f"[red]{failed[-1]}[/red]", soft_wrap=True)
                continue
            _write(with_efficiency(rows), out, config)
    _show(with_efficiency(rows), out, args)
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} points failed; the first: {failed[0]}")


def _measure(point: Point, args: Namespace, out: Path) -> Row:
    """Run the point's job, unless that has been done."""
    method = args.method or point.config.forward.method
    name = point.name(args.rounds, args.threads, method)
    settings, result = (out / "points" / f"{name}.{kind}" for kind in ("yaml", "json"))
    if not result.exists():
        atomic_write_text(settings, dump_yaml(point.config))
        arguments = {
            "config": settings,
            "shards": out / "shards" / point.shards(),
            "json": result,
            "rounds": args.rounds,
            "threads": args.threads,
            "methods": method,
        }
        flags = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
        command = sys.executable, str(_BENCHMARK), "epoch", *flags
        job = Job(command, point.ranks, args.timeout, args.threads)
        with nullcontext() if point.link is None else Link(point.link) as link:
            run_job(job, link)
    return read_row(point, result)


def _write(rows: Sequence[Row], out: Path, config: RunConfig) -> None:
    atomic_write_text(out / "scaling.csv", to_csv(rows))
    title = f"{config.dataset}, {os.path.basename(out)}"
    save_figure(draw(rows, title), out / "scaling.png")


def _show(rows: Sequence[Row], out: Path, args: Namespace) -> None:
    console = Console(highlight=False)
    for table in tabulate(rows):
        console.print(table)
    cores = len(os.sched_getaffinity(0))
    most = max(args.ranks) * args.threads
    if most > cores and not torch.cuda.device_count():
        console.print(
            f"up to {most} threads share {cores} cores: efficiency beyond {cores} threads counts "
            "the missing cores too",
            soft_wrap=True,
        )
    console.print(f"written: {out / 'scaling.csv'}, {out / 'scaling.png'}", soft_wrap=True)


def _parse(argv: Sequence[str]) -> tuple[Namespace, RunConfig]:
    parser = CommandParser(prog="scaling.py", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("study", choices=tuple(_STUDIES), help="see below")
    parser.add_argument("--ranks", type=int, nargs="+", help="default: 1 2 4, or 1 to all GPUs")
    parser.add_argument("--halo", nargs="+", choices=CODECS, default=["fp32"], help="codecs")
    parser.add_argument("--link", metavar="RATE", help="such as 200mbit: also behind such a link")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="of the link")
    parser.add_argument(
        "--method", choices=("neural", "anderson", "picard"), help="default: forward.method"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5, help="epochs measured; medians count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each rank")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="S", help="of one point")
    args, config = parse_command(parser, spelled_out(argv))
    if any(argument.partition("=")[0] == "--comm.halo" for argument in argv):
        raise UserError("--comm.halo is set by the study; it takes --halo")
    gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    args.ranks = sorted(set(args.ranks or _default_ranks(gpus)))
    _check(args, gpus)
    check_output("--out", args.out, folder=True)
    return args, absolute_paths(config)


def _default_ranks(gpus: int) -> list[int]:
    """1, 2, 4 on CPUs, and powers of two up to the number of GPUs, one rank for each."""
    return [2**k for k in range(gpus.bit_length())] if gpus else [1, 2, 4]


def _check(args: Namespace, gpus: int) -> None:
    for flag in ("rounds", "threads", "timeout"):
        if getattr(args, flag) <= 0:
            raise UserError(f"--{flag} {getattr(args, flag)} must be above 0")
    if args.ranks[0] < 1:
        raise UserError(f"--ranks {args.ranks[0]} must be at least 1")
    if gpus and args.ranks[-1] > gpus:
        raise UserError(
            f"--ranks {args.ranks[-1]} exceeds the {gpus} GPUs here, one for each rank; name fewer "
            "ranks or use --device cpu"
        )
    if gpus and args.link is not None:
        raise UserError("--link slows down what travels between CPUs; add --device cpu")
    if args.link is not None and args.ranks[-1] < 2:
        raise UserError("--link joins at least 2 ranks; add them to --ranks")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
