"""Training runs of a study: each in a folder of its own, and not trained twice."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from distributed_ignn.comm.apart import apart
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig, absolute_paths, load_yaml
from distributed_ignn.config.check import validate_run
from distributed_ignn.config.dotted import unlike
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.strict_json import read_json
from distributed_ignn.runs.epochs import EpochHook
from distributed_ignn.runs.layout import SETTINGS
from distributed_ignn.runs.output.records import METRICS, SUMMARY, read_metrics
from distributed_ignn.runs.run import Conduct, run_training
from distributed_ignn.runs.shard_record import read_record
from distributed_ignn.runs.shards import source_of

_TOLD = 3
_FREE = (
    "resume",
    "quiet",
    "device",
    "train.log_level",
    "train.keep_freed",
)  # no figure depends on them


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What a run left behind.

    Args:
        config: its settings; ``config.output`` is its folder.
        summary: summary.json.
        epochs: the records of metrics.jsonl.
    """

    config: RunConfig
    summary: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...]


def with_settings(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A checked copy with other values.

    Args:
        config: left as it is.
        changes: by dotted name, as on the command line (``forward.method``).

    Raises:
        UserError: the values are wrong or contradict each other.
    """
    values = config.model_dump()
    for name, value in changes.items():
        *sections, key = name.split(".")
        level = values
        for section in sections:
            level = level[section]
        level[key] = value
    return validate_run(values)


def train_run(
    config: RunConfig, out: Path, name: str, changes: Mapping[str, Any], comm: Communicator
) -> FinishedRun:
    """Train into ``out``/runs/``name``, or take the run that a former call has finished there.

    Args:
        config: settings of the study.
        out: folder of the study.
        name: of this run.
        changes: see ``with_settings``.
        comm: this rank's communicator; every rank calls it.

    Raises:
        UserError: the folder holds a run with other settings, or see ``run_training``.
    """
    folder = out / "runs" / name
    run = absolute_paths(with_settings(config, {**changes, "output": folder}))
    if comm.is_main:
        Console(highlight=False).print(f"[bold]run {name}[/bold]", soft_wrap=True)
    refuse_other_data(run, comm)
    complete_run(run, comm)
    comm.barrier()  # rank 0 has written the files that every rank reads now
    return comm.together(lambda: read_finished(run), doing=f"read {run.output}")


def complete_run(
    run: RunConfig,
    comm: Communicator,
    hook: EpochHook | None = None,
    conduct: Conduct | None = None,
) -> None:
    """Train a run from where a former call has left it; nothing, if that has finished it.

    Args:
        run: with absolute paths; ``run.output`` is its folder.
        comm: this rank's communicator; every rank calls it.
        hook, conduct: see ``run_training``.

    Raises:
        UserError: see ``train_run``.
    """
    found = comm.together(lambda: _look(run, comm.world_size) if comm.is_main else None)
    begun, finished = comm.gather_json(found)[0]  # other machines may not see the folder
    if begun and finished:
        return
    resumed = with_settings(run, {"resume": "auto"}) if begun else run
    run_training(resumed, comm, hook, conduct=replace(conduct or Conduct(), more_follows=True))


def _look(run: RunConfig, ranks: int) -> tuple[bool, bool]:
    """Whether a run is begun, and whether it is finished; one goes on with as many ranks alone."""
    finished = is_finished(run)
    parts = ranks
    with suppress(UserError):  # not begun, or damaged: reported where it is read
        parts = read_record(run.output).parts
    if not finished and parts != ranks:
        raise UserError(
            f"{run.output} was begun with ranks = {parts}, and this job has {ranks}; start as many "
            "as then, choose another --out, or remove it"
        )
    return is_same_run(run), finished


def refuse_other_data(run: RunConfig, comm: Communicator) -> None:
    """Refuse a folder whose run had another graph in the same file; every rank calls it.

    A file is read again where its size or time of change is not what it was.

    Args:
        run: with absolute paths, and a folder of shards only where the user has named one.
        comm: this rank's communicator.

    Raises:
        UserError: the graph was another, or cannot be read.
    """

    def is_new() -> bool | None:
        if not comm.is_main or run.partition.dir is not None:
            return None
        with suppress(UserError):
            before, now = read_record(run.output).source, source_of(run)
            return bool(before and now and before != now)
        return None

    if not comm.gather_json(is_new())[0]:
        return

    def compare() -> None:
        if _fingerprint(run, source_of(run)) != read_record(run.output).fingerprint:
            raise UserError(
                f"{run.output} holds a run on what {run.data.path or run.dataset} was before it "
                "changed; choose another --out, or remove it"
            )

    apart(comm, compare, works=comm.is_main, doing=f"read {run.dataset}")


_FINGERPRINTS: dict[str, str] = {}


def _fingerprint(run: RunConfig, source: str) -> str:
    """Of a run's graph; the runs of a study share it."""
    key = f"{source} {run.dataset} {run.data_root} {run.data.model_dump_json()}"
    if key not in _FINGERPRINTS:
        graph = load_dataset(run.dataset, run.data_root, run.data)
        _FINGERPRINTS[key] = graph.fingerprint()
    return _FINGERPRINTS[key]


def is_finished(run: RunConfig) -> bool:
    """Whether the folder of a run has its summary."""
    return (run.output / SUMMARY).is_file()


def is_same_run(run: RunConfig) -> bool:
    """Whether the folder of a run with absolute paths holds this one, finished or not.

    Raises:
        UserError: it holds another one.
    """
    path = run.output / SETTINGS
    if not path.is_file():
        return False
    different = _what_differs(load_yaml(path), run)
    if different:
        raise UserError(
            f"{run.output} holds a run with other settings ({different}); give those, choose "
            "another --out, or remove it"
        )
    return True


def _what_differs(found: RunConfig, asked: RunConfig) -> str:
    """Name the first settings in which a run that was found is not the one asked for, if any."""
    told = [
        f"{name} {there} there, {here} here" for name, here, there in unlike(asked, found, _FREE)
    ]
    more = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
    return "; ".join(told[:_TOLD] + more)


def read_finished(run: RunConfig) -> FinishedRun:
    """What the finished run in ``run.output`` left behind.

    Raises:
        UserError: its files cannot be read.
    """
    path = run.output / SUMMARY
    try:
        summary = read_json(path)
        if not isinstance(summary, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({in_one_line(error)}); remove {run.output} to run it again"
        ) from error
    return FinishedRun(run, summary, tuple(read_metrics(run.output / METRICS)))
