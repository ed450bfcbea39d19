"""The memory budget of a run beside what the run takes, step by step and item by item.

The run is the epoch benchmark's with the settings' own method. Measured: the resident size before
the shard is read, once it has been read, once the trainer is built, and the largest one of the
epochs, warm-up included. The budget knows how many evaluations the solves took, unless the
settings alone are asked, which is what a run is refused by.

Every figure is that of the largest rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from distributed_ignn.comm.codecs import encodes
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.epoch_stages import warm_up_epochs, with_epochs
from distributed_ignn.lab.benchmarks.interleaving import Figure, Report, compare, largest
from distributed_ignn.propagation.propagate import choose_codec
from distributed_ignn.runs.memory.budget import budget
from distributed_ignn.runs.memory.machine import peak, resident
from distributed_ignn.training.plans import ADJOINT
from distributed_ignn.training.trainer import Trainer

PEAK = "measured peak"
KNOWN, FULL = "evaluations known", "settings alone"
#: Items of the budget that are there once the process has started, read its shard, built the run.
_STARTED = ("process",)
_READ = (*_STARTED, "shard file")
_BUILT = (
    *_READ,
    "graph",
    "features",
    "propagated features",
    "embedding and its optimiser",
)


def run(workload: Workload) -> Report:
    """Measure on all ranks of the job; every rank calls it."""
    comm, config = workload.comm, workload.config
    read = resident(comm.device)
    trainer = Trainer(with_epochs(config, workload.rounds), workload.shard, comm)
    built = resident(comm.device)
    evaluations = _train(trainer, warm_up_epochs(config) + workload.rounds)
    sizes, started = PartSizes.from_shard(workload.shard), workload.process_bytes
    codec = choose_codec(config.comm.halo, comm)
    hold = partial(
        budget,
        sizes,
        config,
        process=started,
        coded_halo=encodes(codec),
        shares_memory=comm.shares_memory,
    )
    known, full = hold(evaluations=evaluations), hold()
    measured = {
        "process": started,
        "shard read": read,
        "run built": built,
        PEAK: peak(comm.device),
    }
    expected = {
        "process": _total(known, _STARTED),
        "shard read": _total(known, _READ),
        "run built": _total(known, _BUILT),
        PEAK: sum(known.values()),
    }
    most, wanted = largest(measured, comm), largest(expected, comm)
    figures = _beside(wanted, most)
    totals = {PEAK: most[PEAK], KNOWN: wanted[PEAK], FULL: sum(full.values())}
    figures += compare(largest(totals, comm), "bytes", PEAK, "whole")
    items = largest(dict.fromkeys(_items(workload, known), 0.0) | known, comm)
    figures += compare({PEAK: most[PEAK], **items}, "bytes", PEAK, "items of the budget")
    settings = {
        **workload.settings(),
        "method": config.forward.method,
        "halo": codec,
        "evaluations_forward": evaluations["forward"],
        "evaluations_adjoint": evaluations["adjoint"],
    }
    return Report("memory", settings, figures)


def _train(trainer: Trainer, epochs: int) -> dict[str, int]:
    """Run epochs; evaluations of the longest solve in each direction."""
    for _ in range(epochs):
        trainer.train_epoch()
    longest = trainer.planner.log.longest
    forward = max(steps for purpose, steps in longest.items() if purpose != ADJOINT)
    return {"forward": forward, "adjoint": longest[ADJOINT]}


def _total(items: Mapping[str, int], names: Sequence[str]) -> int:
    return sum(items.get(name, 0) for name in names)


def _items(workload: Workload, known: Mapping[str, int]) -> list[str]:
    """Names of the items that any rank has, the same on every rank."""
    found = workload.comm.gather_json(list(known))
    return list(dict.fromkeys(name for names in found for name in names))


def _ratio(measured: float, expected: float) -> float:
    """1 where nothing was expected and nothing is there, as of a GPU before a run is built."""
    return measured / expected if expected else 1.0 if measured == 0.0 else math.inf


def _beside(expected: Mapping[str, float], measured: Mapping[str, float]) -> tuple[Figure, ...]:
    """A column of the budget with its ratio, and one of what was measured."""
    return tuple(
        figure
        for name in expected
        for figure in (
            Figure(
                name, expected[name], "budget", "measured", _ratio(measured[name], expected[name])
            ),
            Figure(name, measured[name], "measured", "measured", 1.0),
        )
    )
