"""Run a command on several ranks of this machine with a slow link between two halves of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from distributed_ignn.cli import run_main
from distributed_ignn.commands.table import COMMANDS
from distributed_ignn.config import parse_options
from distributed_ignn.config.options import Bare, Count, Options, Rest, Shown
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.link import Link, LinkSettings
from distributed_ignn.launchers.local_job import Job, killable, run_job

_EXAMPLE = "ignn link --rate 200mbit benchmark exchange --device cpu"
_EXAMPLES = f"""\
examples:
  {_EXAMPLE}
  ignn link --rate 1gbit --ranks 4 train --dataset acm --device cpu
  ignn link --rate 1gbit launch/train.py --dataset acm --device cpu

The ranks get torchrun's environment. The first half runs in one network namespace, the second half
in another; a cable of the given rate joins them, in each direction. It takes root and iproute2.
In a checkout, launch/link.py is the same command.
"""


def _at_least_2(value: int) -> int:
    if value < 2:
        raise ValueError("is too few: a link joins at least 2 ranks")
    return value


class _Options(Options):
    rate: Annotated[str, Shown("RATE")] = Field(description="such as 200mbit or 1gbit")
    delay: Annotated[float, Shown("MS")] = Field(0.0, description="one way, with netem")
    ranks: Annotated[int, AfterValidator(_at_least_2)] = Field(2, description="at least 2")
    threads: Count = Field(1, description="CPU threads of each rank")
    timeout: Annotated[float, Shown("S")] = Field(3600.0, gt=0, description="then all end")
    command: Annotated[str, Bare("COMMAND", _EXAMPLE)] = Field(
        description="a command of ignn, or a script of Python"
    )
    arguments: Annotated[tuple[str, ...], Rest("ARGUMENT")] = Field((), description="its arguments")


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options = parse_options(_Options, argv, name="ignn link", about=__doc__, more=_EXAMPLES)
    settings = LinkSettings(options.rate, options.delay)
    command = sys.executable, *_program(options.command), *options.arguments
    job = Job(command, options.ranks, options.timeout, options.threads, show=True)
    with killable(), Link(settings) as link:
        run_job(job, link)


def _program(name: str) -> tuple[str, ...]:
    """What Python has to run for a command of ignn, or for a script."""
    if name in COMMANDS:
        return "-m", "distributed_ignn", name
    if not Path(name).is_file():
        raise UserError(
            f"{name} is no command of ignn and no file; name a command, such as benchmark, or the "
            "path of a script"
        )
    return (name,)
