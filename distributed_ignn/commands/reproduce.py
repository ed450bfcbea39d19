"""Repeat one of the paper's tables, figures or studies, or one of our own, and write its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from rich.console import Console

from distributed_ignn.cli import run_main
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import (
    CONFIG_FOLDER,
    RunConfig,
    parse_options_and_settings,
    resolve_run,
)
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.dataset import OWN_FILE, DatasetName
from distributed_ignn.config.dotted import dotted, names_of
from distributed_ignn.config.idle import refuse_idle
from distributed_ignn.config.options import (
    Bare,
    Commas,
    Count,
    NumberList,
    Options,
    OutputFolder,
    ReadBy,
    Seeds,
    Shown,
    check_outputs,
    distinct_names,
    whole_numbers,
)
from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.variants import all_variants
from distributed_ignn.lab.studies import (
    beyond_k,
    cost,
    dynamics,
    long_range,
    rivals,
    solver_variants,
)
from distributed_ignn.lab.studies.outcome import Outcome, Request, show_outcome, write_outcome
from distributed_ignn.lab.studies.study_runs import with_settings
from distributed_ignn.lab.studies.tables.paper_figures import COLUMNS
from distributed_ignn.lab.studies.tables.paper_results import RESULTS, reproduce_result
from distributed_ignn.lab.studies.tables.table_cells import TableRequest
from distributed_ignn.lab.studies.tables.table_models import DECIDED, MODELS
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
NAMES = (*RESULTS, *STUDIES)
_EXAMPLE = "ignn reproduce figure8 --dataset acm --seeds 0,1,2"
_EXAMPLES = f"""\
tables, of every model beside the paper's figures, and the same models over time:
  table1      amazon-all, reddit2, ogbn-arxiv, ogbn-products: metric, seconds, parameters
  table3      citeseer, acm, corafull, blogcatalog, flickr
  figure2     metric over inference time, with the runs of table1
  figure6     the same with the runs of table3

studies:
  figure3     parameters and training time of the learned solver beside the model's
  figure4     convergence past the K steps that a solver was trained for
  figure5     each term of the solver's loss switched off
  figure7     every variant of the learned solver, with its safeguard and without
  figure8     training with the learned solver, Anderson and Picard, epoch by epoch
  long-range  accuracy over the length of a chain, against GCN, SGC, APPNP and GCNII
  rivals      accuracy on any graph, beside GCN, GAT, GraphSAGE, APPNP, GCNII and an MLP of one
              setting each

examples:
  {_EXAMPLE}
  ignn reproduce long-range --hard --lengths 10,50,200 --out runs/hard
  ignn reproduce rivals --dataset graph.npz --seeds 0,1
  ignn reproduce figure7 --solver-steps 400
  ignn reproduce table3 --datasets citeseer,acm --models gcn,gcnii,ours --seeds 0,1,2,3,4
  ignn reproduce table1 --datasets synthetic-products --data.synthetic.scale .125
  ignn reproduce table3 --finished --out runs/table3
  ignn reproduce figure6 --workers 4

models of tables: {", ".join(MODELS)}

Every cell of a table is a run of its own, with the settings of configs/baselines, configs/paper or
configs; a setting of the command line holds for all runs that it has an effect on. Datasets that
are not there are left out, and the exit code is 3. --workers N or --gpus N train N runs at a time
through Ray.

A dataset that is not named is citeseer, for long-range chains. Runs that a former call has finished
in the same folder with the same settings are not trained again. In a checkout, launch/reproduce.py
is the same command.
"""
_OWN = ("output", "seed", "resume", "workers", "gpus")  # settings that a study decides


def _known_model(name: str) -> str:
    if name not in MODELS:
        raise ValueError(f"is no model{suggest(name, MODELS)}; choose {', '.join(MODELS)}")
    return name


_NAME_LIST = (BeforeValidator(distinct_names), Commas(), Shown("NAME,NAME,..."))
_Datasets = Annotated[tuple[DatasetName, ...], *_NAME_LIST]
_Models = Annotated[tuple[Annotated[str, AfterValidator(_known_model)], ...], *_NAME_LIST]
_Depths = Annotated[NumberList, BeforeValidator(whole_numbers(1))]
_Lengths = Annotated[NumberList, BeforeValidator(whole_numbers(2))]
_OF_TABLE, _OF_CHAINS = ReadBy(tuple(RESULTS)), ReadBy((LONG_RANGE,))


class _Options(Options):
    study: Annotated[
        str,
        Choice(f"{__name__}:NAMES"),
        Bare("STUDY", _EXAMPLE),
    ] = Field(description="what to repeat, see below")
    seeds: Seeds = Field((0,), description="of the runs")
    out: OutputFolder | None = Field(
        None, description="runs/STUDY-DATASET if not given; of tables and their figures runs/TABLE"
    )
    solver_steps: Annotated[Count | None, ReadBy((NETWORKS,))] = Field(
        None,
        description="figure7: gradient steps of every network; the paper's for the dataset, else "
        "its 100 for citeseer, if not given",
    )
    datasets: Annotated[_Datasets, ReadBy(tuple(RESULTS), else_take="--dataset")] = Field(
        (), description="tables: the columns; those of the paper's table"
    )
    models: Annotated[_Models, _OF_TABLE] = Field(
        (), description="tables: the rows, all if not given"
    )
    finished: Annotated[bool, _OF_TABLE] = Field(
        False, description="tables: train nothing, show what is finished"
    )
    hard: Annotated[bool, _OF_CHAINS] = Field(
        False, description="long-range: several classes and feature noise"
    )
    lengths: Annotated[_Lengths | None, _OF_CHAINS] = Field(
        None, description="long-range: of the chains"
    )
    depths: Annotated[_Depths | None, _OF_CHAINS] = Field(
        None, description="long-range: of the deep models"
    )


def main(argv: Sequence[str]) -> int:
    """Exit code of the command, see ``run_main``."""
    return run_main(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    options, flags, path = parse_options_and_settings(
        _Options,
        argv,
        name="ignn reproduce",
        about=__doc__,
        more=_EXAMPLES,
    )
    check_outputs(options)
    if options.study in RESULTS:
        _reproduce_result(options, flags, path)
        return
    _refuse(options.study, flags, _OWN)
    flags, path = _with_defaults(options, flags, path)
    config = resolve_run(flags, path)
    given = names_of(flags)
    first, *others = _trained_with(options.study, config)
    refuse_idle(first, (*given, "forward.method"), others)
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


def _reproduce_result(options: _Options, flags: dict[str, Any], config_file: Path | None) -> None:
    result = RESULTS[options.study]
    if config_file is not None:
        raise UserError(
            f"--config {config_file}: {options.study} takes the settings that come with each model "
            "and dataset; give single ones, as in --train.epochs 50"
        )
    if "dataset" in flags or OWN_FILE in options.datasets:
        raise UserError(
            f"{options.study} takes --datasets, with names or files, as in --datasets "
            "citeseer,graph.npz"
        )
    processes: dict[str, Any] = {
        name: flags.pop(name) for name in ("workers", "gpus") if name in flags
    }
    settings = dict(dotted(flags))
    _refuse(options.study, settings, (*_OWN, *DECIDED))
    request = TableRequest(
        study=options.study,
        size=result.size,
        datasets=options.datasets or COLUMNS[result.size],
        models=tuple(name for name in MODELS if name in (options.models or MODELS)),
        seeds=options.seeds,
        flags=settings,
        out=(options.out or Path("runs") / result.runs).absolute(),
        train=not options.finished,
    )
    reproduce_result(request, processes)


def _refuse(study: str, flags: Mapping[str, Any], decided: Sequence[str]) -> None:
    for name in decided:
        if name in flags:
            way_out = "--models, --seeds and --out" if study in RESULTS else "--seeds and --out"
            raise UserError(f"--{name} is set by the study; it takes {way_out}")


def _trained_with(study: str, config: RunConfig) -> list[RunConfig]:
    """Settings of the runs and solvers of a study, as far as they decide what is read."""
    if study == LONG_RANGE:
        return [config]
    if study == "rivals":
        return [config, *(rivals.settings_of_rival(name, config) for name in rivals.RIVALS)]
    if study == "figure8":
        return [with_settings(config, {"forward.method": each}) for each in dynamics.METHODS]
    learned = with_settings(config, {"forward.method": "neural"})
    if study == "figure3":
        return [learned]
    kinds = [*solver_variants.loss_variants(), *all_variants()]
    return [learned, *(_with_solver(learned, kind.changes) for kind in kinds)]


def _with_solver(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Unchecked, as the studies of solvers make them."""
    solver = config.solver.model_copy(update=dict(changes))
    return config.model_copy(update={"solver": solver})


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


def _with_defaults(
    options: _Options, flags: dict[str, Any], path: Path | None
) -> tuple[dict[str, Any], Path | None]:
    """The settings, with the file or the dataset that a study takes if none is named."""
    if path is not None:
        if options.hard:
            raise UserError("--hard and --config both name a settings file; give one of them")
        return flags, path
    if options.study == LONG_RANGE:
        return flags, CONFIG_FOLDER / f"long-range{'-hard' * options.hard}.yaml"
    return {"dataset": "citeseer", **flags}, None
