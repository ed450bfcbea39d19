"""Fit the learned solver of a finished run again, without labels; alone or under torchrun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from distributed_ignn.cli import run_main
from distributed_ignn.config import parse_options
from distributed_ignn.config.options import Bare, Options
from distributed_ignn.launchers.this_rank import on_this_rank
from distributed_ignn.runs.tune import TuneOptions, tune

_EXAMPLE = "ignn tune runs/acm"
_EXAMPLES = f"""\
examples:
  {_EXAMPLE}
  torchrun --standalone --nproc-per-node 2 -m distributed_ignn tune runs/acm

In a checkout, launch/tune_solver.py is the same command.
"""


class _Options(Options):
    run: Annotated[Path, Bare("RUN", _EXAMPLE, flag=True)] = Field(
        description="output folder of a training run"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where there is one"
    )
    steps: int = Field(0, ge=0, description="gradient steps of the solver's network, if it has one")


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    found = parse_options(_Options, argv, name="ignn tune", about=__doc__, more=_EXAMPLES)
    on_this_rank(lambda comm: tune(TuneOptions(found.run, found.steps), comm), found.device)
