"""Cuts a GraphData into one GraphShard per part, given the part of every node.

``plan_shards`` makes one pass over all entries and settles what has to agree between parts: who
owns what, in which order, and which rows travel. ``build_shard`` then cuts any one part from that
plan. Ids are as in ``graph/shard.py``: *global*, *owned* and *halo*.
Letters: n nodes, P parts, O owned nodes, H halo nodes, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.graph.building import check_id_space
from distributed_ignn.graph.data import CSRMatrix, GraphData, is_symmetric
from distributed_ignn.graph.partitioning.cutting import Outline, cut_blocks, outline
from distributed_ignn.graph.shard import ChannelShard, GraphShard


@dataclass(frozen=True, slots=True, eq=False)
class ShardPlan:
    """What all parts have to agree on before any of them is cut.

    Args:
        part: int64 [n], owning part of every node.
        owned_nodes: per part, int64 [O] global ids, interior ones first.
        num_interior: interior nodes of every part.
        halo_nodes: per part, int64 [H] global ids, grouped by owner, in the owner's order.
        recv_counts: int64 [P, P], halo rows that part p (row) reads from part q (column).
        owned_id: int32 [n], a node's owned id inside the part that owns it.
        entries: int64 [P, c], stored entries of each part's rows, no self-loops.
        cut_entries: int64 [P, c], those of them whose column belongs to another part.
        symmetric: per channel, whether the whole adjacency is.
        degrees: per channel, the sum of each row [n].
    """

    part: Tensor
    owned_nodes: tuple[Tensor, ...]
    num_interior: tuple[int, ...]
    halo_nodes: tuple[Tensor, ...]
    recv_counts: Tensor
    owned_id: Tensor
    entries: Tensor
    cut_entries: Tensor
    symmetric: tuple[bool, ...]
    degrees: tuple[Tensor, ...]

    @property
    def parts(self) -> int:
        return len(self.owned_nodes)


def plan_shards(
    graphs: tuple[CSRMatrix, ...],
    part: Tensor,
    parts: int,
    *,
    symmetric: tuple[bool, ...] | None = None,
    rank: Tensor | None = None,
) -> ShardPlan:
    """Order the nodes of every part and find its halo, which all channels share.

    Args:
        graphs: adjacencies [n, n] without self-loops; values are weights.
        part: int64 [n] in [0, parts); parts may stay empty.
        symmetric: per channel, whether it is symmetric, where the caller knows; the check costs
            about as much as the rest.
        rank: integers [n]; interior and boundary nodes of a part are each ordered by it, and by id
            where it is the same or missing.

    Raises:
        ValueError: the assignment or a graph breaks those rules.
    """
    _check_input(graphs, part, parts)
    if symmetric is None:
        symmetric = tuple(is_symmetric(graph) for graph in graphs)
    grouped = torch.argsort(part, stable=True)
    members = torch.split(grouped, torch.bincount(part, minlength=parts).tolist())
    owner = part.numpy().astype(np.int32)
    outlines = [outline(graphs, owner, p, nodes) for p, nodes in enumerate(members)]
    owned_nodes = tuple(_in_order(found, rank) for found in outlines)
    owned_id = torch.empty(part.numel(), dtype=torch.int32)
    for nodes in owned_nodes:
        owned_id[nodes] = torch.arange(nodes.numel(), dtype=torch.int32)
    halo_nodes = tuple(_by_owner(found.halo_nodes, part, owned_id) for found in outlines)
    return ShardPlan(
        part=part,
        owned_nodes=owned_nodes,
        num_interior=tuple(int((~found.on_boundary).sum()) for found in outlines),
        halo_nodes=halo_nodes,
        recv_counts=torch.stack([torch.bincount(part[h], minlength=parts) for h in halo_nodes]),
        owned_id=owned_id,
        entries=torch.tensor([found.entries for found in outlines]),
        cut_entries=torch.tensor([found.cut_entries for found in outlines]),
        symmetric=symmetric,
        degrees=tuple(graph.row_sums() for graph in graphs),
    )


def _in_order(found: Outline, rank: Tensor | None) -> Tensor:
    """Owned nodes, interior ones first."""
    nodes = found.nodes
    if rank is not None:
        order = torch.argsort(rank[nodes], stable=True)
        nodes, boundary = nodes[order], found.on_boundary[order]
    else:
        boundary = found.on_boundary
    return torch.cat([nodes[~boundary], nodes[boundary]])


def _by_owner(halo: Tensor, part: Tensor, owned_id: Tensor) -> Tensor:
    """``halo`` grouped by owner and, inside a group, in the owner's order."""
    return halo[torch.argsort((part[halo] << 32) | owned_id[halo])]


def build_shard(data: GraphData, plan: ShardPlan, p: int) -> GraphShard:
    """Cut part ``p`` of ``plan``, which must have been made for ``data.graphs``."""
    owned_nodes, halo_nodes = plan.owned_nodes[p], plan.halo_nodes[p]
    features = data.features
    if isinstance(features, CSRMatrix):
        features = features.select_rows(owned_nodes)
    elif features is not None:
        features = features[owned_nodes]
    owned, halo = owned_nodes.numel(), halo_nodes.numel()
    check_id_space(owned + halo, "owned and halo nodes of one part")
    # One lookup serves both id spaces, because no node is both owned and halo.
    local_id = plan.owned_id.clone()
    local_id[halo_nodes] = torch.arange(owned, owned + halo, dtype=torch.int32)
    send_counts, send_index = _send_plan(plan, p)
    splits = (data.train_nodes, data.val_nodes, data.test_nodes)
    train_index, val_index, test_index = (_owned_subset(plan, p, nodes) for nodes in splits)
    return GraphShard(
        part=p,
        parts=plan.parts,
        num_nodes=data.num_nodes,
        owned_nodes=owned_nodes,
        num_interior=plan.num_interior[p],
        halo_nodes=halo_nodes,
        recv_counts=plan.recv_counts[p].clone(),
        send_counts=send_counts,
        send_index=send_index,
        channels=tuple(
            _cut_channel(data.graphs[channel], plan, p, channel, local_id)
            for channel in range(len(data.graphs))
        ),
        features=features,
        labels=data.labels[owned_nodes],
        train_index=train_index,
        val_index=val_index,
        test_index=test_index,
        num_features=data.num_features,
        num_classes=data.num_classes,
        task=data.task,
        name=data.name,
        split_sizes=(splits[0].numel(), splits[1].numel(), splits[2].numel()),
        clusters=None if data.clusters is None else data.clusters[owned_nodes],
        graph_channels=data.graph_channels,
        scaling=data.scaling,
        class_names=data.class_names,
    )


def build_shards(data: GraphData, part: Tensor, parts: int) -> Iterator[GraphShard]:
    """All shards in order of their part, made one at a time so that only one is in memory.

    Args:
        part: int64 [n] in [0, parts), owning part of every node; parts may stay empty.

    Raises:
        ValueError: ``part`` breaks those rules, or a graph holds self-loops.
    """
    plan = plan_shards(data.graphs, part, parts)
    return (build_shard(data, plan, p) for p in range(parts))


def _cut_channel(
    graph: CSRMatrix, plan: ShardPlan, p: int, channel: int, local_id: Tensor
) -> ChannelShard:
    """Rows of part ``p`` with their columns renamed by ``local_id``, see ``cut_blocks``."""
    owned_nodes, halo_nodes = plan.owned_nodes[p], plan.halo_nodes[p]
    owned, boundary = cut_blocks(
        graph,
        owned_nodes,
        plan.num_interior[p],
        halo_nodes.numel(),
        local_id.numpy(),
        int(plan.cut_entries[p, channel]),
    )
    degree = plan.degrees[channel]
    return ChannelShard(
        owned=owned,
        boundary=boundary,
        degree_owned=degree[owned_nodes],
        degree_halo=degree[halo_nodes],
        symmetric=plan.symmetric[channel],
    )


def _send_plan(plan: ShardPlan, p: int) -> tuple[Tensor, Tensor]:
    """Counts int64 [P] and owned ids int64 [S] of the rows that the other parts read from ``p``."""
    ends = torch.cumsum(plan.recv_counts, 1)
    send_counts = plan.recv_counts[:, p].clone()
    wanted = [
        halo[int(ends[q, p] - send_counts[q]) : int(ends[q, p])]
        for q, halo in enumerate(plan.halo_nodes)
    ]
    return send_counts, plan.owned_id[torch.cat(wanted)].to(torch.int64)


def _owned_subset(plan: ShardPlan, p: int, nodes: Tensor) -> Tensor:
    """Owned ids, ascending, of those global ``nodes`` that part ``p`` owns."""
    return torch.sort(plan.owned_id[nodes[plan.part[nodes] == p]].to(torch.int64)).values


def _check_input(graphs: tuple[CSRMatrix, ...], part: Tensor, parts: int) -> None:
    if not graphs:
        raise ValueError("nothing to cut: there is no graph")
    for graph in graphs:
        if graph.num_rows != part.numel() or graph.num_cols != part.numel():
            raise ValueError(
                f"the assignment names {part.numel()} nodes, a graph has "
                f"{graph.num_rows} rows and {graph.num_cols} columns"
            )
    if part.dtype != torch.int64 or parts < 1:
        raise ValueError(f"parts must be int64 in a positive number, not {part.dtype}, {parts}")
    if np.any((part.numpy() < 0) | (part.numpy() >= parts)):
        raise ValueError(f"the assignment names parts outside 0..{parts - 1}")
