"""What an engine costs beside plain torch: seconds of a step, and the memory that it holds.

The nodes' features are left out, so each node has an embedding: that is the only parameter whose
optimiser is large, and each rank holds the rows of its own nodes. A step is given gradients as
large as the weights; nothing is solved, so what differs is the engine's own. Memory is measured
with one engine at a time, in the device's memory: as it rests between steps, and at the most in a
step. On a GPU the engines whose optimiser waits in host memory are measured too.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.shipped import shipped_file
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.interleaving import (
    Report,
    check_alike,
    compare,
    finish_device,
    interleave,
    largest,
)
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.runs.memory.machine import forget_peak, peak, resident, return_freed_memory
from distributed_ignn.training.engines import start_engine
from distributed_ignn.training.engines.torch import Engine

_STEPS = 3
_BASE = "torch"


def run(workload: Workload) -> Report:
    """Measure on all ranks of the job; every rank calls it."""
    comm = workload.comm
    shard = replace(workload.shard, features=None, num_features=0)
    engines = _engines(workload.config, comm)
    for config in engines.values():
        _alone(config, shard, comm)  # what libraries keep once they are used is not an engine's
    rests, peaks, weights = {}, {}, {}
    for name, config in engines.items():
        rests[name], peaks[name], weights[name] = _alone(config, shard, comm)
        workload.tell(f"{name}: memory measured")
    check_alike(weights, comm)
    del weights
    tasks = {name: _stepper(config, shard, comm) for name, config in engines.items()}
    seconds = interleave(tasks, workload.rounds, comm)
    figures = compare(seconds, "seconds", _BASE, "a step")
    figures += compare(largest(rests, comm), "bytes", _BASE, "between steps")
    figures += compare(largest(peaks, comm), "bytes", _BASE, "at most in a step")
    embedding = shard.num_owned * workload.width
    settings = workload.settings() | {"numbers_of_the_embedding": embedding}
    return Report("engines", settings, figures)


def _model(config: RunConfig, shard: GraphShard, comm: Communicator) -> ShardModel:
    return ShardModel(shard, comm, config.model, torch.float32, config.seed)


def _stepper(config: RunConfig, shard: GraphShard, comm: Communicator) -> Callable[[], None]:
    model = _model(config, shard, comm)
    engine = start_engine(model, config, comm)
    return lambda: _step(model, engine)


def _step(model: ShardModel, engine: Engine) -> None:
    """A step whose gradients are the weights."""
    engine.step(torch.stack([(p * p.detach()).sum() for p in model.parameters()]).sum())


def _engines(config: RunConfig, comm: Communicator) -> dict[str, RunConfig]:
    """The settings with every engine that the device can have."""

    def of(engine: str, *, away: bool = False) -> RunConfig:
        file = shipped_file("deepspeed", "offload.json" if away else "zero1.json")
        train = config.train.model_copy(update={"offload": away and engine == "torch"})
        own = {"engine": engine, "deepspeed_config": file if engine == "deepspeed" else None}
        return config.model_copy(update=own | {"train": train})

    found = {_BASE: of("torch"), "deepspeed": of("deepspeed")}
    if comm.device.type == "cuda":
        found["torch, train.offload"] = of("torch", away=True)
        found["deepspeed, offload.json"] = of("deepspeed", away=True)
    return found


def _alone(
    config: RunConfig, shard: GraphShard, comm: Communicator
) -> tuple[int, int, tuple[Tensor, ...]]:
    """Bytes between steps and at the most, without the graph's, and the weights at the end."""
    model = _model(config, shard, comm)
    _settle(comm)
    before = resident(comm.device) - sum(p.nbytes for p in model.parameters())
    engine = start_engine(model, config, comm)
    for _ in range(_STEPS):
        _settle(comm)
        forget_peak(comm.device)
        _step(model, engine)
        finish_device(comm)
    most = peak(comm.device)
    _settle(comm)
    rests = resident(comm.device)
    weights = tuple(p.detach().clone() for p in model.parameters())
    return rests - before, most - before, weights


def _settle(comm: Communicator) -> None:
    """Give back what nobody holds any more."""
    finish_device(comm)
    gc.collect()
    return_freed_memory()
