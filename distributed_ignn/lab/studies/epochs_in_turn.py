"""Seconds of the epochs of several runs, measured in turn: for pictures that compare them.

Runs of a study are trained one after the other, and what else the machine does meanwhile differs
from run to run. So the finished runs are trained once more for their seconds, from the same weights
on the same shards, epoch by epoch in turn and without files. That takes as long as the first time,
and all of their models are in memory at once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.files import atomic_write_json
from distributed_ignn.lab.benchmarks.interleaving import finish_device
from distributed_ignn.lab.studies.study_runs import FinishedRun
from distributed_ignn.long_steps import LongStep, long_step
from distributed_ignn.reading.strict_json import read_json
from distributed_ignn.runs.predict import load_run_shard
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.trainer import Trainer

Epochs = list[dict[str, float]]
"""By epoch: ``seconds`` with the solver phase, ``solver_seconds`` of that; of the slowest rank."""


def epochs_in_turn(
    runs: Mapping[str, FinishedRun], keep: Path, comm: Communicator
) -> dict[str, Epochs]:
    """Seconds of all epochs of runs that differ in their settings alone, by name.

    Args:
        runs: on the same shards.
        keep: a file, from which a later call with the same runs takes what this one measures.
        comm: this rank's communicator; every rank calls it.

    Raises:
        UserError: shards are gone, ``keep`` cannot be written, or see ``Trainer.train_epoch``.

    Returns:
        As many epochs as the run has; fewer if its numbers went bad and it had to go back.
    """
    asked = {
        "ranks": comm.world_size,
        "runs": {
            name: [run.config.model_dump(mode="json", exclude={"output"}), len(run.epochs)]
            for name, run in runs.items()
        },
    }
    (stored, *_) = comm.gather_json(_read(keep) if comm.is_main else None)
    if stored is not None and stored["asked"] == asked:
        return dict(stored["found"])
    found = _measure(runs, comm)
    comm.together(
        lambda: atomic_write_json(keep, {"asked": asked, "found": found}) if comm.is_main else None,
        doing=f"write {keep}",
    )
    return found


def typical_epoch(epochs: Sequence[Mapping[str, float]]) -> float:
    """Seconds: the median epoch without solver phases, and the mean share of these in an epoch."""
    model = statistics.median(epoch["seconds"] - epoch["solver_seconds"] for epoch in epochs)
    return model + statistics.fmean(epoch["solver_seconds"] for epoch in epochs)


def _read(path: Path) -> Any:
    """What a former call has kept; None where that cannot be read."""
    try:
        stored = read_json(path)
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and {"asked", "found"} == {*stored} else None


def _measure(runs: Mapping[str, FinishedRun], comm: Communicator) -> dict[str, Epochs]:
    first, *_ = runs.values()
    shard = comm.together(lambda: load_run_shard(first.config.output, comm))
    trainers = {name: Trainer(run.config, shard, comm) for name, run in runs.items()}
    found: dict[str, Epochs] = {name: [] for name in runs}
    total = sum(len(run.epochs) for run in runs.values())
    what = f"timing the epochs of {', '.join(runs)} in turn"
    with long_step(what, total, "epochs") if comm.is_main else nullcontext(LongStep(what)) as told:
        for number in range(max(len(run.epochs) for run in runs.values())):
            for name, run in runs.items():
                if number < len(run.epochs) and name in trainers:
                    seconds = _epoch(trainers[name], comm)
                    if seconds is None:
                        del trainers[name]
                        continue
                    found[name].append(seconds)
                    told.advance(1)
    return found


def _epoch(trainer: Trainer, comm: Communicator) -> dict[str, float] | None:
    """None where the run went back to an earlier epoch, because its numbers were bad."""
    comm.barrier()
    finish_device(comm)
    started = time.perf_counter()
    try:
        record = trainer.train_epoch()
    except NumbersError:  # on every rank alike
        return None
    finish_device(comm)
    own = [time.perf_counter() - started, record.solver_seconds]
    seconds, solver = comm.max(torch.tensor(own, dtype=torch.float64)).tolist()
    return {"seconds": seconds, "solver_seconds": solver}
