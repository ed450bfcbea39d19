"""Bytes that a rank holds at its worst moment, by what they are for.

They are counted by ``runs/memory/budget.py``, for the run that a ``Workload`` describes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distributed_ignn.comm.codecs import encodes
from distributed_ignn.config import (
    AdjointConfig,
    ModelConfig,
    NeuralSolverConfig,
    RunConfig,
    ScheduleConfig,
    SolveConfig,
    TrainConfig,
)
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.lab.planning.workload import Part, Workload
from distributed_ignn.runs.memory.budget import budget
from distributed_ignn.solvers.methods import METHODS


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One use of memory.

    Args:
        name: what for.
        bytes: of one rank.
    """

    name: str
    bytes: float


def memory_items(
    part: Part, work: Workload, base: float = 0.0, mapped: bool = False
) -> list[MemoryItem]:
    """All uses, largest first.

    Args:
        part: sizes of the rank.
        work: the settings.
        base: what the process takes before it has any data (libraries, device context).
        mapped: whether the rank computes on a CPU, where the shard's file counts too.
    """
    found = budget(
        _sizes(part, work, mapped),
        _run(work, mapped),
        process=round(base),
        evaluations={"forward": work.forward, "adjoint": work.adjoint},
        coded_halo=encodes(work.codec),
        shares_memory=mapped,  # the CPUs that are planned for are those of one machine
    )
    items = [MemoryItem(name, float(value)) for name, value in found.items()]
    return sorted(items, key=lambda item: -item.bytes)


def memory_bytes(part: Part, work: Workload, base: float = 0.0, mapped: bool = False) -> float:
    """Their sum."""
    return sum(item.bytes for item in memory_items(part, work, base, mapped))


def _sizes(part: Part, work: Workload, mapped: bool) -> PartSizes:
    entries = part.owned_entries + part.boundary_entries
    # 32-bit columns, 64-bit weights; 64-bit row starts, ids, labels and degrees; dense features
    ids = 8.0 * (5.0 * part.owned + part.boundary + 2.0 * part.halo + part.sent)
    file = (12.0 if part.weighted else 4.0) * entries + ids + 4.0 * part.owned * work.features
    return PartSizes(
        owned=round(part.owned),
        halo=round(part.halo),
        sent=round(part.sent),
        boundary=round(part.boundary),
        owned_entries=round(part.owned_entries),
        boundary_entries=round(part.boundary_entries),
        channels=part.channels,
        symmetric=part.symmetric,
        weighted=part.weighted,
        graph_channels=part.graph_channels,
        features=work.features,
        train=round(part.owned * work.train_share),
        nodes=part.nodes,
        train_nodes=round(part.nodes * work.train_share),
        file=round(file) if mapped else 0,
    )


def _run(work: Workload, mapped: bool) -> RunConfig:
    settings = {"memory": work.memory, "history_dtype": work.history}

    def read(method: str) -> dict[str, Any]:
        return {k: v for k, v in settings.items() if k in METHODS[method].reads}

    return RunConfig(
        dataset="file",
        data={"path": "any.npz"},
        device="cpu" if mapped else "cuda",
        model=ModelConfig(hidden=work.width, injection="both" if work.propagated else "features"),
        forward=SolveConfig(method=work.method, **read(work.method)),
        adjoint=AdjointConfig(**read(work.adjoint_method)),
        solver=NeuralSolverConfig(memory=work.memory, compress=work.compress),
        schedule=ScheduleConfig(warmup_epochs=0),
        train=TrainConfig(offload=work.offload and not mapped),
    )
