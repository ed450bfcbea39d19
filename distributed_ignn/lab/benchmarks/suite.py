"""The benchmarks that need a graph and no trained run."""

from __future__ import annotations

from collections.abc import Callable

from distributed_ignn.lab.benchmarks import (
    engines,
    epoch_stages,
    exchange,
    iteration,
    local_product,
    memory,
)
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.interleaving import Report

SUITE: dict[str, Callable[[Workload], Report]] = {
    "propagate": local_product.run,
    "exchange": exchange.run,
    "iteration": iteration.run,
    "epoch": epoch_stages.run,
    "memory": memory.run,
    "engines": engines.run,
}
#: Those with a baseline of one process, which holds the whole graph.
WITH_SINGLE = frozenset({"iteration"})
