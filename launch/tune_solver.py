"""Fit the learned solver of a finished run again, without labels; alone or under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from distributed_ignn.cli import run_main
from distributed_ignn.config import CommandParser
from distributed_ignn.errors import UserError
from distributed_ignn.launchers.this_rank import on_this_rank
from distributed_ignn.runs.tune import TuneOptions, tune

_EXAMPLES = """\
examples:
  python launch/tune_solver.py --run runs/acm
  torchrun --standalone --nproc-per-node 2 -- launch/tune_solver.py --run runs/acm
"""


def main(argv: Sequence[str]) -> int:
    """Exit code of the command: 0, or 2 after one line about a mistake."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options, device = _parse(argv)
    on_this_rank(lambda comm: tune(options, comm), device)


def _parse(argv: Sequence[str]) -> tuple[TuneOptions, str]:
    parser = CommandParser(prog="tune_solver.py", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, help="output folder of a training run")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--steps", type=int, default=0, help="gradient steps of the solver's network, if it has one"
    )
    found = parser.parse_args(argv)
    if found.steps < 0:
        raise UserError(f"--steps {found.steps} must be at least 0")
    return TuneOptions(found.run, found.steps), found.device


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
