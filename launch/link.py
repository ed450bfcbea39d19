"""Run a command on several ranks of this machine with a slow link between two halves of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distributed_ignn.cli import run_main
from distributed_ignn.config import CommandParser
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.link import Link, LinkSettings
from distributed_ignn.launchers.local_job import Job, killable, run_job

_EXAMPLES = """\
examples:
  python launch/link.py --rate 200mbit launch/benchmark.py exchange --device cpu
  python launch/link.py --rate 1gbit --ranks 4 launch/train.py --dataset acm --device cpu

The ranks get torchrun's environment. The first half runs in one network namespace, the second half
in another; a cable of the given rate joins them, in each direction. It takes root and iproute2.
"""


def main(argv: Sequence[str]) -> int:
    """Exit code of the command: 0, or 2 after one line about a mistake."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args = _parse(argv)
    settings = LinkSettings(args.rate, args.delay)
    command = sys.executable, str(args.script), *args.arguments
    job = Job(command, args.ranks, args.timeout, args.threads, show=True)
    with killable(), Link(settings) as link:
        run_job(job, link)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(prog="link.py", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("--rate", required=True, metavar="RATE", help="such as 200mbit or 1gbit")
    parser.add_argument(
        "--delay", type=float, default=0.0, metavar="MS", help="one way, with netem"
    )
    parser.add_argument("--ranks", type=int, default=2, help="at least 2")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each rank")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="S", help="then all end")
    parser.add_argument("script", type=Path, help="a script of launch/")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    args = parser.parse_args(argv)
    if args.ranks < 2:
        raise UserError(f"--ranks {args.ranks}: a link joins at least 2 ranks")
    if args.threads < 1 or args.timeout <= 0:
        raise UserError("--threads and --timeout must be above 0")
    if not args.script.is_file():
        raise UserError(f"{args.script} does not exist; name a script such as launch/benchmark.py")
    return args


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
