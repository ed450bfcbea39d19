"""What a user does, on any device: the same calls on a CPU and on emulated GPUs.

Every function takes this rank's communicator and returns numbers on the CPU that have to be the
same wherever it ran.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.runs.predict import PredictOptions, predict
from distributed_ignn.runs.run import Conduct, run_training
from distributed_ignn.runs.tune import TuneOptions, tune
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import spread
from tests.parity.kind_cases import kind_trainer
from tests.training.small_trainers import small_config, small_trainer

EPOCHS = 10
KINDS = ("awkward/gcn", "weights/gat")
TIGHT = {"tolerance": 1e-12, "max_steps": 300}
SHORT = {"kappa": 0.5}  # solves that are tight in a few evaluations
CODED: dict[str, dict[str, Any]] = {
    "int4": {"halo": "int4"},
    "stale, bf16": {"halo": "bf16", "stale": True},
}
QUIET = Conduct(shows=False, owns_process=False)
Numbers = dict[str, Tensor]
Sections = dict[str, dict[str, Any]]


def course(trainer: Trainer, epochs: int) -> Numbers:
    """Losses of every epoch and the weights after the last; summed over ranks they are whole."""
    share = 1.0 / trainer.comm.world_size
    losses = [trainer.train_epoch().loss for _ in range(epochs)]
    found = {"losses": torch.tensor(losses, dtype=torch.float64) * share}
    sharded = trainer.model.sharded_names()
    for name, parameter in trainer.model.named_parameters():
        rows = name in sharded
        value = parameter.detach().cpu()
        found[name] = spread(trainer.shard, value) if rows else value * share
    return found


def anderson_course(comm: Communicator) -> Numbers:
    """Ten epochs, forward and backward by Anderson's method, of tight solves."""
    sections: Sections = {
        "forward": {"method": "anderson", **TIGHT},
        "adjoint": {"method": "anderson", **TIGHT},
        "model": SHORT,
        "train": {"epochs": EPOCHS},
    }
    return course(small_trainer(comm, small_config(sections)), EPOCHS)


def recorded_course(comm: Communicator) -> Numbers:
    """Five epochs of solves in groups of evaluations, which a GPU replays; a CPU does not."""
    sections: Sections = {
        "forward": {"method": "anderson", "capture": 4, **TIGHT},
        "adjoint": {"method": "picard", "capture": 4, **TIGHT},
        "model": SHORT,
        "train": {"epochs": 5},
    }
    return course(small_trainer(comm, small_config(sections)), 5)


def local_course(comm: Communicator) -> Numbers:
    """Three exact steps, each with three local ones after it."""
    sections: Sections = {
        "forward": TIGHT,
        "adjoint": TIGHT,
        "model": SHORT,
        "train": {"local_steps": 3, "local_lr": 0.02},
    }
    return course(small_trainer(comm, small_config(sections)), 3)


def kind_course(comm: Communicator, case: str) -> Numbers:
    """Three epochs of an explicit kind."""
    return course(kind_trainer(comm, case), 3)


def coded_course(comm: Communicator, name: str) -> Numbers:
    """Three epochs with halo rows that are rounded, or one evaluation old."""
    sections: Sections = {
        "forward": {"method": "anderson", **TIGHT},
        "adjoint": {"method": "anderson", **TIGHT},
        "model": SHORT,
        "comm": CODED[name],
    }
    return course(small_trainer(comm, small_config(sections)), 3)


def of_any_cut(comm: Communicator) -> dict[str, Numbers]:
    """What one process gives as well."""
    found = {"anderson": anderson_course(comm), "local steps": local_course(comm)}
    found["recorded"] = recorded_course(comm)
    return found | {case: kind_course(comm, case) for case in KINDS}


def of_this_cut(comm: Communicator) -> dict[str, Numbers]:
    """What depends on where the graph is cut, by rounding alone."""
    return {name: coded_course(comm, name) for name in CODED}


def run_config(output: Path, **changes: Any) -> RunConfig:
    """A run on a generated graph that takes a second."""
    values: dict[str, Any] = {
        "dataset": "chains",
        "output": output,
        "data": {"chains": {"length": 5, "chains_per_class": 8, "features": 4}},
        "partition": {"method": "contiguous"},
        "model": {"hidden": 4, "kappa": 0.6},
        "forward": {"method": "neural"},
        "schedule": {"warmup_epochs": 1, "model_steps": 2},
        "train": {"epochs": 4, "checkpoint_every": 1, "threads": 1, "dtype": "float64"},
        **changes,
    }
    return RunConfig.model_validate(values)


def whole_run(comm: Communicator, output: Path) -> list[Any]:
    """The epochs' losses are in its folder; a run without a break gives the same summary."""
    straight = run_training(run_config(output / "straight"), comm, conduct=QUIET)
    run_training(run_config(output / "broken"), comm, conduct=QUIET, until=2)
    resumed = run_training(run_config(output / "broken", resume="auto"), comm, conduct=QUIET)
    tuned = tune(TuneOptions(output / "broken"), comm)
    found = predict(PredictOptions(output / "broken", output / "predictions.npz"), comm)
    return [_lasting(straight), _lasting(resumed), tuned.after.converged, found.quality()]


def _lasting(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if "seconds" not in k and "memory" not in k}
