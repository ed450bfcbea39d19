"""The benchmarks that need a graph and no trained run."""

from __future__ import annotations

from collections.abc import Callable

from distributed_ignn.lab.benchmarks import epoch, exchange, iteration, memory, propagate
from distributed_ignn.lab.benchmarks.report import Report
from distributed_ignn.lab.benchmarks.workload import Workload

SUITE: dict[str, Callable[[Workload], Report]] = {
    "propagate": propagate.run,
    "exchange": exchange.run,
    "iteration": iteration.run,
    "epoch": epoch.run,
    "memory": memory.run,
}
#: Those with a baseline of one process, which holds the whole graph.
WITH_SINGLE = frozenset({"iteration"})
