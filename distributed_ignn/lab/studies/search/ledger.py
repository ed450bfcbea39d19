"""What a search leaves behind: search.json, from which it goes on, and best.yaml."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distributed_ignn.config import RunConfig, absolute_paths
from distributed_ignn.config.idle import without_idle
from distributed_ignn.errors import UserError
from distributed_ignn.files import atomic_write_json, atomic_write_text
from distributed_ignn.lab.studies.search.halving import Halving, Trial
from distributed_ignn.lab.studies.search.space import FAST, Axis, identity
from distributed_ignn.lab.studies.study_runs import with_settings
from distributed_ignn.reading.plain_files import in_one_line, read_plain

RECORD, BEST = "search.json", "best.yaml"
PROTOCOL = (
    "Validation nodes decide which trials go on and which one is chosen; nothing is evaluated on "
    "the test nodes."
)
OWN = ("seed", "output", "resume", "workers", "gpus")
"""Settings that a search decides itself."""

_LIMIT = 2**26
_GIVEN = "as given"


class Record(BaseModel):
    """What of search.json a later call reads.

    Args:
        identity: see ``search_identity``.
        metric: by which the trials were validated.
        graph: fingerprint of what is trained on; empty where an earlier version wrote none.
        seconds: that all calls before have taken.
        trials: in the order in which they began.
    """

    model_config = ConfigDict(extra="ignore")

    identity: str
    metric: str = "metric"
    graph: str = ""
    seconds: float = Field(0.0, ge=0)
    trials: list[Trial] = Field(default_factory=list)


def search_identity(base: RunConfig, rungs: Sequence[int]) -> str:
    """Tells searches apart whose trials cannot be compared."""
    own: dict[str, Any] = {"seed": 0, "output": Path(), "resume": None, "workers": None}
    return f"{identity(base.model_copy(update=own))}-{'-'.join(map(str, rungs))}"


def read_record(out: Path, name: str, graph: str) -> Record:
    """What an earlier call has left in a folder; an empty record if nothing.

    Args:
        out: the folder.
        name: see ``search_identity``.
        graph: see ``Record``.

    Raises:
        UserError: the file is damaged, or it is that of another search or of another graph.
    """
    path = out / RECORD
    if not path.is_file():
        return Record(identity=name, graph=graph)
    try:
        found = Record.model_validate_json(read_plain(path, _LIMIT))
    except (OSError, ValidationError) as error:
        reason = in_one_line(str(error))
        raise UserError(
            f"{path} cannot be read ({reason}); remove it and {out / 'runs'}, or choose another "
            "--out"
        ) from error
    if found.identity != name:
        raise UserError(
            f"--out {out} holds a search with other settings; choose another --out, or remove it"
        )
    if found.graph not in ("", graph):
        raise UserError(
            f"--out {out} holds a search on a graph that has changed since, whose figures cannot "
            "be compared; choose another --out, or remove it"
        )
    return found.model_copy(update={"graph": graph})


class Ledger:
    """Writes the files of a search.

    Args:
        out: its folder.
        base: settings as the search was given them.
        axes: what it may change.
        halving: the search.
        record: what is known of it already; ``metric`` may be set as soon as it is.
    """

    def __init__(
        self, out: Path, base: RunConfig, axes: Sequence[Axis], halving: Halving, record: Record
    ) -> None:
        self._out, self._base, self._axes, self._halving = out, base, axes, halving
        self._graph, self.metric = record.graph, record.metric

    def write(self) -> None:
        """Write down how the search stands.

        Raises:
            OSError: the folder cannot be written.
        """
        plan, best = self._halving.plan, self._halving.chosen()
        statement = {
            "identity": search_identity(self._base, plan.rungs),
            "dataset": self._base.dataset,
            "metric": self.metric,
            "graph": self._graph,
            "protocol": PROTOCOL,
            "seeds": list(plan.seeds),
            "rungs": list(plan.rungs),
            "seconds": round(self._halving.budget.spent, 3),
            "chosen": None if best is None else self._chosen(best),
            "space": {axis.name: list(axis.values) for axis in self._axes},
            "tried": self.tried(),
            "failed": sum(trial.failure is not None for trial in self._halving.trials),
            "trials": [trial.model_dump(mode="json") for trial in self._halving.trials],
        }
        self._out.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self._out / RECORD, statement)

    def _chosen(self, trial: Trial) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "settings": trial.settings,
            "validation": validation(trial, self._halving.plan.seeds),
            "confirmed": trial.confirmed,
        }

    def tried(self) -> dict[str, dict[str, int]]:
        """How many trials have had each value of each setting."""
        names = {axis.name for axis in self._axes}
        names |= {name for trial in self._halving.trials for name in trial.settings}
        return {
            name: dict(Counter(t.settings.get(name, _GIVEN) for t in self._halving.begun))
            for name in sorted(names)
        }

    def write_best(self, trial: Trial) -> None:
        """Write the settings of a trial as a file for ``ignn train --config``.

        Raises:
            OSError: the folder cannot be written.
        """
        seed = self._halving.plan.seeds[0]
        changes = {**trial.settings, "seed": seed, "output": self._out / "best"}
        config = absolute_paths(without_idle(with_settings(self._base, changes)))
        settings = config.model_dump(mode="json", exclude=set(OWN) - {"seed", "output"})
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        header = "".join(f"# {line}\n" for line in self._told(trial))
        atomic_write_text(self._out / BEST, header + text)

    def _told(self, trial: Trial) -> list[str]:
        """How the settings were found."""
        halving, trials = self._halving, self._halving.begun
        seeds = halving.plan.seeds
        ended = sum(each.is_over(seeds[0]) for each in trials)
        last = trial.last(seeds[0])
        figures = ", ".join(f"{value:.4f}" for value in validation(trial, seeds))
        lines = [
            f"Found by ignn search in {halving.budget.spent:.0f} s: trial {trial.number} "
            f"({trial.origin}) of {len(trials)}; trained to the end: {ended}.",
            f"Validation {self.metric}: {figures} (seed {', '.join(map(str, seeds))}), "
            f"epoch {last.best_epoch if last else 0}{doubt(trial.confirmed)}.",
            PROTOCOL,
        ]
        first = next((each for each in trials if each.number == 1), None)
        if first is not None and first is not trial and not math.isinf(halving.score(first)):
            lines.append(f"With the settings as given: {halving.score(first):.4f}.")
        return [*lines, f"Other than the settings as given: {described(trial.settings)}."]


def validation(trial: Trial, seeds: Sequence[int]) -> list[float]:
    """The best validation metric of each seed that is trained."""
    return [last.validation for seed in seeds if (last := trial.last(seed))]


def doubt(confirmed: bool) -> str:
    """What a validation metric that was not confirmed is shown with."""
    return "" if confirmed else " (not confirmed)"


def brief(settings: Mapping[str, str]) -> str:
    """Settings as short as they are still clear; without those that all trials but one have."""
    shown = {name: value for name, value in settings.items() if FAST.get(name) != value}
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in shown.items())


def described(settings: Mapping[str, str]) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} = {value}" for name, value in settings.items()) or "nothing"
