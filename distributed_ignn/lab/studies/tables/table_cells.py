"""The cells of a table: which runs it consists of, checked before any of them is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_ignn.config import RunConfig, absolute_paths, load_yaml
from distributed_ignn.errors import UserError
from distributed_ignn.lab.studies.study_runs import is_same_run, with_settings
from distributed_ignn.lab.studies.tables.table_models import MODELS, overridden, settings_of
from distributed_ignn.runs.layout import SETTINGS


@dataclass(frozen=True, slots=True)
class TableRequest:
    """What a table is asked for.

    Args:
        study: its name.
        size: ``large`` or ``small``: which of the paper's datasets it is about.
        datasets, models, seeds: of its cells.
        flags: settings of the command line, by dotted name.
        out: folder for its files and runs.
        train: whether runs that are not finished are trained.
    """

    study: str
    size: str
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    flags: Mapping[str, Any]
    out: Path
    train: bool = True

    def averaged(self, what: str) -> str:
        """``mean over seeds 0, 1`` of ``mean``, or ``seed 0`` where there is one."""
        if len(self.seeds) == 1:
            return f"seed {self.seeds[0]}"
        return f"{what} over seeds {', '.join(map(str, self.seeds))}"


@dataclass(frozen=True, slots=True, eq=False)
class TableCell:
    """One run of a table.

    Args:
        dataset, model, seed: where it stands.
        run: its settings, with absolute paths and without the folder of its shards.
    """

    dataset: str
    model: str
    seed: int
    run: RunConfig

    @property
    def name(self) -> str:
        """For people."""
        return f"{Path(self.dataset).stem}, {MODELS[self.model].label}, seed {self.seed}"


def plan_cells(request: TableRequest) -> list[TableCell]:
    """All runs of a table, dataset by dataset and model by model.

    Raises:
        UserError: settings are wrong, one of the command line has an effect on no run, or two
            datasets have one name.
    """
    _refuse_clashes(request.datasets)
    cells: list[TableCell] = []
    effective: set[str] = set()
    for dataset in request.datasets:
        for model in request.models:
            config = settings_of(model, dataset, request.size)
            config, taken = overridden(config, request.flags)
            effective |= taken
            cells += [_cell(request.out, dataset, model, seed, config) for seed in request.seeds]
    for name, value in request.flags.items():
        if name not in effective:
            raise UserError(
                f"{name} = {value} has no effect on any of {', '.join(request.models)}; drop it"
            )
    return cells


def _refuse_clashes(datasets: Sequence[str]) -> None:
    """Two files of one name would share their runs, and a column's head would not tell them."""
    known: dict[str, str] = {}
    for dataset in datasets:
        stem = Path(dataset).stem
        other = known.setdefault(stem, dataset)
        if other != dataset:
            raise UserError(
                f"datasets = {other},{dataset}: both are called {stem}, as are the folders of "
                "their runs; rename one of them"
            )


def _cell(out: Path, dataset: str, model: str, seed: int, config: RunConfig) -> TableCell:
    folder = out / "runs" / Path(dataset).stem / f"{model}-seed{seed}"
    run = with_settings(config, {"seed": seed, "output": folder})
    return TableCell(dataset, model, seed, absolute_paths(run))


def check_folders(cells: Sequence[TableCell]) -> None:
    """Refuse a folder whose runs have other settings, before anything is trained.

    Raises:
        UserError: naming the first of them.
    """
    for cell in cells:
        path = cell.run.output / SETTINGS
        if path.is_file():
            shared = cell.run.partition.dir or load_yaml(path).partition.dir
            is_same_run(on_shards(cell.run, shared))


def on_shards(run: RunConfig, folder: Path | None) -> RunConfig:
    """The run with the shards that it shares with others."""
    return with_settings(run, {"partition.dir": folder})
