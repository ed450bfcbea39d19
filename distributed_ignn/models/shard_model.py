"""ShardModel: encode, solve, read out.

Z* = f(Z*) = phi(sum_c A_hat_c Z* W_c + b(X)); prediction = Linear(dropout(Z*)). phi and how the W_c
are made is the cell's part (``models/cells``).
Letters: O owned nodes, D hidden width, C classes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor, nn

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.cells import build_weights
from distributed_ignn.models.dropout import NodeDropout, Stream
from distributed_ignn.models.encoder import FeatureEncoder, NodeEmbedding
from distributed_ignn.models.features import FeatureStore
from distributed_ignn.models.implicit import ImplicitLayer, SolvePlan
from distributed_ignn.models.node_model import NodeModel, Plans
from distributed_ignn.propagation.operators import ChannelOperator
from distributed_ignn.propagation.propagate import EXACT, Propagation, PropagationOptions
from distributed_ignn.solvers.base import Solution


class ShardModel(NodeModel):
    """The implicit model on this rank's rows.

    Parameters are replicated unless named by ``sharded_names``.

    Args:
        shard: this rank's part of the graph, which is normalised as ``config`` says.
        comm: this rank's communicator; every rank builds the model together.
        config: the model section.
        dtype: of parameters and state.
        seed: of initial weights and dropout masks.
        sparsified: A_s for the learned solver, or None.
        options: how products and exchanges are carried out.
    """

    solves: ClassVar[bool] = True
    state_name: ClassVar[str] = "Z*"

    def __init__(
        self,
        shard: GraphShard,
        comm: Communicator,
        config: ModelConfig,
        dtype: torch.dtype,
        seed: int,
        sparsified: ChannelOperator | None = None,
        options: PropagationOptions = EXACT,
    ) -> None:
        super().__init__()
        self.config = config
        self._seed = seed
        shard = shard.normalised(config.normalisation)
        self._nodes = shard.owned_nodes.to(comm.device)
        self.propagation = Propagation(shard, comm, dtype, options)
        torch.manual_seed(seed)
        self.encoder = self._build_encoder(shard, comm, dtype)
        self.cell_weights = build_weights(config, shard, self.propagation, comm, dtype)
        form = self.cell_weights.form
        self.layer = ImplicitLayer(self.propagation, comm.sum, sparsified, form)
        self.head = nn.Linear(config.hidden, shard.num_classes)
        self._dropout = NodeDropout(config.dropout, Stream.OUTPUT)
        self.to(comm.device, dtype)
        self.project()

    def _build_encoder(
        self, shard: GraphShard, comm: Communicator, dtype: torch.dtype
    ) -> FeatureEncoder | NodeEmbedding:
        if shard.features is None:
            return NodeEmbedding(shard, self.config, self._seed)
        drop, node_drop = self.config.input_dropout, self.config.node_dropout
        store = FeatureStore(shard, dtype, comm.device, drop, self._seed, node_drop)
        return FeatureEncoder(
            store, shard.num_features, self.config, self.propagation, self._nodes, self._seed
        )

    def sharded_names(self) -> frozenset[str]:
        """Parameters of which each rank holds its own nodes' rows (not summed over ranks)."""
        return frozenset({"encoder.rows"} if isinstance(self.encoder, NodeEmbedding) else ())

    def channel_weights(self) -> list[Tensor]:
        """W_c [D, D], one per channel, differentiable in the cell's parameters."""
        weights: list[Tensor] = self.cell_weights()
        return weights

    def injection(self, step: int | None = None) -> Tensor:
        """b(X) [O, D]; ``step`` seeds the input dropout, None switches it off."""
        result: Tensor = self.encoder(step)
        return result

    def forward(self, step: int, forward: SolvePlan, adjoint: SolvePlan) -> Tensor:
        """Training logits [O, C] at the solved equilibrium, differentiable."""
        return self.read_out(self.equilibrium(step, forward, adjoint), step)

    def equilibrium(self, step: int, forward: SolvePlan, adjoint: SolvePlan) -> Tensor:
        """Z* [O, D] of a training step, differentiable."""
        return self.layer(self.injection(step), self.channel_weights(), forward, adjoint)

    def state(self, step: int, plans: Plans) -> Tensor:
        """See ``NodeModel``: Z*, solved as the plans say."""
        return self.equilibrium(step, plans.train(), plans.adjoint())

    def inputs(self, step: int | None) -> list[tuple[str, Tensor]]:
        """See ``NodeModel``; b(X) is computed once more."""
        return [*self.encoder.constants(), ("the injection b(X)", self.injection(step))]

    @property
    def dtype(self) -> torch.dtype:
        """See ``NodeModel``."""
        return self.head.weight.dtype

    def reset_links(self) -> None:
        """See ``NodeModel``."""
        self.propagation.reset_links()

    def exact_rows(self) -> AbstractContextManager[None]:
        """See ``NodeModel``: also where links write changes in few bits, or late."""
        return self.propagation.exact_rows()

    def tighten(self, factor: float) -> None:
        """See ``NodeModel``."""
        self.cell_weights.tighten(factor)
        self.project()

    @torch.no_grad()
    def at_zero(self) -> Tensor:
        """f(0) = phi(b(X)) [O, D] of the plain map, without dropout."""
        return self.layer.form.activate(self.injection())

    def read_out(
        self, state: Tensor, step: int | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Logits of a state [O, D].

        Args:
            state: of all owned nodes.
            step: seeds the dropout, None switches it off.
            rows: owned ids [R] of the nodes asked for; None for all.

        Returns:
            [R, C], or [O, C].
        """
        nodes = self._nodes
        if rows is not None:
            state, nodes = state.index_select(0, rows), nodes.index_select(0, rows)
        result: Tensor = self.head(self._dropout(state, self._seed, step, nodes))
        return result

    @torch.no_grad()
    def solve(self, plan: SolvePlan) -> Solution:
        """The equilibrium without dropout and without gradient."""
        return self.layer.solve(self.injection(), self.channel_weights(), plan)

    @torch.no_grad()
    def project(self) -> bool:
        """Bring the weights back inside the cell's bound; False where that is never needed."""
        return self.cell_weights.project()

    @torch.no_grad()
    def spectral_radius(self) -> float:
        """Largest |eigenvalue| of sum_c W_c: how much the equilibrium differs from one step."""
        total = torch.stack(self.channel_weights()).double().sum(dim=0)
        eigenvalues = torch.linalg.eigvals(total.cpu())
        return float(eigenvalues.abs().max())
