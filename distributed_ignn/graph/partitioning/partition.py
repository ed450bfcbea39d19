"""Which part owns which node, and how good that division is.

METIS itself is called in ``metis.py``; cutting the graph along the assignment is left to
``sharding.py``.
Letters: n nodes, P parts, E stored entries of all channels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from distributed_ignn.config import PartitionConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.building import Ids
from distributed_ignn.graph.data import CSRMatrix, csr_from_blocks, entry_blocks, is_symmetric
from distributed_ignn.graph.partitioning.clusters import locality_rank
from distributed_ignn.graph.partitioning.fennel import fennel
from distributed_ignn.graph.partitioning.link_weights import cut_weight, link_weights
from distributed_ignn.graph.partitioning.metis import choose_provider, run_metis
from distributed_ignn.graph.partitioning.sharding import ShardPlan, plan_shards
from distributed_ignn.long_steps import long_step

logger = logging.getLogger(__name__)

Objective = Literal["volume", "cut", "none"]


class PartitionStats(BaseModel):
    """How good an assignment is; the balances are the largest part over the mean part.

    Args:
        nodes, entries: n and E (self-loops not counted).
        cut_entries: entries whose row and column belong to different parts.
        halo_rows, halo_rows_largest: remote rows read per exchange, of all parts and of the worst.
        node_balance, entry_balance: 1 is perfect, P is everything in one part.
        interior_fraction: share of nodes whose row reads no remote row.
        empty_parts: parts without nodes.
        weight, cut_weight: sums of the weights of all entries and of the cut ones; None where
            edges have no weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    nodes: int
    entries: int
    cut_entries: int
    halo_rows: int
    halo_rows_largest: int
    node_balance: float
    entry_balance: float
    interior_fraction: float
    empty_parts: int
    weight: float | None = None
    cut_weight: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """An owner for every node.

    Args:
        part: int64 [n] in [0, parts).
        parts: P.
        provider: what decided.
        objective: what METIS minimised; "none" where it was not asked.
        seconds: time that the decision took, without measuring it.
        stats: its quality.
        plan: the shards' common plan, from which they are cut.
    """

    part: Tensor
    parts: int
    provider: str
    objective: Objective
    seconds: float
    stats: PartitionStats
    plan: ShardPlan


def assign_parts(graphs: tuple[CSRMatrix, ...], parts: int, config: PartitionConfig) -> Assignment:
    """Divide the nodes among ``parts`` owners, the same way for the same arguments.

    Args:
        graphs: adjacencies [n, n]; METIS sees the union of their edges, in both directions.
        parts: P; with ``random`` and ``contiguous`` it may exceed n, leaving parts empty.

    Raises:
        UserError: METIS is not installed, or the graph or the number of parts does not suit it.
    """
    if parts < 1:
        raise UserError(f"parts = {parts}: a graph is divided into at least 1 part")
    _check_edges(graphs)
    if config.edge_weights and all(graph.value is None for graph in graphs):
        raise UserError(
            "partition.edge_weights = true needs weights of edges and the graph has none (or all "
            "are 1); give some, or drop it"
        )
    symmetric = tuple(is_symmetric(graph) for graph in graphs)
    what = f"dividing {graphs[0].num_rows:,} nodes into {parts} parts"
    logger.info("%s with %s", what, config.method)
    started = time.perf_counter()
    with long_step(what):
        provider, objective, part = _decide(graphs, parts, config, symmetric)
    seconds = time.perf_counter() - started
    rank = None
    with long_step("ordering the rows"):
        if config.order == "locality":
            logger.info("ordering the rows")
            rank = torch.from_numpy(locality_rank(_union(graphs)))
        plan = plan_shards(graphs, part, parts, symmetric=symmetric, rank=rank)
        stats = _weighed(measure(plan), graphs, part)
    return Assignment(part, parts, provider, objective, seconds, stats, plan)


def _weighed(stats: PartitionStats, graphs: tuple[CSRMatrix, ...], part: Tensor) -> PartitionStats:
    """``stats`` with the sums of weights, where there are any."""
    if all(graph.value is None for graph in graphs):
        return stats
    total, cut = cut_weight(graphs, part)
    return stats.model_copy(update={"weight": total, "cut_weight": cut})


def assign_clusters(graphs: tuple[CSRMatrix, ...], config: PartitionConfig) -> Tensor:
    """Cluster of every node for the coarse level, int64 [n]; it does not depend on the parts.

    METIS with the cut objective and balanced nodes, at most ``config.clusters`` of them.

    Raises:
        UserError: METIS is not installed, there are fewer nodes than clusters or no edges, or a
            channel is directed.
    """
    nodes = graphs[0].num_rows
    if config.clusters > nodes:
        raise UserError(
            f"partition.clusters = {config.clusters} exceeds the graph's {nodes} nodes; a cluster "
            "needs a node, and the coarse level pays with far fewer clusters than nodes"
        )
    if not any(graph.num_entries for graph in graphs):
        raise UserError(
            f"partition.clusters = {config.clusters} needs a graph with edges; set it to 0"
        )
    _check_edges(graphs)
    symmetric = tuple(is_symmetric(graph) for graph in graphs)
    if not all(symmetric):
        raise UserError(
            f"partition.clusters = {config.clusters} needs undirected graphs and channel "
            f"{symmetric.index(False)} is directed; set it to 0"
        )
    settings = config.model_copy(update={"method": "metis", "objective": "cut", "balance": "nodes"})
    return _decide(graphs, config.clusters, settings, symmetric)[2]


def measure(plan: ShardPlan) -> PartitionStats:
    """The quality of the assignment behind ``plan``."""
    nodes = torch.tensor([owned.numel() for owned in plan.owned_nodes])
    halo = [rows.numel() for rows in plan.halo_nodes]
    return PartitionStats(
        nodes=int(nodes.sum()),
        entries=int(plan.entries.sum()),
        cut_entries=int(plan.cut_entries.sum()),
        halo_rows=sum(halo),
        halo_rows_largest=max(halo),
        node_balance=_balance(nodes),
        entry_balance=_balance(plan.entries.sum(1)),
        interior_fraction=sum(plan.num_interior) / max(int(nodes.sum()), 1),
        empty_parts=int((nodes == 0).sum()),
    )


def _balance(load: Tensor) -> float:
    total = int(load.sum())
    return int(load.max()) * load.numel() / total if total else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Division:
    """What is to be divided.

    Args:
        graphs: adjacencies [n, n].
        parts: P.
        config: the partition section.
        symmetric: per graph, whether it is undirected.
        load: what each node adds to its part, int64 [n].
    """

    graphs: tuple[CSRMatrix, ...]
    parts: int
    config: PartitionConfig
    symmetric: tuple[bool, ...]
    load: Tensor


@dataclass(frozen=True, slots=True)
class Partitioner:
    """A way to divide.

    Args:
        decide: what did it, what that minimised, and the part of every node, int64 [n].
        summary: for the help.
        reads: which of ``provider``, ``objective``, ``imbalance`` and ``seed`` it goes by.
        leaves_empty: whether there may be more parts than nodes.
    """

    decide: Callable[[Division], tuple[str, Objective, Tensor]]
    summary: str = ""
    reads: frozenset[str] = frozenset({"provider", "objective", "imbalance", "seed"})
    leaves_empty: bool = False


def _decide(
    graphs: tuple[CSRMatrix, ...],
    parts: int,
    config: PartitionConfig,
    symmetric: tuple[bool, ...],
) -> tuple[str, Objective, Tensor]:
    nodes = graphs[0].num_rows
    division = Division(graphs, parts, config, symmetric, _node_weights(graphs, config.balance))
    partitioner = PARTITIONERS[config.method]
    if not partitioner.leaves_empty:
        if parts == 1:
            return _contiguous(division)
        if parts > nodes:
            raise UserError(
                f"parts = {parts} exceeds the graph's {nodes} nodes and every part needs a node; "
                f"take at most {nodes}"
            )
    return partitioner.decide(division)


def _random(division: Division) -> tuple[str, Objective, Tensor]:
    nodes = division.load.numel()
    order = torch.from_numpy(np.random.default_rng(division.config.seed).permutation(nodes))
    part = torch.empty(nodes, dtype=torch.int64)
    part[order] = _split_evenly(division.load[order], division.parts)
    return "random", "none", part


def _contiguous(division: Division) -> tuple[str, Objective, Tensor]:
    return "contiguous", "none", _split_evenly(division.load, division.parts)


def _fennel(division: Division) -> tuple[str, Objective, Tensor]:
    config, union = division.config, _union(division.graphs)
    part = fennel(
        union, division.parts, division.load, imbalance=config.imbalance, seed=config.seed
    )
    return "fennel", "cut", part


def _metis(division: Division) -> tuple[str, Objective, Tensor]:
    config, provider = division.config, choose_provider(division.config)
    union, links = _links(division)
    part = run_metis(provider, union, division.parts, division.load, config, links)
    return provider, config.objective, part


PARTITIONERS = {
    "metis": Partitioner(_metis, "few halo rows"),
    "fennel": Partitioner(
        _fennel,
        "streaming, for graphs that METIS has no memory for",
        frozenset({"imbalance", "seed"}),
    ),
    "random": Partitioner(_random, reads=frozenset({"seed"}), leaves_empty=True),
    "contiguous": Partitioner(_contiguous, reads=frozenset(), leaves_empty=True),
}
"""The ways to divide a graph, by name; a new one is entered here."""


def _links(division: Division) -> tuple[CSRMatrix, Tensor | None]:
    """What METIS divides, and what cutting each entry costs where weights are asked for.

    METIS reads which nodes are linked, from both of them.
    """
    if division.config.edge_weights:
        return link_weights(division.graphs)
    union = _union(division.graphs)
    if not all(division.symmetric) and not is_symmetric(union):
        union = csr_from_blocks(entry_blocks(union), union.num_rows)
    return union, None


def _check_edges(graphs: tuple[CSRMatrix, ...]) -> None:
    """METIS does not check its input: bad ids end the process."""
    for channel, graph in enumerate(graphs):
        if graph.num_entries == 0:
            continue
        low, high = (int(bound) for bound in torch.aminmax(graph.col))
        if low < 0 or high >= graph.num_rows:
            raise UserError(
                f"channel {channel} of the graph names node {low if low < 0 else high}; "
                f"the ids of its {graph.num_rows} nodes are 0..{graph.num_rows - 1}"
            )
        for row, col in entry_blocks(graph)():
            loops = col[col == row]
            if loops.size:
                raise UserError(
                    f"channel {channel} of the graph links node {loops[0]} to itself; leave such "
                    "edges out, they are added where they are needed"
                )


def _node_weights(graphs: tuple[CSRMatrix, ...], balance: str) -> Tensor:
    """What each node adds to the load of its part, int64 [n], at least 1.

    Neither provider passes several constraints to METIS (pymetis reads the first n weights and
    fixes ncon = 1), so "both" adds the two loads, scaled to weigh the same on average.
    """
    nodes = graphs[0].num_rows
    if balance == "nodes":
        return torch.ones(nodes, dtype=torch.int64)
    entries = torch.ones(nodes, dtype=torch.int64)
    for graph in graphs:
        entries += graph.rowptr[1:] - graph.rowptr[:-1]
    if balance == "edges":
        return entries
    return entries + max(int(entries.sum()) // max(nodes, 1), 1)


def _split_evenly(weights: Tensor, parts: int) -> Tensor:
    """Cut the sequence of nodes into ``parts`` stretches of nearly equal weight, int64 [n]."""
    if weights.numel() == 0:
        return weights
    middle = 2 * torch.cumsum(weights, 0) - weights  # twice a node's centre: stays an integer
    return middle * parts // (2 * int(weights.sum()))


def _union(graphs: tuple[CSRMatrix, ...]) -> CSRMatrix:
    """Edges that any channel has."""
    if len(graphs) == 1:
        return graphs[0].pattern()

    def blocks() -> Iterator[tuple[Ids, Ids]]:
        for graph in graphs:
            yield from entry_blocks(graph)()

    return csr_from_blocks(blocks, graphs[0].num_rows, symmetric=False)
