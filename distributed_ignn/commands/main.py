"""The command ``ignn``: finds the command that is asked for and hands it the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from distributed_ignn import __version__
from distributed_ignn.cli import leave, run_main
from distributed_ignn.commands.table import COMMANDS
from distributed_ignn.errors import UserError

_HELP = """\
usage: ignn COMMAND [ARGUMENT ...]

Exact distributed training of implicit graph neural networks with a learned solver.

commands:
{commands}

examples:
  ignn train --dataset chains --device cpu
  ignn predict runs/chains-seed0 --out chains.parquet
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn train --dataset acm --output runs/acm
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn predict runs/acm --out a.parquet

ignn COMMAND --help shows what a command takes, with examples. In a checkout, launch/COMMAND.py is
the same as ignn COMMAND.
"""


def main(argv: Sequence[str]) -> int:
    """Exit code of a command line, without the word ``ignn``: that of the command, or see cli."""
    name, *rest = argv or [""]
    if name in COMMANDS:
        command = import_module(f"distributed_ignn.commands.{COMMANDS[name][0]}")
        code: int = command.main(rest)
        return code
    return run_main(lambda: _answer(name))


def script() -> NoReturn:
    """What ``ignn`` runs."""
    leave(main(sys.argv[1:]))


def _answer(name: str) -> None:
    """What is said where no command is named."""
    if name in ("-h", "--help"):
        lines = (f"  {command:<11}{about}" for command, (_, about) in COMMANDS.items())
        print(_HELP.format(commands="\n".join(lines)), end="")
    elif name == "--version":
        print(f"distributed_ignn {__version__}")
    else:
        known = ", ".join(COMMANDS)
        if not name:
            raise UserError(f"name a command: {known}; ignn --help tells what each does")
        from distributed_ignn.config.suggest import suggest  # takes time that --help need not

        raise UserError(
            f"{name!r} is no command{suggest(name, COMMANDS)}; choose {known}; ignn --help tells "
            "what each does"
        )
