"""LocalLoss: what local steps minimise, on some rows whose neighbours' states are frozen.

At the equilibrium of an exact step, B_c Z* of the rows that the loss reads is kept. Then

    head(drop(phi(sum_c (B_c Z*)[rows] W_c + b(X)[rows])))

depends on all parameters, and neither rows are exchanged nor states propagated to evaluate it. At
the weights of that step it is the exact prediction. b(X) is not frozen: features of neighbours,
dropped out by the masks of that step, are at hand (``models/some_rows.py``).

Where there are many training nodes, and b(X) of some of them takes no work for others, they are
divided into batches, of which a local step reads one (``local_plan.batch_count``); its loss stands
for that of all of them.

The rows are the training nodes; where the loss holds predictions consistent on all nodes, also a
sample of the others, chosen by a hash of their ids, so that every cut of the graph has the same.

Letters: R rows, T training nodes of this rank, O owned nodes, D hidden width, C classes, c channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distributed_ignn.config import RunConfig
from distributed_ignn.graph.hashing import hash_uniform
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models import some_rows
from distributed_ignn.models.dropout import NodeDropout, Stream
from distributed_ignn.models.encoder import FeatureEncoder, NodeEmbedding, Source
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.training.local_plan import SAMPLED, batch_count, local_plan
from distributed_ignn.training.losses.consistency import Consistency
from distributed_ignn.training.losses.objective import Objective
from distributed_ignn.training.losses.regularizer import Regularizer

MOST_STEPS = 4096
"""Local steps in an epoch: each has output masks of its own."""

_SAMPLING, _BATCHING = 77, 78
_ALL = slice(None)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """The rows that a local step reads.

    Args:
        places: which of the rows.
        source: what their b(X) is computed from; None where it is an embedding.
        weight: of their loss.
    """

    places: slice
    source: Source | None
    weight: float = 1.0


class LocalLoss:
    """Computes the loss of local steps; the shares of all ranks sum to it.

    Every rank builds it together, since features of neighbours may have to be fetched.

    Args:
        model: whose weights are trained.
        shard: this rank's part of the graph.
        config: of the run.
        objective: the task's loss.
        regularizer: penalties on the map.
        consistency: how far predictions may differ under dropout.

    Attributes:
        rows: owned ids [R], training nodes first, batch by batch.
    """

    def __init__(
        self,
        model: ShardModel,
        shard: GraphShard,
        config: RunConfig,
        objective: Objective,
        regularizer: Regularizer,
        consistency: Consistency,
    ) -> None:
        self._model, self._seed = model, config.seed
        self._objective, self._regularizer = objective, regularizer
        self._consistency = consistency
        sampled, share = self._sample(shard)
        trained, sizes = self._in_batches(shard, config)
        self.rows = torch.cat([trained, sampled.to(trained.device)])
        self._trained = trained.numel()
        #: of each row in sums over all nodes
        self._weight = model.head.weight.new_ones(self.rows.numel())
        self._weight[self._trained :] = 1.0 / share
        self._nodes = shard.owned_nodes.to(self.rows.device)[self.rows]
        total = shard.split_sizes[0] + share * (shard.num_nodes - shard.split_sizes[0])
        self._row_share = 1.0 / max(total, 1.0)
        self._dropout = NodeDropout(config.model.dropout, Stream.LOCAL)
        self._batches = self._divide(self._injection_source(shard, config), sizes)
        self._others: Tensor | None = None
        self._frozen: list[list[Tensor]] = []
        self._probes: dict[int, list[Tensor]] = {}

    @staticmethod
    def held_bytes(sizes: PartSizes, config: RunConfig, item: int) -> tuple[int, int]:
        """Bytes that are held from step to step, and those of a local step.

        Args:
            sizes: of this rank's part.
            config: of the run.
            item: bytes of a number.
        """
        train, row = config.train, config.model.hidden * item
        if local_plan(train, sizes.nodes, sizes.train_nodes).steps == 0:
            return 0, 0
        masks, rows = 1, sizes.train
        if float(train.consistency) > 0.0:
            masks = train.consistency_samples
            rows = min(sizes.owned, rows + SAMPLED)
        probes = int(train.jacobian_weight > 0.0)
        frozen = rows * row * sizes.channels * masks * (1 + probes)
        embedding = 0 if sizes.features else sizes.owned * row
        # b, the sum, its image, the mask, what the readout sees; the gradients of two of them
        step = rows * row * (masks * 5 + 2) + embedding
        source = some_rows.held_bytes(sizes, rows, config.model, item) if sizes.features else 0
        return frozen + source, step

    def _sample(self, shard: GraphShard) -> tuple[Tensor, float]:
        """Owned ids that are read beside the training nodes, and which share of those they are."""
        others = shard.num_nodes - shard.split_sizes[0]
        if not self._consistency.active or others == 0:
            return shard.train_index[:0], 1.0
        share = min(1.0, SAMPLED / others)
        taken = hash_uniform(_SAMPLING, shard.owned_nodes) < share
        taken[shard.train_index] = False
        return taken.nonzero()[:, 0], share

    def _in_batches(self, shard: GraphShard, config: RunConfig) -> tuple[Tensor, list[int]]:
        """The training rows, batch by batch, and how many this rank has in each.

        Which batch a node is in, a hash of its id says.
        """
        rows = self._objective.train_rows
        count = batch_count(shard.num_nodes, shard.split_sizes[0])
        if count == 1 or not self._divisible(config):
            return rows, [rows.numel()]
        nodes = shard.owned_nodes.to(rows.device)[rows]
        batch = (hash_uniform(_BATCHING, nodes) * count).long()
        sizes = torch.bincount(batch, minlength=count)
        return rows[torch.argsort(batch, stable=True)], sizes.tolist()

    def _divisible(self, config: RunConfig) -> bool:
        """Whether some of the rows can be read without work for the others."""
        if self._consistency.active or config.train.jacobian_weight > 0.0:
            return False
        encoder = self._model.encoder
        return isinstance(encoder, NodeEmbedding) or encoder.source.constant is not None

    def _divide(self, source: Source | None, sizes: list[int]) -> list[_Batch]:
        """The batches, from this rank's rows in each; one reduction if there are several."""
        if len(sizes) == 1:
            return [_Batch(_ALL, source)]
        comm = self._model.propagation.halo.comm
        totals = comm.sum(torch.tensor(sizes, dtype=torch.float64))
        batches, begin = [], 0
        for size, total in zip(sizes, totals.tolist(), strict=True):
            places = slice(begin, begin + size)
            weight = float(totals.sum()) / max(total, 1.0)
            batches.append(_Batch(places, _rows_of(source, places), weight))
            begin += size
        return batches

    def _injection_source(self, shard: GraphShard, config: RunConfig) -> Source | None:
        """What b(X) of the rows is computed from; None where it is an embedding."""
        encoder = self._model.encoder
        if isinstance(encoder, NodeEmbedding):
            return None
        dtype = self._model.head.weight.dtype
        where = config.model, self._model.propagation, dtype, config.seed
        return some_rows.source_of_rows(encoder.source, shard, self.rows, *where)

    def forget(self) -> None:
        """Let go of what is frozen."""
        self._frozen.clear()
        self._probes.clear()

    def freeze(self, products: tuple[Tensor, ...]) -> None:
        """Keep the rows of B_c Z* [O, D] of one more dropout mask of the exact step."""
        self._frozen.append([product.index_select(0, self.rows) for product in products])

    @torch.no_grad()
    def begin(self, step: int) -> None:
        """Make ready for the local steps after exact step ``step``; every rank calls it."""
        encoder = self._model.encoder
        if isinstance(encoder, NodeEmbedding):
            self._others = encoder.rows.clone()
        for draw in self._consistency.draws(step):
            probes = self._regularizer.probes(draw)
            self._probes[draw] = [probe.index_select(0, self.rows) for probe in probes]

    @torch.no_grad()
    def end(self) -> None:
        """Let go of what was frozen.

        Rows of an embedding that the loss does not read are put back: they had no gradient, and
        moved by their old momentum and by weight decay alone.
        """
        encoder = self._model.encoder
        if isinstance(encoder, NodeEmbedding) and self._others is not None:
            self._others[self.rows] = encoder.rows[self.rows]
            encoder.rows.copy_(self._others)
        self._others = None
        self.forget()

    def share(self, step: int, turn: int) -> Tensor:
        """Return this rank's share of the loss.

        Args:
            step: the exact step before, whose input masks hold on.
            turn: which local step after it; seeds masks of the readout.
        """
        batch = self._batches[(step + turn) % len(self._batches)]
        weights = self._model.channel_weights()
        losses, probabilities = [], []
        for draw, products in zip(self._consistency.draws(step), self._frozen, strict=True):
            image = self._image(draw, products, weights, batch)
            logits = self._read_out(image, draw * MOST_STEPS + turn, batch.places)
            task = self._task_loss(logits, batch)
            losses.append(task + self._penalty(image, draw, weights))
            if self._consistency.active:
                probabilities.append(self._objective.probabilities(logits))
        total = torch.stack(losses).mean()
        if not probabilities:
            return total
        return total + self._consistency.loss(probabilities, step, self._weight)

    def _task_loss(self, logits: Tensor, batch: _Batch) -> Tensor:
        if len(self._batches) == 1:
            return self._objective.row_loss(logits[: self._trained])
        return batch.weight * self._objective.row_loss(logits, self.rows[batch.places])

    def _image(
        self, draw: int, products: list[Tensor], weights: list[Tensor], batch: _Batch
    ) -> Tensor:
        """phi(sum_c (B_c Z*)[rows] W_c + b(X)[rows]) of the rows of a batch, [r, D]."""
        total = self._injection(draw, batch)
        for product, weight in zip(products, weights, strict=True):
            total = torch.addmm(total, product[batch.places], weight)
        return self._model.layer.form.activate(total)

    def _injection(self, draw: int, batch: _Batch) -> Tensor:
        encoder = self._model.encoder
        if isinstance(encoder, FeatureEncoder) and batch.source is not None:
            return encoder.of(batch.source, draw)
        return self._model.injection(draw).index_select(0, self.rows[batch.places])

    def _read_out(self, image: Tensor, draw: int, places: slice = _ALL) -> Tensor:
        """Logits [r, C] of some of the rows."""
        nodes = self._nodes[places]
        logits: Tensor = self._model.head(self._dropout(image, self._seed, draw, nodes))
        return logits

    def _penalty(self, image: Tensor, draw: int, weights: list[Tensor]) -> Tensor | float:
        return self._regularizer.row_penalty(image, self._probes[draw], weights, self._row_share)


def _rows_of(source: Source | None, places: slice) -> Source | None:
    """Some rows of what constants give b(X) of."""
    if source is None or source.constant is None:
        return None
    kept = tuple(term[places] for term in source.constant)
    return replace(source, constant=kept, nodes=source.nodes[places])
