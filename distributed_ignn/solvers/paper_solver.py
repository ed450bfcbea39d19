"""The paper's own solver (IGNN-Solver, Algorithm 1): a tiny graph network gives alpha and beta.

    Z_0 = h(X);  G_k = f(Z_k) - Z_k;  alpha, beta = s(G history, A_s),  sum(alpha) = 1
    Z_{k+1} = sum_i alpha_i (Z_i + beta G_i)

No least squares are solved: alpha takes the place of Anderson's weights. s compresses each residual
row by two layers D -> H -> p, one graph layer on A_s reads the compressed history (equation 6) of
every node (equation 7), and two heads read the mean over all nodes. Step 3 of the printed algorithm
adds up the residuals without alpha; its Algorithm 2 and the authors' code weigh them, and so do we.

Where the paper is silent: a residual is divided by the root mean square of the one before it, which
every rank knows, so that s sees how fast the solve converges and not how far it has come; the heads
begin at zero, where every step is Picard's. One reduction an iteration; one exchange of D columns
and one of p. All of it is the same however the graph is cut.

Without its graph layer (the paper's NN) s reads the compressed history of a node alone: A_s is the
identity, and nothing but the state is exchanged.

Letters: O owned rows, n nodes, D columns, M memory, m <= M + 1 iterates held, p compressed width,
H hidden width.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from distributed_ignn.solvers.anderson import Anderson, AndersonState
from distributed_ignn.solvers.base import (
    Evaluation,
    FixedPointMap,
    Iterate,
    Reduce,
    SolveSizes,
)
from distributed_ignn.solvers.blocks import square_sum
from distributed_ignn.solvers.estimator import StructuredMap, structured
from distributed_ignn.solvers.history_layers import padded
from distributed_ignn.solvers.neural import MAX_STRIKES


class PaperNetwork(nn.Module):
    """s: the history of residuals in, alpha and beta out.

    Args:
        width: D.
        memory: M.
        compress: p.
        hidden: H.
        reads_graph: whether it has a graph layer.
    """

    def __init__(
        self, width: int, memory: int, compress: int, hidden: int, *, reads_graph: bool = True
    ) -> None:
        super().__init__()
        self.reads_graph = reads_graph
        self.slots = memory + 1
        self.width = width
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, compress)
        self.layer = nn.Linear(self.slots * compress, hidden)
        self.head_alpha = nn.Linear(hidden, self.slots)
        self.head_beta = nn.Linear(hidden, 1)
        for head in (self.head_alpha, self.head_beta):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        #: Root mean square of the residual that a solve begins with, as training last saw it.
        self.first_scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def squeeze(self, residual: Tensor, scale: float | Tensor) -> Tensor:
        """Compressed rows [O, p] of a residual [O, D] that is divided by ``scale``."""
        inner = functional.linear(residual, self.first.weight / scale, self.first.bias)
        rows: Tensor = self.second(torch.relu(inner))
        return rows

    def read(self, blocks: list[Tensor]) -> Tensor:
        """Node features [O, H] from A_s times the compressed residuals [O, p], newest first."""
        return torch.relu(self.layer(torch.cat(padded(blocks, self.slots), dim=1)))

    def weights(self, mean: Tensor, held: int) -> tuple[Tensor, Tensor]:
        """alpha [m], newest first and of sum 1, and the scalar beta; float64.

        Args:
            mean: of the node features over all n nodes, [H].
            held: m.
        """
        shift = self.head_alpha(mean)[:held].double()
        newest = torch.zeros_like(shift)
        newest[0] = 1.0
        return newest + shift - shift.mean(), 1.0 + self.head_beta(mean)[0].double()

    @staticmethod
    def held_bytes(rows: int, memory: int, compress: int, hidden: int, item: int) -> int:
        """Bytes of the compressed history, of its join and of the node features in a solve."""
        return rows * item * (2 * (memory + 1) * compress + 2 * hidden)


@dataclass(slots=True, eq=False)
class PaperState:
    """Anderson's state, for the safeguard, and the compressed history.

    Args:
        base: iterates and residuals.
        map: what is solved.
        scale: what the next residual is divided by.
        blocks: A_s times the compressed residuals [O, p], newest first.
        mean: of the node features over all n nodes [H]; None where s has no say in the next step.
        norm: ||g|| of the last accepted evaluation, 0 before the first.
        strikes: learned steps that did not reduce the residual.
        failed: whether the last learned step did not.
        lost: whether its residual was not finite, so that the history holds no numbers.
        learned: whether the last ``advance`` was of s.
        alpha, beta: what s gave it, float64; None without it.
    """

    base: AndersonState
    map: StructuredMap
    scale: float
    blocks: list[Tensor] = field(default_factory=list)
    mean: Tensor | None = None
    norm: float = 0.0
    strikes: int = 0
    failed: bool = False
    lost: bool = False
    learned: bool = False
    alpha: Tensor | None = None
    beta: Tensor | None = None


class PaperSolver:
    """The paper's solver as a method for ``solve``.

    Safeguard: a step of s that does not reduce the global residual is taken back and replaced by
    the one that Anderson takes from the same history; after two of them Anderson finishes the solve
    alone. Without it s decides every step, as the paper has it.

    Args:
        network: s.
        num_nodes: n over all ranks.
        memory: M.
        regularization: of Anderson's system.
        storage: see ``Anderson``.
        safeguard: whether there is one.
    """

    def __init__(
        self,
        network: PaperNetwork,
        num_nodes: int,
        memory: int,
        regularization: float,
        storage: torch.dtype | None = None,
        *,
        safeguard: bool = True,
    ) -> None:
        self.network = network
        self.num_nodes = num_nodes
        self.safeguard = safeguard
        self.anderson = Anderson(memory, 1.0, regularization, storage)

    def init(self, z0: Tensor, fixed_point_map: FixedPointMap | None = None) -> PaperState:
        """An empty history.

        Raises:
            UserError: the map has no graph.
        """
        scale = float(self.network.first_scale)
        return PaperState(self.anderson.init(z0), structured(fixed_point_map), scale)

    def held_bytes(self, sizes: SolveSizes) -> dict[str, int]:
        """Anderson's; what s holds, ``PaperNetwork.held_bytes`` says."""
        return self.anderson.held_bytes(sizes)

    def moved_bytes(self, sizes: SolveSizes) -> float:
        """Anderson's."""
        return self.anderson.moved_bytes(sizes)

    def rider(self, state: PaperState) -> None:
        """Nothing travels with the state: s reads the newest residual, which is not there yet."""

    @torch.no_grad()
    def observe(self, state: PaperState, evaluation: Evaluation, reduce: Reduce) -> float:
        """Gram row, ||f(z)||^2 and the sum over nodes for s, reduced together."""
        history, accepted = state.base.history, state.base.residual
        dots = history.push(evaluation.point, evaluation.image)
        own = torch.cat([dots, square_sum(evaluation.image)[None]])
        nodes = self._read(state)
        sums = reduce(own if nodes is None else torch.cat([nodes, own])).cpu()
        state.mean = None
        if nodes is not None:
            state.mean = (sums[: nodes.numel()] / self.num_nodes).to(evaluation.image)
            sums = sums[nodes.numel() :]
        residual = self.anderson.record(state.base, sums[:-1], float(sums[-1]))
        self._judge(state, math.sqrt(max(float(sums[0]), 0.0)), accepted)
        # a step that is about to be taken back is no reason to end the solve
        return sys.float_info.max if state.lost else residual

    def _read(self, state: PaperState) -> Tensor | None:
        """This rank's sum of node features, float64 [H]; None where s has been silenced."""
        if self.safeguard and state.strikes >= MAX_STRIKES:
            return None
        _, newest = state.base.history.newest()
        block = self.network.squeeze(newest, state.scale)
        if self.network.reads_graph:
            block = state.map.propagate(block, True)[0]
        state.blocks = [block, *state.blocks][: self.network.slots]
        return self.network.read(state.blocks).sum(dim=0, dtype=torch.float64)

    def _judge(self, state: PaperState, norm: float, accepted: float) -> None:
        """Keep the new iterate, or take it back if a step of s led to no smaller residual.

        ``norm`` is global, so every rank judges alike; ``accepted`` is the relative residual that
        a taken back step goes back to.
        """
        grown = self.safeguard and state.learned and not norm < state.norm
        state.failed, state.lost = grown, grown and not math.isfinite(norm)
        if not grown:
            state.norm = norm
            state.scale = root_mean_square(norm, self.num_nodes * self.network.width)
            return
        state.strikes += 1
        state.mean, state.blocks = None, state.blocks[1:]
        if not state.lost:
            state.base.history.drop_newest()
            state.base.residual = accepted

    @torch.no_grad()
    def advance(self, state: PaperState, best: Iterate) -> Tensor:
        """The point that s mixes, or Anderson's step where the safeguard wants that."""
        state.alpha, state.beta, state.learned = None, None, False
        if state.lost:
            state.blocks = []
            state.base.residual = best.residual
            state.base.history.clear()
            return best.image
        if state.mean is None or self._is_misled(state, best):
            return self.anderson.advance(state.base, best)
        held = len(state.base.history)
        state.alpha, state.beta = self.network.weights(state.mean, held)
        state.learned = True
        return state.base.history.mix(state.alpha, float(state.beta))

    def _is_misled(self, state: PaperState, best: Iterate) -> bool:
        return self.safeguard and self.anderson.has_grown(state.base, best)


def root_mean_square(norm: float, count: int) -> float:
    """Of ``count`` numbers whose vector has this norm; never 0, so that one may divide by it."""
    return max(norm / math.sqrt(count), sys.float_info.min)
