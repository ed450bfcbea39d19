"""LearnedSolver: the trained parts of IGNN-Solver, as the settings ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.maps import AdjointCell, EquilibriumCell
from distributed_ignn.propagation.coarse import CoarseLevel
from distributed_ignn.solvers.base import AnySizedSolver
from distributed_ignn.solvers.estimator import ErrorEstimator, StructuredMap
from distributed_ignn.solvers.initialiser import Initialiser
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.predictors import NeuralShape, Predictor, build_predictor
from distributed_ignn.solvers.reduced import BasisCache

Guess = Callable[[StructuredMap, Tensor, Callable[[Tensor], Tensor]], Tensor]
"""h: Z0 [O, D] from the map, b [O, D] and the map's activation."""


@dataclass(slots=True, eq=False)
class LearnedSolver:
    """Holds the trained parts of IGNN-Solver; what the settings leave out is None.

    Args:
        initialiser: h.
        estimator: beta of the forward solve.
        adjoint: beta of the backward solve.
        predictor: s.
        num_nodes: n.
        memory, regularization: of Anderson's weights.
        ready: whether they are in use yet.
        storage, adjoint_storage: number format of either solve's past iterates, see ``History``.
        safeguard: whether steps that do not reduce the residual are taken back.
    """

    initialiser: Initialiser | None
    estimator: ErrorEstimator | None
    adjoint: ErrorEstimator | None
    predictor: Predictor | None
    num_nodes: int
    memory: int
    regularization: float
    ready: bool = False
    storage: torch.dtype | None = None
    adjoint_storage: torch.dtype | None = None
    safeguard: bool = True

    @property
    def has_network(self) -> bool:
        """Say whether gradient steps train something."""
        return self.predictor is not None

    @property
    def guess(self) -> Guess | None:
        """Return what makes the starting point of a forward solve; None for f(0)."""
        return self.initialiser

    def start(self, cell: EquilibriumCell, injection: Tensor) -> Tensor:
        """Return where a forward solve starts, [O, D], differentiable: h(X), or f(0) without h."""
        activate, guess = cell.form.activate, self.guess
        return activate(injection) if guess is None else guess(cell, injection, activate)

    def modules(self) -> dict[str, torch.nn.Module]:
        """Return the parts there are, by name."""
        parts = {
            "initialiser": self.initialiser,
            "estimator": self.estimator,
            "adjoint": self.adjoint,
            "predictor": self.predictor,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters of all parts, as ``part.name``."""
        return {
            f"{prefix}.{name}": parameter
            for prefix, module in self.modules().items()
            for name, parameter in module.named_parameters()
        }

    def solver(self, tolerance: float = 0.0) -> AnySizedSolver:
        """Make the method of a forward solve to ``tolerance``; 0 if that is not known."""
        return self.training_solver(None, tolerance)

    def training_solver(
        self, reduce_grad: Callable[[Tensor], Tensor] | None, tolerance: float = 0.0
    ) -> NeuralSolver:
        """Make the method of a forward solve in which s is trained by ``reduce_grad``, if at all.

        That is a differentiable sum over ranks.
        """
        return NeuralSolver(
            self.predictor,
            self.num_nodes,
            self.regularization,
            reduce_grad,
            self.estimator,
            self.memory,
            storage=self.storage,
            safeguard=self.safeguard,
            tolerance=tolerance,
        )

    def adjoint_solver(self, tolerance: float = 0.0) -> NeuralSolver:
        """Make the method of a backward solve to ``tolerance`` from ``adjoint_start``."""
        return NeuralSolver(
            None,
            self.num_nodes,
            self.regularization,
            None,
            self.adjoint,
            self.memory,
            first_step=1,
            storage=self.adjoint_storage,
            safeguard=self.safeguard,
            tolerance=tolerance,
        )

    def adjoint_start(self, cell: AdjointCell, incoming: Tensor) -> Tensor:
        """Estimate v from v = 0, where m * g is image and residual without an evaluation."""
        if self.adjoint is None:
            return incoming
        return self.adjoint.estimate(cell, incoming, incoming, 0)


def build_learned_solver(
    config: RunConfig, shard: GraphShard, comm: Communicator, dtype: torch.dtype
) -> LearnedSolver:
    """Build the parts that the settings ask for, with weights that depend on the seed alone.

    Raises:
        UserError: the settings want a coarse level and the shards have none.
    """
    channels, device = len(shard.channels), comm.device
    section, width = config.solver, config.model.hidden
    cache = BasisCache(section.compress)  # both parts of the forward solve read the same basis
    initialiser = estimator = adjoint = None
    if section.initialiser != "none":
        hops = section.initialiser_hops if section.initialiser == "graph" else 0
        initialiser = Initialiser(width, cache, hops, channels).to(device, dtype)
    if section.estimator != "none":
        hops = section.estimator_hops if section.estimator == "graph" else 0
        thinned = section.sparsifier != "none"
        coarse = None
        if config.partition.clusters > 0 and shard.clusters is None:
            raise UserError(
                f"partition.clusters = {config.partition.clusters}, but the shards in "
                f"{config.partition.dir} hold no clusters; divide the graph again with "
                f"ignn partition --partition.clusters {config.partition.clusters}"
            )
        if shard.clusters is not None and hops > 0:
            coarse = CoarseLevel.from_shard(shard, comm, dtype, config.model.residual)
        sizes = hops, channels, config.estimator_steps
        estimator = ErrorEstimator(cache, *sizes, thinned, coarse).to(device, dtype)
        if config.learns_adjoint:
            backward = BasisCache(section.compress)
            # one step more: the first estimate needs no evaluation
            sizes = hops, channels, config.estimator_steps + 1
            adjoint = ErrorEstimator(backward, *sizes, False, coarse).to(device, dtype)
    return LearnedSolver(
        initialiser,
        estimator,
        adjoint,
        _build_predictor(config, device, dtype),
        shard.num_nodes,
        section.memory,
        config.forward.regularization,
        storage=storage_format(config.forward.history_dtype),
        adjoint_storage=storage_format(config.adjoint.history_dtype),
        safeguard=section.safeguard,
    )


def estimator_bytes(config: RunConfig, sizes: PartSizes, item: int) -> int:
    """Bytes of an estimate in a solve; ``item`` is those of a number."""
    section = config.solver
    hops = section.estimator_hops if section.estimator == "graph" else 0
    coarse = config.partition.clusters > 0
    return ErrorEstimator.held_bytes(
        sizes.owned, section.compress, item, hops, sizes.channels, coarse
    )


def _build_predictor(
    config: RunConfig, device: torch.device, dtype: torch.dtype
) -> Predictor | None:
    section = config.solver
    if section.network == "none":
        return None
    shape = NeuralShape(
        config.model.hidden,
        section.memory,
        section.steps,
        section.compress,
        section.hidden,
        section.network,
        section.alpha,
    )
    torch.manual_seed(config.seed + 1)
    return build_predictor(shape).to(device, dtype)


def storage_format(name: str) -> torch.dtype | None:
    """Return the format that ``history_dtype`` names; None for that of the points."""
    return None if name == "auto" else getattr(torch, name)
