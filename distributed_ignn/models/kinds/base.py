"""ExplicitModel: a graph network of finitely many layers on one rank's rows.

Layers are PyTorch Geometric's own, on the halo exchange of ``models/explicit``, so that k ranks
give what one gives. Dropout belongs to nodes and epochs, and the first linear map is taken before
the first hop: sparse features stay sparse, and ranks exchange D columns rather than F.

Letters: O owned nodes, H halo nodes, E edges into owned nodes, F features, D hidden width,
W width of the state, R rows that are asked for, C classes.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.dropout import NodeDropout, Stream
from distributed_ignn.models.encoder import NodeEmbedding
from distributed_ignn.models.features import FeatureStore
from distributed_ignn.models.implicit import SolvePlan
from distributed_ignn.models.node_model import NodeModel, Plans
from distributed_ignn.solvers.base import Evaluation, Outcome, Solution

_PLACES = 4099  # keeps the masks of a model's dropouts apart
_HEAD = _PLACES - 1
_INDEX_BYTES = 16  # of an edge: its two ends
_SHORT_BYTES = 4  # of one end in a sparse product


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """Where an explicit model is built, and how; every rank builds it together.

    Args:
        shard: this rank's part of the graph.
        comm: this rank's communicator.
        model, explicit: the sections of the settings.
        dtype: of parameters and state.
        seed: of initial weights and dropout masks.
    """

    shard: GraphShard
    comm: Communicator
    model: ModelConfig
    explicit: ExplicitConfig
    dtype: torch.dtype
    seed: int

    @property
    def hidden(self) -> int:
        """D."""
        return self.model.hidden

    @property
    def classes(self) -> int:
        """C."""
        return self.shard.num_classes

    @property
    def layers(self) -> int:
        """How many."""
        return self.explicit.layers


def linear(*widths: int) -> int:
    """Parameters of linear maps without biases, from each of these widths to the next."""
    return sum(before * after for before, after in itertools.pairwise(widths))


def affine(*widths: int) -> int:
    """The same with biases."""
    return linear(*widths) + sum(widths[1:])


@dataclass(frozen=True, slots=True)
class Columns:
    """Numbers that a training step of a kind holds, for the memory budget.

    Args:
        rows: of every owned and halo node, kept for the backward pass.
        first: columns that X is mapped to, for F weights each.
        weights: all other parameters, those of an embedding left out.
        sent: columns of the widest rows that ranks exchange.
        edges: of every edge, kept for it.
        passing: of every edge while messages are summed, in the widest layer.
        sums: whether neighbours' rows are summed by a product, which holds the edges twice more.
        blocks: whether messages are made block by block instead.
    """

    rows: int
    first: int = 0
    weights: int = 0
    sent: int = 0
    edges: int = 0
    passing: int = 0
    sums: bool = True
    blocks: bool = False

    @classmethod
    def of_sums(cls, widths: list[int]) -> Columns:
        """Of layers that sum their neighbours' rows with fixed weights, of these widths.

        Each maps its rows and then sums them, and adds a bias.
        """
        return cls(
            # what enters the linear map, the sum, the activation and what is dropped of it
            rows=4 * sum(widths),
            first=widths[0],
            weights=widths[0] + affine(*widths),
            sent=max(widths),
        )


class InputRows(nn.Module):
    """X of the owned nodes: features, or an embedding of each node where there are none.

    Args:
        site: whose features they are.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        shard, model, device = site.shard, site.model, site.comm.device
        self._seed, self._nodes = site.seed, shard.owned_nodes.to(device)
        # as of features, and so in no stream of the model's other dropouts
        self._dropout = NodeDropout(model.input_dropout, Stream.FEATURES)
        self._node_dropout = NodeDropout(model.node_dropout, Stream.NODES)
        self._store: FeatureStore | None = None
        self.embedding: NodeEmbedding | None = None
        if shard.features is None:
            self.embedding = NodeEmbedding(shard, model, site.seed)
            self.width = model.hidden
        else:
            drop, node_drop = model.input_dropout, model.node_dropout
            self._store = FeatureStore(shard, site.dtype, device, drop, site.seed, node_drop)
            self.width = shard.num_features

    def linear(self, weight: Tensor, step: int | None) -> Tensor:
        """X @ weight [O, D] for weight [F, D], differentiable; ``step`` None means no dropout."""
        if self._store is not None:
            return self._store.linear(weight, step)
        if self.embedding is None:
            raise RuntimeError("rows are features or an embedding")
        key = self._seed, step, self._nodes
        rows = self._dropout(self.embedding.rows, *key)
        return self._node_dropout.of_nodes(rows, *key) @ weight

    def constants(self) -> list[tuple[str, Tensor]]:
        """What is not learned, by name."""
        return [] if self._store is None else [("features", self._store.stored)]


class FeatureMap(nn.Module):
    """X Theta + bias, the first linear map of a model.

    Args:
        rows: X.
        width: D.
        bias: whether there is one.
    """

    def __init__(self, rows: InputRows, width: int, bias: bool) -> None:
        super().__init__()
        self._rows = (rows,)  # a tuple, so that its parameters are not this module's as well
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows.width, width)))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, step: int | None) -> Tensor:
        """[O, D]; ``step`` seeds the dropout of X, None switches it off."""
        mapped = self._rows[0].linear(self.weight, step)
        return mapped if self.bias is None else mapped + self.bias


class ExplicitModel(NodeModel):
    """What all explicit kinds share; a kind is a subclass and its line in ``KINDS``.

    A kind makes its layers in ``build`` and goes through them in ``forward``. If it has a ``head``,
    logits are what that makes of the state; else the state is the logits.

    Args:
        site: see there.

    Attributes:
        summary: one line for the help.
        reads: the keys of the section ``explicit`` that have an effect.
        drops_from: of how many layers on it drops entries of its states (``model.dropout``); None
            where it never does.
        reads_edges: whether it looks at the graph at all.
        normalises: whether its layers read A_hat, whose degrees are fetched once, when it is built.
        head: a linear map, or None.
    """

    solves: ClassVar[bool] = False
    state_name: ClassVar[str] = "the last state"
    summary: ClassVar[str] = ""
    reads: ClassVar[frozenset[str]] = frozenset()
    drops_from: ClassVar[int | None] = 1
    reads_edges: ClassVar[bool] = True
    normalises: ClassVar[bool] = True

    def __init__(self, site: Site) -> None:
        super().__init__()
        comm = site.comm
        self._seed = site.seed
        self._nodes = site.shard.owned_nodes.to(comm.device)
        self._dropout = NodeDropout(site.model.dropout, Stream.KIND)
        torch.manual_seed(site.seed)
        self.rows = InputRows(site)
        self.head: nn.Linear | None = None
        self._seen: Tensor | None = None  # by the last dropout, while that is asked for
        self.build(site)
        self.to(comm.device, site.dtype)
        if self.reads_edges:
            self._join(site)

    @abstractmethod
    def build(self, site: Site) -> None:
        """Make the layers, drawing their weights from torch's generator."""

    @abstractmethod
    def forward(self, step: int | None) -> Tensor:
        """The state [O, W] of the present weights; ``step`` seeds the dropout, None has none."""

    @classmethod
    @abstractmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """What a training step holds, learns and sends."""

    def _join(self, site: Site) -> None:
        """Tie the layers of PyTorch Geometric to this rank's part of the graph."""
        from torch_geometric.nn import MessagePassing

        from distributed_ignn.models.explicit.graph_part import GraphPart
        from distributed_ignn.models.explicit.layers import bind
        from distributed_ignn.models.explicit.normalise import gcn_norm

        self.part = GraphPart.of(site.shard, site.comm, site.dtype)
        for layer in self.modules():
            if isinstance(layer, MessagePassing):
                bind(layer, self.part)
        if self.normalises:  # here, so that a resumed run's first epoch sends no more than others
            for pair in zip(self.part.edge_indices, self.part.edge_weights, strict=True):
                gcn_norm(self.part, *pair, dtype=site.dtype)

    def map_features(self, width: int, *, bias: bool = False) -> FeatureMap:
        """The first linear map, to ``width`` columns."""
        return FeatureMap(self.rows, width, bias)

    def drop(
        self, rows: Tensor, step: int | None, place: int, nodes: Tensor | None = None
    ) -> Tensor:
        """Drop entries of rows of nodes, whose masks belong to node, epoch and place.

        Args:
            rows: [O, D].
            step: seeds the masks; None drops nothing.
            place: tells a dropout of the model from its others, from 0.
            nodes: global ids of the rows, if they are not the owned ones.
        """
        if self._seen is not None:
            self._seen = rows
        seed = self._seed * _PLACES + place
        return self._dropout(rows, seed, step, self._nodes if nodes is None else nodes)

    def state(self, step: int, plans: Plans) -> Tensor:
        """See ``NodeModel``."""
        made: Tensor = self(step)
        return made

    @torch.no_grad()
    def solve(self, plan: SolvePlan) -> Solution:
        """See ``NodeModel``."""
        state: Tensor = self(None)
        return Solution(Evaluation(state, state), Outcome.CONVERGED, 0, 0.0)

    def read_out(
        self, state: Tensor, step: int | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """See ``NodeModel``."""
        nodes = self._nodes
        if rows is not None:
            state, nodes = state.index_select(0, rows), nodes.index_select(0, rows)
        if self.head is None:
            return state
        logits: Tensor = self.head(self.drop(state, step, _HEAD, nodes))
        return logits

    @torch.no_grad()
    def embeddings(self, state: Tensor) -> Tensor:
        """The last hidden layer: what the last weights are applied to, before the logits.

        That is the state of a kind with a head, and of any other what its last dropout would get
        (with ``appnp`` and ``mlp``, inside the MLP). Where there is no hidden layer, as in ``sgc``,
        it is the logits. Every rank calls it.
        """
        if self.head is not None:
            return state
        self._seen = state
        self(None)
        found, self._seen = self._seen, None
        return found

    def inputs(self, step: int | None) -> list[tuple[str, Tensor]]:
        """See ``NodeModel``."""
        return self.rows.constants()

    def sharded_names(self) -> frozenset[str]:
        """See ``NodeModel``."""
        return frozenset() if self.rows.embedding is None else frozenset({"rows.embedding.rows"})

    @classmethod
    def held_bytes(
        cls,
        sizes: PartSizes,
        model: ModelConfig,
        explicit: ExplicitConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> dict[str, int]:
        """Bytes of one rank by name at the largest moment of an epoch, as ``budget`` has them.

        Args:
            sizes: of the rank's part.
            model, explicit: the sections of the settings.
            dtype, device: of the state.
        """
        item, columns = dtype.itemsize, cls.columns(model, explicit, sizes.classes)
        edges = sizes.owned_entries + sizes.boundary_entries if cls.reads_edges else 0
        products = 2 * (_SHORT_BYTES + item) if columns.sums else 0
        orders = _INDEX_BYTES if columns.blocks else 0
        nodes = sizes.owned + sizes.halo
        at_once = min(edges, _edges_of_block(nodes)) if columns.blocks else edges
        features = FeatureStore.held_bytes(sizes, item, device.type == "cuda")
        weights = (sizes.features or model.hidden) * columns.first + columns.weights
        return {
            # as they are, once more with self-loops and their weights, in products, in order
            "edges": edges
            * (2 * _INDEX_BYTES + (2 if sizes.weighted else 1) * item + products + orders),
            "features": features if sizes.features else 0,
            "embedding and its optimiser": 0
            if sizes.features
            else 6 * sizes.owned * model.hidden * item,
            # values, gradient, Adam's moments and the best so far
            "weights and their optimiser": 5 * weights * item,
            "states of layers": columns.rows * nodes * item,
            "kept of messages": columns.edges * edges * item,
            "messages": columns.passing * at_once * item,
        }


def _edges_of_block(nodes: int) -> int:
    from distributed_ignn.models.explicit.message_blocks import edges_of_block

    return edges_of_block(nodes)


def without_map(layer: Any, *names: str) -> Any:
    """A layer of PyTorch Geometric whose linear maps, by name, leave rows as they are.

    For a first layer, whose map the features have been through already.
    """
    for name in names or ("lin",):
        setattr(layer, name, nn.Identity())
    return layer
