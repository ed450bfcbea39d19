"""Predictions beside measurements: real epochs on ranks of this machine.

Each case trains on the generated graph, one thread a rank, with as many evaluations in every solve
as the case says (a tolerance that is never reached). The prediction reads the sizes of the shards
and a measured profile of this machine, and nothing of the runs.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import (
    AdjointConfig,
    CommConfig,
    DataConfig,
    ModelConfig,
    NeuralSolverConfig,
    PartitionConfig,
    RunConfig,
    ScheduleConfig,
    SolveConfig,
    SyntheticConfig,
    TrainConfig,
)
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.storage.shard_store import read_shard, write_shards
from distributed_ignn.lab.planning.epoch import EpochModel
from distributed_ignn.lab.planning.equations import Machine
from distributed_ignn.lab.planning.footprint import memory_bytes
from distributed_ignn.lab.planning.hardware import Profile
from distributed_ignn.lab.planning.sizes import PartitionSizes, read_sizes
from distributed_ignn.lab.planning.workload import Workload
from distributed_ignn.launchers.local import run_local
from distributed_ignn.runs.memory.machine import peak

_NEVER = 1e-30  # a tolerance
_UNWATCHED = CommConfig(hang_seconds=0.0)  # no thread beside what is measured
_WARMUP = 2  # epochs that are not counted

Method = Literal["anderson", "neural"]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One run.

    Args:
        scale: of the generated graph.
        width: D.
        ranks: P.
        method: of the solves.
        steps: evaluations of each solve.
    """

    scale: float
    width: int
    ranks: int
    method: Method
    steps: int = 5

    @property
    def name(self) -> str:
        return f"scale {self.scale}, D {self.width}, {self.ranks} ranks, {self.method}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a run was measured to take; the slowest, the sum and the largest of its ranks.

    Args:
        seconds: of an epoch, the median.
        bytes: sent in an epoch by all ranks.
        memory: most bytes resident in any rank.
    """

    seconds: float
    bytes: float
    memory: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A case with what was predicted and what was measured."""

    case: Case
    predicted: Measurement
    measured: Measurement


def validate(cases: Sequence[Case], profile: Profile, epochs: int, tell: Tell) -> list[Comparison]:
    """Run every case and predict it; graphs are generated once for each scale and rank count.

    Args:
        cases: what to run.
        profile: measured on this machine.
        epochs: counted in each run.
        tell: told what is being run.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            shards = Path(folder) / f"{case.scale}-{case.ranks}"
            if not shards.exists():
                tell(f"generating scale {case.scale} in {case.ranks} parts")
                # in a process of its own, whose memory is gone afterwards
                run_local(_write, 1, case.scale, case.ranks, str(shards))
            tell(f"running {case.name}")
            results = run_local(_train, case.ranks, case, epochs, str(shards), comm=_UNWATCHED)
            found.append(
                Comparison(case, predict(case, read_sizes(shards), profile), join(results))
            )
    return found


def predict(case: Case, sizes: PartitionSizes, profile: Profile) -> Measurement:
    """The forecast of a case from its shards and this machine's profile."""
    profile = profile.model_copy(update={"ranks_per_box": case.ranks})
    learned = case.method == "neural"
    work = Workload(
        width=case.width,
        features=sizes.features,
        classes=sizes.classes,
        forward=case.steps,
        adjoint=case.steps,
        validation=case.steps,
        method=case.method,
        warm_adjoint=not learned,
        locality=sizes.locality,
        train_share=sizes.train_share,
    )
    machine = Machine(profile, case.ranks)
    cost = EpochModel(sizes.largest, work, machine).epoch()
    mean = replace(sizes.largest, halo=sizes.cut.halo, sent=sizes.cut.halo)
    sent = EpochModel(mean, work, machine).epoch().sent * case.ranks
    memory = memory_bytes(sizes.largest, work, profile.process_bytes, mapped=True)
    return Measurement(cost.seconds, sent, memory)


def run_config(case: Case, epochs: int) -> RunConfig:
    """The settings of a case."""
    limits = {"tolerance": _NEVER, "max_steps": case.steps}
    return RunConfig(
        dataset="synthetic-products",
        device="cpu",
        data=DataConfig(synthetic=SyntheticConfig(scale=case.scale)),
        model=ModelConfig(hidden=case.width),
        forward=SolveConfig(method=case.method, **limits),
        adjoint=AdjointConfig(**limits),
        solver=NeuralSolverConfig(target_max_steps=case.steps),
        schedule=ScheduleConfig(warmup_epochs=1, model_steps=10 * (epochs + _WARMUP)),
        comm=CommConfig(halo="fp32"),
        train=TrainConfig(epochs=epochs + _WARMUP, threads=1),
    )


def _write(comm: Communicator, scale: float, parts: int, folder: str) -> None:
    config = DataConfig(synthetic=SyntheticConfig(scale=scale))
    data = load_dataset("synthetic-products", Path(), config)
    partition = PartitionConfig()
    write_shards(Path(folder), data, assign_parts(data.graphs, parts, partition), partition)


def _train(comm: Communicator, case: Case, epochs: int, folder: str) -> Measurement:
    """One rank's run: the first epochs warm up, and fit the learned solver where there is one."""
    # imported here: a rank that only calibrates needs no trainer in its memory
    from distributed_ignn.training.trainer import Trainer

    shard = read_shard(Path(folder), comm.rank, verify=False)
    trainer = Trainer(run_config(case, epochs), shard, comm)
    records = [trainer.train_epoch() for _ in range(epochs + _WARMUP)][_WARMUP:]
    return Measurement(
        statistics.median(record.seconds for record in records),
        statistics.mean(record.bytes_sent for record in records),
        float(peak(comm.device)),
    )


def join(results: Sequence[Measurement]) -> Measurement:
    """One measurement from those of all ranks."""
    return Measurement(
        max(result.seconds for result in results),
        results[0].bytes,  # already summed over ranks
        max(result.memory for result in results),
    )
