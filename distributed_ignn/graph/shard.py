"""GraphShard: what one rank holds of a partitioned graph, complete and immutable.

Id spaces: *global* ids name nodes of the whole graph; *owned* ids 0..O-1 name this rank's nodes,
interior ones first; *halo* ids 0..H-1 name remote nodes that owned rows read.
Letters: O owned nodes, I interior nodes, B = O - I boundary nodes, H halo nodes, P parts, S rows
sent, F features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.graph.data import CSRMatrix, Task


@dataclass(frozen=True, slots=True, eq=False)
class ChannelShard:
    """One propagation graph, restricted to the rows that this rank owns.

    Args:
        owned: CSRMatrix [O, O], entries between owned nodes *with* the self-loops, values None.
        boundary: CSRMatrix [B, H], entries from boundary rows (owned id I + row) to halo nodes.
        degree_owned, degree_halo: int64 [O], [H], entries of the node's whole row *without* the
            self-loop (D~ = degree + 1).
        symmetric: whether the whole adjacency is symmetric.
    """

    owned: CSRMatrix
    boundary: CSRMatrix
    degree_owned: Tensor
    degree_halo: Tensor
    symmetric: bool


@dataclass(frozen=True, slots=True, eq=False)
class GraphShard:
    """One rank's part of a GraphData, with its ordered send and receive plan.

    A node is *interior* if no channel links its row to a halo node and, in the other direction,
    nothing else is required of it: interior nodes may still be sent (directed graphs).

    Args:
        part, parts: which shard of how many (parts = P).
        num_nodes: n of the whole graph.
        owned_nodes: int64 [O] global ids, interior ones first; inside each group in an order that
            keeps linked nodes close (``partition.order``).
        num_interior: I.
        halo_nodes: int64 [H] global ids, grouped by owning part, inside a group in the order of
            its owned_nodes.
        recv_counts: int64 [P], halo rows that come from each part (sum H; own entry 0).
        send_counts: int64 [P], owned rows that go to each part (sum S; own entry 0).
        send_index: int64 [S] owned ids, grouped by receiving part, ascending inside a group: the
            order of the receiver's halo_nodes.
        channels: one per propagation graph; all share the halo.
        features: CSRMatrix [O, F], Tensor [O, F] or None.
        labels: as in GraphData, rows of the owned nodes.
        train_index, val_index, test_index: int64 owned ids, ascending.
        num_features, num_classes, task, name: of the whole dataset.
        split_sizes: global numbers of train, validation and test nodes.
        clusters: int64 [O], the owned nodes' clusters of the coarse level, or None without one.
    """

    part: int
    parts: int
    num_nodes: int
    owned_nodes: Tensor
    num_interior: int
    halo_nodes: Tensor
    recv_counts: Tensor
    send_counts: Tensor
    send_index: Tensor
    channels: tuple[ChannelShard, ...]
    features: CSRMatrix | Tensor | None
    labels: Tensor
    train_index: Tensor
    val_index: Tensor
    test_index: Tensor
    num_features: int
    num_classes: int
    task: Task
    name: str
    split_sizes: tuple[int, int, int]
    clusters: Tensor | None = None

    def __post_init__(self) -> None:
        owned, halo = self.num_owned, self.num_halo
        boundary = owned - self.num_interior
        checks = {
            "recv_counts sum to the halo": int(self.recv_counts.sum()) == halo,
            "send_counts sum to send_index": int(self.send_counts.sum()) == self.send_index.numel(),
            "one count per part": self.recv_counts.numel()
            == self.send_counts.numel()
            == self.parts,
            "send_index names owned nodes": _within(self.send_index, owned),
            "labels cover owned nodes": self.labels.shape[0] == owned,
            "interior is part of owned": 0 <= self.num_interior <= owned,
            "clusters cover owned nodes": self.clusters is None or self.clusters.numel() == owned,
            "no rows to oneself": int(self.send_counts[self.part] + self.recv_counts[self.part])
            == 0,
        }
        for i, channel in enumerate(self.channels):
            checks |= {
                f"channel {i} owned block is [O, O]": channel.owned.num_rows == owned
                and channel.owned.num_cols == owned
                and _within(channel.owned.col, owned),
                f"channel {i} boundary block is [B, H]": channel.boundary.num_rows == boundary
                and channel.boundary.num_cols == halo
                and _within(channel.boundary.col, halo),
                f"channel {i} degrees": channel.degree_owned.numel() == owned
                and channel.degree_halo.numel() == halo,
            }
        for rule, holds in checks.items():
            if not holds:
                raise ValueError(f"shard {self.part} of {self.parts} breaks the rule: {rule}")

    @property
    def num_owned(self) -> int:
        return self.owned_nodes.numel()

    @property
    def num_halo(self) -> int:
        return self.halo_nodes.numel()


def _within(index: Tensor, bound: int) -> bool:
    if index.numel() == 0:
        return True
    low, high = torch.aminmax(index)
    return int(low) >= 0 and int(high) < bound
