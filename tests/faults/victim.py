"""The small training run that the fault tests hurt, under both launchers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from distributed_ignn.config import NeuralSolverConfig, ScheduleConfig
from tests.jobs import TRAIN

INJECTED = ("-m", "tests.faults.injected")

# What every model reads: an explicit kind refuses the settings of a solve.
COMMON = shlex.split("""
    --dataset chains --device cpu --partition.method metis
    --data.chains.length 6 --data.chains.chains-per-class 20 --data.chains.features 4
    --data.chains.noise 0.1 --model.hidden 8 --model.dropout 0.2
    --train.checkpoint-every 2 --train.keep-checkpoints 3 --train.threads 1
    --train.log-level debug
""")
# Every part of a run that has a state: warm starts, Adam, the learned solver and its training.
SETTINGS = COMMON + shlex.split("""
    --forward.method neural
    --solver.network mlp --solver.hidden 4 --solver.compress 2 --solver.steps 4
    --schedule.warmup-epochs 3 --schedule.warmup-solver-steps 4 --schedule.model-steps 4
""")

_PLAIN, _USUAL = NeuralSolverConfig(), ScheduleConfig()
WITHOUT_NETWORK = (
    *("--solver.network", "none"),
    *("--solver.hidden", str(_PLAIN.hidden), "--solver.steps", str(_PLAIN.steps)),
    *("--schedule.warmup-solver-steps", str(_USUAL.warmup_solver_steps)),
)
"""Takes the network, and what was said of it, away again."""


def alone(*arguments: str) -> list[str]:
    """The command of a job of one process."""
    return [sys.executable, TRAIN, *SETTINGS, *arguments]


def torchrun(
    ranks: int,
    *arguments: str,
    restarts: int = 0,
    program: Sequence[str] = (TRAIN,),
    settings: Sequence[str] = SETTINGS,
) -> list[str]:
    """The command of a job under torchrun."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    starter += ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    return [*starter, *program, *settings, *arguments]


def ray(workers: int, *arguments: str, restarts: int = 0) -> list[str]:
    """The command of a job on a Ray cluster of its own."""
    own = ("--workers", str(workers), "--restarts", str(restarts))
    return alone(*own, *arguments)
