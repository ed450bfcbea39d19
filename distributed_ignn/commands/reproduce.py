"""Repeat one of the paper's studies, or the long-range study, and write CSV, PNG and JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from rich.console import Console

from distributed_ignn.cli import run_main
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import CONFIG_FOLDER, parse_options_and_run
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.options import (
    Bare,
    Count,
    NumberList,
    Options,
    OutputFolder,
    Seeds,
    check_outputs,
    whole_numbers,
)
from distributed_ignn.errors import UserError
from distributed_ignn.lab.studies import (
    beyond_k,
    cost,
    dynamics,
    long_range,
    rivals,
    solver_variants,
)
from distributed_ignn.lab.studies.outcome import Outcome, Request, show_outcome, write_outcome
from distributed_ignn.launchers.this_rank import on_this_rank

Study = Callable[[Request, Communicator], Outcome]
LONG_RANGE, NETWORKS = "long-range", "figure7"
STUDIES: dict[str, Study] = {
    "figure3": cost.run,
    "figure4": beyond_k.run,
    "figure5": solver_variants.run_losses,
    NETWORKS: solver_variants.run_networks,
    "figure8": dynamics.run,
    LONG_RANGE: long_range.run,
    "rivals": rivals.run,
}
_EXAMPLE = "ignn reproduce figure8 --dataset acm --seeds 0,1,2"
_EXAMPLES = f"""\
studies:
  figure3     parameters and training time of the learned solver beside the model's
  figure4     convergence past the K steps that the solver was trained for
  figure5     each term of the solver's loss switched off
  figure7     every variant of the learned solver, with its safeguard and without
  figure8     training with the learned solver, Anderson and Picard, epoch by epoch
  long-range  accuracy over the length of a chain, against GCN, SGC, APPNP and GCNII
  rivals      accuracy on any graph, beside GCN, GAT, GraphSAGE, APPNP, GCNII and an MLP of one
              setting each; the rivals are trained anew by every call

examples:
  {_EXAMPLE}
  ignn reproduce long-range --hard --lengths 10,50,200 --out runs/hard
  ignn reproduce rivals --dataset graph.npz --seeds 0,1
  ignn reproduce figure7 --solver-steps 400

A dataset that is not named is citeseer, for long-range chains. Runs that a former call has finished
in the same folder with the same settings are not trained again. In a checkout, launch/reproduce.py
is the same command.
"""
_OWN = ("--output", "--seed", "--resume", "--workers", "--gpus")  # settings that a study decides


_Depths = Annotated[NumberList, BeforeValidator(whole_numbers(1))]
_Lengths = Annotated[NumberList, BeforeValidator(whole_numbers(2))]


class _Options(Options):
    study: Annotated[
        str,
        Choice(f"{__name__}:STUDIES"),
        Bare("STUDY", _EXAMPLE),
    ] = Field(description="what to repeat, see below")
    seeds: Seeds = Field((0,), description="of the runs")
    out: OutputFolder | None = Field(None, description="runs/STUDY-DATASET if not given")
    solver_steps: Count | None = Field(
        None,
        description="figure7: gradient steps of every network; the paper's for the dataset, else "
        "its 100 for citeseer, if not given",
    )
    hard: bool = Field(False, description="long-range: several classes and feature noise")
    lengths: _Lengths | None = Field(None, description="long-range: of the chains")
    depths: _Depths | None = Field(None, description="long-range: of the deep models")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.study != LONG_RANGE and (self.hard or self.lengths or self.depths):
            raise ValueError(
                f"--hard, --lengths and --depths belong to long-range, not {self.study}"
            )
        if self.study != NETWORKS and self.solver_steps is not None:
            raise ValueError(f"--solver-steps belongs to {NETWORKS}, not {self.study}")
        return self


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options, config = parse_options_and_run(
        _Options,
        [*argv, *_defaults(argv)],
        name="ignn reproduce",
        about=__doc__,
        more=_EXAMPLES,
    )
    named = [flag for flag in _OWN if _holds(argv, flag)]
    if named:
        raise UserError(f"{named[0]} is set by the study; it takes --seeds and --out")
    check_outputs(options)
    out = options.out or Path("runs") / f"{options.study}-{Path(config.dataset).stem}"
    request = Request(config, options.seeds, out.absolute())
    study = STUDIES[options.study]
    if options.study == LONG_RANGE:
        extent = long_range.Range(
            options.lengths or long_range.LENGTHS, options.depths or long_range.DEPTHS
        )
        study = partial(long_range.run, extent=extent)
    if options.study == NETWORKS:
        study = partial(solver_variants.run_networks, steps=options.solver_steps)
    on_this_rank(lambda comm: _conduct(options.study, study, request, comm), config.device)


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
