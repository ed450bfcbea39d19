"""Every combination of some settings trained, and the one chosen that validates best.

Test nodes have no say: of every run only the validation figure is read and shown, and the test
figure of the chosen combination once, when it is chosen. Runs that a former call has finished in
the same folder are taken as they are, so that a search goes on where it was interrupted, also with
a larger grid.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.table import Table

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.lab.studies.outcome import spread
from distributed_ignn.lab.studies.study_runs import FinishedRun, train_run, with_settings

Settings = Mapping[str, str]
"""Values by dotted name, as on the command line."""

_FIXED = ("seed", "output", "resume", "workers", "gpus")  # the search decides them
_UNSAFE = re.compile(r"[^\w.=+-]")


@dataclass(frozen=True, slots=True)
class Result:
    """What a combination came to.

    Args:
        settings: of the combination.
        validation: best validation metric of each seed; empty if a run failed.
        seconds: of all its runs.
        failure: why a run failed, in one line.
    """

    settings: Settings
    validation: tuple[float, ...] = ()
    seconds: float = 0.0
    failure: str | None = None

    @property
    def score(self) -> float:
        """Mean over the seeds, below everything for a failure."""
        return spread(self.validation)[0] if self.failure is None else float("-inf")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is searched.

    Args:
        config: settings that all combinations share.
        grid: values of the others by dotted name.
        seeds: one run of each combination for each.
        out: folder for the runs and the files.
    """

    config: RunConfig
    grid: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    out: Path

    def combinations(self) -> list[Settings]:
        """All of them, the last name varying fastest.

        Raises:
            UserError: a name is no setting, or a combination is not allowed; before any training.
        """
        known = [name for name in _names(RunConfig) if name not in _FIXED]
        for name in self.grid:
            if name in _FIXED:
                raise UserError(f"--grid {name} is set by the search; it takes --seeds and --out")
            if name not in known:
                raise UserError(f"--grid {name} is no setting{suggest(name, known)}")
        found: list[Settings] = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        for settings in found:
            with_settings(self.config, settings)
        return found


def search(
    request: Request, comm: Communicator, tell: Callable[[str], None]
) -> tuple[list[Result], dict[str, Any]]:
    """Train what has not been trained, choose, and write search.json and best.yaml.

    Args:
        request: what to search.
        comm: this rank's communicator; every rank calls it.
        tell: told what is being trained and what it validates at.

    Returns:
        The results, the best first, and what was chosen: its settings, metric and test figures.

    Raises:
        UserError: see ``Request.combinations``; or every combination failed.
    """
    combinations = comm.together(request.combinations)
    results, kept = [], {}
    for number, settings in enumerate(combinations, start=1):
        tell(f"{number} of {len(combinations)}: {_line(settings)}")
        result, runs = _train(request, settings, comm)
        tell(f"  failed: {result.failure}" if result.failure else f"  {_figures(result)}")
        results.append(result)
        kept[_line(settings)] = runs
    results.sort(key=lambda result: -result.score)  # stable: the first of equals stays first
    best = results[0]
    if best.failure is not None:
        raise UserError(f"all {len(results)} combinations failed; the first: {best.failure}")
    chosen = _chosen(best, kept[_line(best.settings)])
    comm.together(
        lambda: _write(request, results, chosen) if comm.is_main else None,
        doing=f"write to out = {request.out}",
    )
    return results, chosen


def _train(
    request: Request, settings: Settings, comm: Communicator
) -> tuple[Result, list[FinishedRun]]:
    """One combination with every seed; its runs print test figures, so that is not shown."""
    runs: list[FinishedRun] = []
    for seed in request.seeds:
        changes = {**settings, "seed": seed}
        try:
            with redirect_stdout(io.StringIO()) if comm.is_main else nullcontext():
                runs.append(train_run(request.config, request.out, _name(changes), changes, comm))
        except UserError as error:  # on every rank alike
            return Result(settings, failure=str(error)), []
    validation = tuple(float(run.summary["best_val"]) for run in runs)
    seconds = sum(float(run.summary["seconds_total"]) for run in runs)
    return Result(settings, validation, seconds), runs


def _chosen(best: Result, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    return {
        "settings": dict(best.settings),
        "metric": runs[0].summary["metric"],
        "validation": list(best.validation),
        "test": [float(run.summary["test_at_best_val"]) for run in runs],
    }


def _write(request: Request, results: Sequence[Result], chosen: Mapping[str, Any]) -> None:
    config = with_settings(request.config, {**chosen["settings"], "seed": request.seeds[0]})
    settings = config.model_dump(mode="json", exclude={"output", "resume"})
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    atomic_write_text(request.out / "best.yaml", text)
    statement = {
        "dataset": request.config.dataset,
        "grid": {name: list(values) for name, values in request.grid.items()},
        "seeds": list(request.seeds),
        "protocol": "chosen by the mean validation metric over the seeds; the test nodes of the "
        "chosen combination alone are read, afterwards",
        "chosen": dict(chosen),
        "results": [asdict(result) for result in results],
    }
    atomic_write_json(request.out / "search.json", statement)


def table(results: Sequence[Result], metric: str) -> Table:
    """A row for every combination, the best first."""
    names = list(results[0].settings)
    shown = Table(*names, f"validation {metric}", "seconds", title="best first")
    for result in results:
        cells = [result.settings[name] for name in names]
        figures = "failed" if result.failure else _figures(result)
        shown.add_row(*cells, figures, f"{result.seconds:.1f}")
    return shown


def _figures(result: Result) -> str:
    mean, deviation = spread(result.validation)
    return f"{mean:.4f}" + (f" +- {deviation:.4f}" if len(result.validation) > 1 else "")


def _line(settings: Settings) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def _name(changes: Mapping[str, Any]) -> str:
    """Of a run's folder."""
    return _UNSAFE.sub("-", "+".join(f"{name}={value}" for name, value in changes.items()))


def _names(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += _names(kind, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found
