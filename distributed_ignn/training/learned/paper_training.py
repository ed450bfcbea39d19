"""Training of the paper's own solver with the model frozen (IGNN-Solver, section 4.2), as printed.

    L = lambda1 sum_k l_k ||Z_k - Z*|| + lambda2 ||h(X) - Z*|| + lambda3 sum_k ||G_k alpha_k||

with plain norms over the whole graph. l_k grows with k to 1 (``rising``), is 1 (``constant``), or 0
but for the last step (``last``): the schemes of Figure 5. lambda1 rises linearly from 0 and lambda3
falls linearly to 0 over all steps of the run. The loss of h is kept apart from the others, as the
paper says: they see the starting point as a constant.

The gradient goes through all K steps (``unrolled``): K evaluations forward, K of their transpose
back, and several arrays [O, D] a step in memory. With ``one_step`` the point that a step starts
from is a constant, so that every step goes back on its own: K evaluations, and the memory of one.

Letters: O owned rows, n nodes, D columns, p compressed width, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.collectives import all_reduce_sum
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import NeuralSolverConfig, RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.encoder import FeatureEncoder
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySizedSolver
from distributed_ignn.solvers.mlp_initialiser import MlpInitialiser
from distributed_ignn.solvers.paper_solver import PaperNetwork, PaperSolver, root_mean_square
from distributed_ignn.training.engines.gradients import sum_gradients
from distributed_ignn.training.learned.mixing import mix, square_sum
from distributed_ignn.training.learned.phases import Incoming, SolverTrainer
from distributed_ignn.training.learned_solver import Guess, LearnedSolver, storage_format
from distributed_ignn.training.numbers import NumbersError
from distributed_ignn.training.plans import SolvePlanner

_ARRAYS_A_STEP = 6  # [O, D] that a step keeps for the way back: z, f(z), g, two errors, one mixed


@dataclass(slots=True, eq=False, kw_only=True)
class PaperParts(LearnedSolver):
    """Holds the trained parts of the paper's solver.

    Args:
        network: s.
        mlp: h; without it, solves begin at what ``initialiser`` gives, if another has been put
            there, or at f(0).
    """

    network: PaperNetwork
    mlp: MlpInitialiser | None

    @property
    def guess(self) -> Guess | None:
        """See ``LearnedSolver``."""
        return self.initialiser if self.mlp is None else self.mlp

    def modules(self) -> dict[str, torch.nn.Module]:
        """Return the parts there are, by name."""
        found: dict[str, torch.nn.Module] = {"predictor": self.network}
        return found if self.mlp is None else {"initialiser": self.mlp, **found}

    @property
    def has_network(self) -> bool:
        """Say that gradient steps train something."""
        return True

    def solver(self, tolerance: float = 0.0) -> AnySizedSolver:
        """Make the method of a forward solve, the same for every tolerance."""
        return PaperSolver(
            self.network,
            self.num_nodes,
            self.memory,
            self.regularization,
            self.storage,
            safeguard=self.safeguard,
        )


def build_paper_parts(
    config: RunConfig, model: ShardModel, shard: GraphShard, comm: Communicator, dtype: torch.dtype
) -> PaperParts:
    """Build h and s, with weights that depend on the seed alone.

    Raises:
        UserError: A_s is not its own transpose, which the gradient through it needs.
    """
    section, width = config.solver, config.model.hidden
    if section.graph_layer and not shard.channels[0].self_adjoint:
        raise UserError(
            "solver.kind = paper needs an undirected graph with a symmetric A_hat, and this one is "
            "directed or divided by rows; take --solver.kind estimator, or --solver.graph-layer "
            "false"
        )
    torch.manual_seed(config.seed + 1)
    sizes = width, section.memory, section.compress, section.hidden
    network = PaperNetwork(*sizes, reads_graph=section.graph_layer)
    mlp = _initialiser(section, model, shard.num_features)
    return PaperParts(
        initialiser=None,
        estimator=None,
        adjoint=None,
        predictor=None,
        num_nodes=shard.num_nodes,
        memory=section.memory,
        regularization=config.forward.regularization,
        storage=storage_format(config.forward.history_dtype),
        adjoint_storage=storage_format(config.adjoint.history_dtype),
        network=network.to(comm.device, dtype),
        mlp=None if mlp is None else mlp.to(comm.device, dtype),
        safeguard=section.safeguard,
    )


def _initialiser(
    section: NeuralSolverConfig, model: ShardModel, features: int
) -> MlpInitialiser | None:
    """Make h of the features, which input dropout spares; None where there is to be none."""
    encoder, width = model.encoder, model.config.hidden
    if section.initialiser == "none":
        return None
    if not isinstance(encoder, FeatureEncoder):
        return MlpInitialiser(width, section.bottleneck, width)
    store = encoder.source.store
    return MlpInitialiser(
        features, section.bottleneck, width, lambda matrix: store.linear(matrix, None)
    )


def paper_bytes(config: RunConfig, sizes: PartSizes, item: int) -> int:
    """Bytes of what s holds in a solve; ``item`` is those of a number."""
    section = config.solver
    return PaperNetwork.held_bytes(
        sizes.owned, section.memory, section.compress, section.hidden, item
    )


def rollout_bytes(config: RunConfig, sizes: PartSizes, item: int) -> int:
    """Bytes of a training step of s: of all K steps on the way back, or of one, and a history.

    On the way back the history is the gradient of what a step has mixed.
    """
    section, state = config.solver, sizes.owned * config.model.hidden * item
    own = paper_bytes(config, sizes, item)
    kept = section.steps if section.training == "unrolled" else 1
    return kept * (_ARRAYS_A_STEP * state + own) + 2 * (section.memory + 1) * state


class PaperTrainer(SolverTrainer):
    """Trains the paper's solver, one phase at a time; see ``SolverTrainer`` for the arguments."""

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """Return what Adam moves: s and, unless lambda2 is 0, h."""
        parts = self._learned.modules()
        if self._config.lambda2 == 0.0:
            parts.pop("initialiser", None)
        return [p for part in parts.values() for p in part.parameters() if p.requires_grad]

    @property
    def _parts(self) -> PaperParts:
        if not isinstance(self._learned, PaperParts):
            raise TypeError("PaperTrainer trains the parts of solver.kind paper")
        return self._learned

    def phase(
        self, model: ShardModel, planner: SolvePlanner, steps: int, incoming: Incoming | None
    ) -> float | None:
        """Take ``steps`` gradient steps towards one freshly solved Z*; return the last loss.

        Raises:
            NumbersError: the solve for Z* diverges, or a gradient is not finite (on every rank).
        """
        if steps == 0:
            return None
        with torch.no_grad():
            injection = model.injection()
            cell = model.layer.cell(injection, model.channel_weights())
            target = self._target(cell, injection, planner)
            first = self._learned.start(cell, injection)
            square = self._sum(square_sum(cell(first, None).image - first))
        scale = root_mean_square(math.sqrt(float(square)), self._learned.num_nodes * first.shape[1])
        self._parts.network.first_scale.data.fill_(scale)
        loss = 0.0
        for _ in range(steps):
            loss = self._gradient_step(cell, injection, target)
        self._learned.ready = True
        return loss

    def target_solver(self) -> AnySizedSolver:
        """Return Anderson's method: Z* is a classic solver's."""
        learned = self._learned
        return Anderson(learned.memory, 1.0, learned.regularization, learned.storage)

    def _gradient_step(self, cell: EquilibriumCell, injection: Tensor, target: Tensor) -> float:
        """Take one step of Adam along a solve; return the loss."""
        progress = self._schedule.solver_progress(self.steps_done)
        optimizer, config, comm = self.optimizer, self._config, self._comm
        if optimizer is None:
            raise ValueError("there is nothing to train")
        optimizer.zero_grad()
        with torch.enable_grad():
            start = self._learned.start(cell, injection)
            parts = self._parts
            rollout = PaperRollout(parts.network, config, comm, target, parts.num_nodes)
            losses = rollout.losses(cell, start.detach(), progress)
            if config.lambda2 > 0.0 and parts.mlp is not None:
                losses = chain([config.lambda2 * norms([start - target], comm)[0]], losses)
            value = 0.0
            for loss in losses:
                # it is the same on every rank: each differentiates its share
                (loss / comm.world_size).backward()
                value += float(loss.detach())
        if not sum_gradients(self.trained_parameters(), comm):
            raise NumbersError("the gradient of its network is not finite")
        optimizer.step()
        self.steps_done += 1
        return value


class PaperRollout:
    """Goes through K steps of s once, and adds up their losses.

    Args:
        network: s.
        config: the solver section.
        comm: this rank's communicator.
        target: Z* [O, D].
        num_nodes: n.
    """

    def __init__(
        self,
        network: PaperNetwork,
        config: NeuralSolverConfig,
        comm: Communicator,
        target: Tensor,
        num_nodes: int,
    ) -> None:
        self._network = network
        self._config = config
        self._comm = comm
        self._target = target
        self._num_nodes = num_nodes

    def losses(self, cell: EquilibriumCell, z: Tensor, progress: float) -> Iterator[Tensor]:
        """Yield the loss of the steps from ``z``, the same on every rank; see the module's text.

        It is one for all steps, or with ``one_step`` one for each, which holds nothing any more
        once the caller has gone backward from it.

        Args:
            cell: the map.
            z: Z0 [O, D], a constant.
            progress: position in [0, 1] within all steps of the run.
        """
        network, config = self._network, self._config
        points: list[Tensor] = []
        residuals: list[Tensor] = []
        blocks: list[Tensor] = []
        total = z.new_zeros((), dtype=torch.float64)
        scale: float | Tensor = float(network.first_scale)
        fade = config.lambda3 * (1.0 - progress)
        for k in range(config.steps):
            residual = self._evaluate(cell, z) - z
            points, residuals = self._held(z, points), self._held(residual, residuals)
            block = network.squeeze(residual, scale)
            if network.reads_graph:
                block = _Thinned.apply(block, cell)
            blocks = self._held(block, blocks)
            mean, scale = self._mean(network.read(blocks), residual)
            if not bool(torch.isfinite(scale)):
                break
            if k == 0:
                network.first_scale.data.copy_(scale.detach())
            alpha, beta = network.weights(mean, len(points))
            z, mixture = mix(alpha, beta, points, residuals)
            distance, mixed = norms([z - self._target, mixture], self._comm)
            loss = config.lambda1 * progress * self._weight(k) * distance + fade * mixed
            if config.training == "one_step":
                z, blocks = z.detach(), [block.detach() for block in blocks]
                yield loss
            else:
                total = total + loss
        if total.requires_grad:
            yield total

    def _evaluate(self, cell: EquilibriumCell, z: Tensor) -> Tensor:
        """Return f(z), differentiable in z where the gradient goes through all steps."""
        if self._config.training == "unrolled":
            return cell.differentiable(z)
        with torch.no_grad():
            return cell(z, None).image

    def _held(self, newest: Tensor, older: list[Tensor]) -> list[Tensor]:
        return [newest, *older][: self._network.slots]

    def _mean(self, nodes: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of node features over all nodes [H], and the residual's scale."""
        own = torch.cat([nodes.sum(dim=0, dtype=torch.float64), square_sum(residual)[None]])
        sums = all_reduce_sum(own, self._comm)
        count = self._num_nodes * residual.shape[1]
        floor = max(torch.finfo(nodes.dtype).tiny, 1e-150) ** 2  # of 0 the root has no slope
        scale = (sums[-1] / count).clamp_min(floor).sqrt().to(nodes)
        if self._config.training == "one_step":
            scale = scale.detach()
        return (sums[:-1] / self._num_nodes).to(nodes), scale

    def _weight(self, k: int) -> float:
        """Return l_k, of the point that step k leads to."""
        steps, scheme = self._config.steps, self._config.lambda1_steps
        if scheme == "rising":
            return (k + 1) / steps
        return 1.0 if scheme == "constant" or k == steps - 1 else 0.0


def norms(values: list[Tensor], comm: Communicator) -> Tensor:
    """Norms over all ranks, float64, differentiable; one reduction."""
    squares = all_reduce_sum(torch.stack([square_sum(each) for each in values]), comm)
    return squares.clamp_min(1e-300).sqrt()


class _Thinned(torch.autograd.Function):
    """A_s columns [O, p], differentiable; A_s is its own transpose."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, cell: EquilibriumCell) -> Tensor:
        ctx.cell = cell
        return cell.propagate(columns.contiguous(), True)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.cell.propagate(grad.contiguous(), True)[0], None
