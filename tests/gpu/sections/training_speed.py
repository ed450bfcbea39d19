"""Seconds of training epochs on one rank and more, and memory against its budget."""

from __future__ import annotations

from collections.abc import Iterator

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks import epoch_stages, memory
from tests.gpu.prepared_graphs import Preparation, open_graph
from tests.gpu.setting import Budget, Setting
from tests.gpu.verdicts import Check, judge, measured

_METHODS = ("neural", "anderson")
# the solver is trained once and soon; the epochs themselves are those of the shipped settings
_FLAGS = ("--schedule.warmup-epochs", "2", "--train.epochs", "100")


def look(budget: Budget, graphs: Preparation) -> Iterator[Check]:
    """Each scale on as many ranks as it is divided for."""
    setting = budget.setting
    smallest, largest = min(setting.sizes.epochs), max(setting.sizes.epochs)
    for scale in setting.sizes.epochs:
        worlds = setting.doubling()
        if largest > smallest and scale == largest:
            worlds = sorted({1, max(setting.gpus, 1)})
        first = None
        for ranks in worlds:
            graphs.wait(scale, ranks, budget.left())
            found = budget.ranks(epochs, ranks, scale)[0]
            first = first or found
            for method, seconds in found["seconds"].items():
                gain = first["seconds"][method] / seconds
                note = f"{found['nodes']:,} nodes, {gain:.2f} times one rank" if ranks > 1 else ""
                name = f"epoch, scale {scale:g}, {ranks} ranks, {method}"
                yield measured(name, seconds, "s", note or f"{found['nodes']:,} nodes")
        if scale == smallest:
            measured_bytes, budgeted = budget.ranks(held, 1, scale)[0]
            note = f"{measured_bytes / 2**20:,.0f} of {budgeted / 2**20:,.0f} MiB"
            yield judge(
                "memory against its budget",
                measured_bytes / budgeted,
                "%",
                1.0,
                least=False,
                counts=setting.real,
                note=note,
            )


def epochs(comm: Communicator, setting: Setting, scale: float) -> dict[str, object]:
    """Seconds of an epoch by method, without the phase that trains the solver."""
    smallest = scale == min(setting.sizes.epochs)
    methods = _METHODS if smallest else _METHODS[:1]  # a large graph has no room for two
    rounds = min(setting.sizes.rounds, 5)
    with open_graph(comm, setting, scale, *_FLAGS, rounds=rounds, methods=methods) as workload:
        report = epoch_stages.run(workload)
        seconds = {f.name: f.value for f in report.figures if f.unit == "seconds" and not f.section}
        return {"seconds": seconds, "nodes": workload.stats.nodes}


def held(comm: Communicator, setting: Setting, scale: float) -> tuple[float, float]:
    """Bytes that a run has taken at most, and those that it is let in with."""
    with open_graph(comm, setting, scale, *_FLAGS, rounds=1) as workload:
        figures = {f.name: f.value for f in memory.run(workload).figures if f.section == "whole"}
        return figures[memory.PEAK], figures[memory.FULL]
