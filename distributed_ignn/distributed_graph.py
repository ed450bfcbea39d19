"""DistributedGraph: this rank's part of a graph, for layers and a training loop of the user's own.

Letters: n nodes of the whole graph, O owned nodes, E edges into owned nodes, F features, C classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from distributed_ignn.comm.collectives import sum_of_shares
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import DataConfig, PartitionConfig
from distributed_ignn.config.dataset import Directions
from distributed_ignn.config.keywords import told_in_python
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.datasets import graph_in_memory
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shard
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.storage.shard_store import read_part
from distributed_ignn.launchers.this_rank import join
from distributed_ignn.models.explicit.graph_part import GraphPart
from distributed_ignn.urls.url import refuse_url


class DistributedGraph:
    """One rank's part of a divided graph: its nodes, the edges into them, and sums over all ranks.

    Every rank makes one, and calls its methods, alike. It is a context manager, which ends this
    rank's part in the job. The graph is the one that this package reads: without self-loops and
    without repeated edges, undirected unless it was divided with its directions: then
    ``edge_indices`` are its edges, and its edges turned round.

    Args:
        shard: this rank's part, for as many ranks as there are.
        comm: this rank's communicator.
        dtype: of features and edge weights; torch's default if not given.

    Raises:
        ValueError: the shard is another rank's.
    """

    def __init__(
        self, shard: GraphShard, comm: Communicator, dtype: torch.dtype | None = None
    ) -> None:
        self.shard = shard
        self.comm = comm
        self.dtype = dtype or torch.get_default_dtype()
        self.part = GraphPart.of(shard, comm, self.dtype)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """This rank's part of the shards in ``folder``.

        Under torchrun and in a Ray Train worker, this process is one of several ranks; where
        torch's process group exists already, it is used; otherwise this process is alone. Where
        there are other shards than ranks, they are merged and cut again in the order of the nodes,
        which takes the whole graph's memory and sends more rows than a good partition does.

        Args:
            folder: what ``ignn partition --out`` wrote.
            device: where to compute; "auto" takes a GPU where there is one.
            dtype: of features and edge weights; torch's default if not given.

        Raises:
            UserError: there are no shards, they are damaged, or ``folder`` is a URL, on every rank
                alike.
        """
        refuse_url(
            folder,
            "open reads shards in a folder",
            "copy what is there to a folder of every machine and open that",
        )

        def read(comm: Communicator) -> GraphShard:
            return comm.together(lambda: read_part(Path(folder), comm.rank, comm.world_size))

        return cls._joining(read, device, dtype)

    @classmethod
    def divide(
        cls,
        data: object,
        *,
        partition: PartitionConfig | None = None,
        directions: Directions = "undirected",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """This rank's part of a graph that every rank holds whole, divided by every rank alike.

        For graphs that fit into each rank's memory; larger ones are divided once, by the command
        ``ignn partition``, and opened.

        Args:
            data: a ``torch_geometric.data.Data`` with labels and splits, a dictionary of its
                attributes, or a GraphData; the same on every rank. Features stay as they are.
            partition: how to divide; METIS if not given.
            directions: see ``data.directions`` in ``--help``; a GraphData has its own already.
                With ``both``, ``edge_index`` has the edges that were given, and a second channel
                their reverse; else missing directions are added, which a warning tells.
            device, dtype: as in ``open``.

        Raises:
            UserError: an attribute is missing or breaks a rule, ranks hold different graphs, or
                the graph cannot be divided so.
        """

        def cut(comm: Communicator) -> GraphShard:
            with _told_by_one(comm):
                whole = comm.together(lambda: _as_graph(data, directions))
            _check_alike(
                comm,
                whole.fingerprint(),
                "hold different graphs; load or make the same one on each, with the same seed",
            )
            settings = partition or PartitionConfig()
            assigned = comm.together(lambda: assign_parts(whole.graphs, comm.world_size, settings))
            _check_alike(
                comm,
                sha256(assigned.part.numpy().tobytes()).hexdigest(),
                "divide the graph differently; divide it once, with ignn partition, and open the "
                "shards",
            )
            return build_shard(whole, assigned.plan, comm.rank)

        return cls._joining(cut, device, dtype)

    @classmethod
    @told_in_python()
    def _joining(
        cls, shard: Callable[[Communicator], GraphShard], device: str, dtype: torch.dtype | None
    ) -> Self:
        """Join the job, get a shard and, if that fails, leave the job again."""
        comm = join(device)
        try:
            return cls(shard(comm), comm, dtype)
        except BaseException:
            comm.close()
            raise

    @property
    def rank(self) -> int:
        """This rank's number, from 0."""
        return self.comm.rank

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.comm.world_size

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.comm.device

    @property
    def num_nodes(self) -> int:
        """Nodes of the whole graph, n."""
        return self.shard.num_nodes

    @property
    def num_owned(self) -> int:
        """Nodes of this rank, O; 0 where there are fewer nodes than ranks."""
        return self.shard.num_owned

    @property
    def num_features(self) -> int:
        """F, or 0 without features."""
        return self.shard.num_features

    @property
    def num_classes(self) -> int:
        """C."""
        return self.shard.num_classes

    @property
    def owned_nodes(self) -> Tensor:
        """Global ids of this rank's nodes, int64 [O]; their order is that of all rows here."""
        return self.part.owned_nodes

    @cached_property
    def x(self) -> Tensor:
        """Features of the owned nodes, [O, F], dense.

        Raises:
            UserError: the graph has none.
        """
        features = self.shard.features
        if features is None:
            raise UserError(
                "this graph has no features; make rows for graph.owned_nodes, such as "
                "graph.rows(whole) of a tensor with a row for every node"
            )
        if isinstance(features, CSRMatrix):
            return features.to_dense(self.dtype).to(self.device)
        return features.to(self.device, self.dtype)

    @cached_property
    def y(self) -> Tensor:
        """Labels of the owned nodes: int64 [O] (-1: unlabelled), or [O, C] of 0 and 1."""
        return self.shard.labels.to(self.device)

    @cached_property
    def train_index(self) -> Tensor:
        """Rows of this rank's training nodes, int64; there may be none."""
        return self.shard.train_index.to(self.device)

    @cached_property
    def val_index(self) -> Tensor:
        """Rows of this rank's validation nodes, int64."""
        return self.shard.val_index.to(self.device)

    @cached_property
    def test_index(self) -> Tensor:
        """Rows of this rank's test nodes, int64."""
        return self.shard.test_index.to(self.device)

    @property
    def edge_index(self) -> Tensor:
        """Edges into owned nodes, int64 [2, E]: sources (from O on: of other ranks), targets."""
        return self.part.edge_indices[0]

    @property
    def edge_weight(self) -> Tensor | None:
        """Weights of ``edge_index``, [E], or None where all are 1."""
        return self.part.edge_weights[0]

    @property
    def edge_indices(self) -> tuple[Tensor, ...]:
        """``edge_index`` of every channel."""
        return self.part.edge_indices

    @cached_property
    def global_edge_index(self) -> Tensor:
        """``edge_index`` with global ids, to look up what belongs to edges."""
        nodes = torch.cat([self.owned_nodes, self.shard.halo_nodes.to(self.device)])
        return nodes[self.edge_index]

    def rows(self, whole: Tensor) -> Tensor:
        """The owned nodes' rows of a tensor with a row for every node, [n, ...] to [O, ...].

        Raises:
            UserError: it has another number of rows.
        """
        if whole.shape[0] != self.num_nodes:
            raise UserError(f"{whole.shape[0]} rows given, the graph has {self.num_nodes} nodes")
        return whole.to(self.device)[self.owned_nodes]

    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' rows in the order of the graph's nodes, [O, ...] to [n, ...], on every rank.

        No gradient passes through it.

        Raises:
            UserError: there is not one row for every owned node.
        """
        self.part.check_rows(rows, 0, "gather")
        kind = torch.uint8 if rows.dtype is torch.bool else rows.dtype
        whole = torch.zeros((self.num_nodes, *rows.shape[1:]), dtype=kind, device=self.device)
        whole[self.owned_nodes] = rows.detach().to(kind)
        return self.comm.sum(whole).to(rows.dtype)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over ranks, on every rank.

        It may become a loss, computed alike on every rank: ``backward`` then gives each rank the
        gradient of the whole loss with respect to its own share.
        """
        return sum_of_shares(tensor, self.comm)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks' values, a number; a rank may have none. A loss, as in ``sum``.

        A rank without training nodes takes part through its empty ``values``, as long as they come
        out of the model: ``graph.mean(cross_entropy(out[i], y[i], reduction="none"))``.

        Raises:
            UserError: no rank has a value, on every rank alike.
        """
        count = torch.tensor([values.numel()], dtype=torch.float64, device=self.device)
        total = float(self.comm.sum(count))
        if total == 0.0:
            raise UserError("a mean of no values on any rank; is there a node to take it of?")
        return self.sum(values.sum()) / total

    def once(self, term: Tensor) -> Tensor:
        """A term of the loss that every rank computes alike, such as a penalty on weights.

        Its value stays; its gradient is divided among the ranks, so that ``sum_gradients`` counts
        it once.
        """
        return self.sum(term / self.world_size)

    @torch.no_grad()
    def sum_gradients(self, parameters: Module | Iterable[Parameter]) -> None:
        """Replace every gradient by its sum over ranks, after ``backward`` and before the step.

        A parameter that no rank has a gradient for keeps none. ``DistributedDataParallel`` is not
        needed; it would take the mean.
        """
        given = parameters.parameters() if isinstance(parameters, Module) else parameters
        chosen = [p for p in given if p.requires_grad]
        for dtype in dict.fromkeys(p.dtype for p in chosen):
            self._sum_gradients([p for p in chosen if p.dtype == dtype])

    def _sum_gradients(self, chosen: list[Parameter]) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
        known = grads[0].new_tensor([float(p.grad is not None) for p in chosen])
        flat = self.comm.sum(torch.cat([*(grad.reshape(-1) for grad in grads), known]))
        *sums, known = flat.split([*(grad.numel() for grad in grads), len(chosen)])
        for parameter, found, number in zip(chosen, sums, known.tolist(), strict=True):
            if number > 0.0:
                parameter.grad = found.view_as(parameter).clone()

    def close(self) -> None:
        """Leave the job, where this graph has joined it."""
        self.comm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copied model works on the same part."""
        return self

    def __repr__(self) -> str:
        return (
            f"DistributedGraph(rank {self.rank} of {self.world_size}, {self.num_owned} of "
            f"{self.num_nodes} nodes, {self.edge_index.shape[1]} edges)"
        )


def _as_graph(data: object, directions: Directions) -> GraphData:
    if isinstance(data, GraphData):
        return data
    return graph_in_memory(data, DataConfig(directions=directions))


@contextmanager
def _told_by_one(comm: Communicator) -> Iterator[None]:
    """What reading a graph has to say, every rank would say alike; let rank 0 say it."""
    reading = logging.getLogger("distributed_ignn.graph.datasets")
    before, shown = reading.level, _AsWarning(logging.WARNING)
    if not comm.is_main:
        reading.setLevel(logging.ERROR)
    reading.addHandler(shown)
    try:
        yield
    finally:
        reading.removeHandler(shown)
        reading.setLevel(before)


class _AsWarning(logging.Handler):
    """Shows a warning of the log to a program, which need not show the log."""

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        warnings.warn(record.getMessage(), UserWarning, stacklevel=2)


def _check_alike(comm: Communicator, digest: str, otherwise: str) -> None:
    """Every rank must have the same.

    Raises:
        UserError: one of them has not; "ranks a and b" and ``otherwise``, on every rank.
    """
    digests = comm.gather_json(digest)
    for rank, each in enumerate(digests):
        if each != digests[0]:
            raise UserError(f"ranks 0 and {rank} {otherwise}")
