"""The command ``ignn``: finds the command that is asked for and hands it the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from distributed_ignn import __version__
from distributed_ignn.cli import run_main
from distributed_ignn.errors import UserError

# module, and what it does; a module is imported only to be run or asked for its own help
COMMANDS = {
    "train": ("train", "train a model: alone, under torchrun or on a Ray cluster"),
    "predict": ("predict", "write the prediction of every node of a finished run"),
    "partition": ("partition", "divide a graph once, into shards that training reads"),
    "search": ("search", "try settings from a grid and keep those that validate best"),
    "tune": ("tune_solver", "fit the learned solver of a finished run again, without labels"),
    "benchmark": ("benchmark", "measure products, exchanges, epochs, solvers and codecs"),
    "scaling": ("scaling", "measure how training speeds up with ranks and slow links"),
    "plan": ("plan", "predict time and memory on machines that are not at hand"),
    "reproduce": ("reproduce", "repeat one of the paper's studies, or the long-range study"),
    "link": ("link", "run ranks with a slow network between two halves of them"),
}
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


def script() -> int:
    """What ``ignn`` runs."""
    return main(sys.argv[1:])


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
