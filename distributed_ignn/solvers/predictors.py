"""What the learned solver predicts with: five networks behind one interface.

All but the table correct Anderson's weights and start as Anderson: the output of the heads is a
zero-sum shift of alpha and a change of beta = 1, zero before training. They differ in how they read
the history of compressed residuals, node by node (``history_layers.py``):

- ``graph``  one layer on the sparsified graph A_s (IGNN-Solver, Algorithm 1);
- ``mlp``    two dense layers, no graph;
- ``tcn``    causal convolutions along the history;
- ``gru``    a gated recurrent unit along the history;
- ``table``  reads nothing: alpha and beta of each step are free parameters.

alpha is one vector for the whole graph (``global``) or one per node (``node``), where each node's
own features add a shift. Whatever enters is either the node's own or the same on every rank, so
the prediction does not depend on how the graph is cut.

Letters: O owned rows, n nodes, D columns, M memory, m <= M + 1 iterates held, p compressed width,
H hidden width, K steps the network is trained for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from distributed_ignn.solvers.history_layers import (
    ConvolutionLayers,
    DenseLayers,
    GraphLayer,
    RecurrentLayer,
)

SCOPES = ("global", "node")
"""What one vector of alpha is for."""

# An entry of the table moves by about lr in a training step, the output of a network by many times
# that, because all its inputs push together; with this factor both learn at a similar pace.
_TABLE_GAIN = 10.0


@dataclass(frozen=True, slots=True)
class NeuralShape:
    """Sizes of the learned solver.

    Args:
        width: D, columns of the state.
        memory: M.
        steps: K; from step K on the weights are Anderson's.
        compress: p.
        hidden: H.
        network: how the history is read, see above.
        alpha: one vector of weights for the graph, or one per node (not for the table).
    """

    width: int
    memory: int
    steps: int
    compress: int
    hidden: int
    network: str = "graph"
    alpha: str = "global"

    @property
    def slots(self) -> int:
        """M + 1, the most iterates held."""
        return self.memory + 1


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a prediction may read besides the nodes, the same on every rank.

    Args:
        node_mean: mean of the node features over all n nodes, [H].
        gram: <g_i, g_j> over all ranks, float64 [m, m] newest first.
        step: index k of the current iteration.
        decay: ||g_k|| / ||g_{k-1}||.
        anderson: the weights that Anderson would take, float64 [m] newest first.
    """

    node_mean: Tensor
    gram: Tensor
    step: int
    decay: float
    anderson: Tensor


class Predictor(nn.Module, ABC):
    """s: residual history in, alpha and beta out."""

    def __init__(self, shape: NeuralShape) -> None:
        super().__init__()
        self.shape = shape

    @property
    @abstractmethod
    def rides(self) -> bool:
        """Whether compressed residuals travel to the neighbours."""

    @abstractmethod
    def squeeze(self, rows: Tensor) -> Tensor:
        """Compressed residuals [O, p] of residuals [O, D] whose root mean square is about 1."""

    @abstractmethod
    def read(self, own: list[Tensor], neighbours: list[Tensor]) -> Tensor:
        """Node features [O, H].

        Args:
            own: compressed residuals [O, p], newest first, at most M + 1.
            neighbours: A_s times the compressed residuals [O, p], newest first; one fewer,
                because the newest has not been exchanged yet. Empty unless they ride.
        """

    @abstractmethod
    def correct(self, nodes: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """alpha and beta, float64.

        Args:
            nodes: node features [O, H].
            evidence: the rest.

        Returns:
            alpha [m], or [O, m] with one row per node, newest first, each summing to 1; and the
            scalar beta.
        """


Layer = Callable[[int, int, int], nn.Module]


class WeightPredictor(Predictor):
    """A network that reads residuals and corrects Anderson's weights.

    Args:
        shape: its sizes.
        layer: makes what reads the history of a node from M + 1, p and H; see
            ``history_layers.py``.
    """

    def __init__(self, shape: NeuralShape, layer: Layer = GraphLayer) -> None:
        super().__init__(shape)
        slots = shape.slots
        self.compress = nn.Sequential(nn.Linear(shape.width, shape.compress), nn.Tanh())
        self.layer = layer(slots, shape.compress, shape.hidden)
        summary = shape.hidden + slots * slots + 2
        self.body = nn.Sequential(nn.Linear(summary, 2 * shape.hidden), nn.Tanh())
        self.head_alpha = nn.Linear(2 * shape.hidden, slots)
        self.head_beta = nn.Linear(2 * shape.hidden, 1)
        heads = [self.head_alpha, self.head_beta]
        if shape.alpha == "node":
            self.gate = nn.Linear(2 * shape.hidden, shape.hidden)
            self.head_node = nn.Linear(shape.hidden, slots)
            heads.append(self.head_node)
        for head in heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @property
    def rides(self) -> bool:
        return isinstance(self.layer, GraphLayer)

    def squeeze(self, rows: Tensor) -> Tensor:
        compressed: Tensor = self.compress(rows)
        return compressed

    def read(self, own: list[Tensor], neighbours: list[Tensor]) -> Tensor:
        features: Tensor = self.layer(own, neighbours)
        return features

    def correct(self, nodes: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        held = evidence.anderson.numel()
        mean = evidence.node_mean
        context = torch.tensor(
            [evidence.step / self.shape.steps, math.log(max(evidence.decay, 1e-12))]
        )
        summary = torch.cat([mean, self._correlation(evidence.gram).to(mean), context.to(mean)])
        features = self.body(summary)
        shift = self.head_alpha(features)[:held].double()
        if self.shape.alpha == "node":
            # what is the same for all nodes decides how much each feature of a node counts
            gated = nodes * torch.sigmoid(self.gate(features))
            shift = shift + self.head_node(gated)[:, :held].double()
        alpha = evidence.anderson.to(shift.device) + shift - shift.mean(dim=-1, keepdim=True)
        beta = 1.0 + torch.tanh(self.head_beta(features)[0]).double()
        return alpha, beta

    def _correlation(self, gram: Tensor) -> Tensor:
        """Gram matrix scaled to unit diagonal and padded, [(M + 1)^2]; lengths as logarithms."""
        slots, held = self.shape.slots, gram.shape[0]
        norms = gram.diagonal().clamp_min(1e-300).sqrt()
        padded = gram.new_zeros(slots, slots)
        padded[:held, :held] = gram / torch.outer(norms, norms)
        padded.diagonal()[:held] = torch.log(norms / norms[0])
        return padded.flatten()


class StepTable(Predictor):
    """alpha and beta of each step as free parameters, whatever the residuals are.

    Before training every step is Picard's.
    """

    def __init__(self, shape: NeuralShape) -> None:
        super().__init__(shape)
        if shape.alpha == "node":
            raise ValueError("a table holds no weights per node")
        self.alpha = nn.Parameter(torch.zeros(shape.steps, shape.slots))
        self.beta = nn.Parameter(torch.zeros(shape.steps))

    @property
    def rides(self) -> bool:
        return False

    def squeeze(self, rows: Tensor) -> Tensor:
        """Nothing, [O, 0]."""
        return rows[:, :0]

    def read(self, own: list[Tensor], neighbours: list[Tensor]) -> Tensor:
        """Nothing, [O, 0]."""
        return own[0]

    def correct(self, nodes: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        held = evidence.anderson.numel()
        row = _TABLE_GAIN * self.alpha[evidence.step, :held].double()
        newest = torch.zeros(held, dtype=torch.float64, device=row.device)
        newest[0] = 1.0
        beta = 1.0 + torch.tanh(_TABLE_GAIN * self.beta[evidence.step]).double()
        return newest + row - row.mean(), beta


def build_predictor(shape: NeuralShape) -> Predictor:
    """The predictor that ``shape`` names, with fresh weights."""
    return NETWORKS[shape.network](shape)


NETWORKS: dict[str, Callable[[NeuralShape], Predictor]] = {
    "graph": partial(WeightPredictor, layer=GraphLayer),
    "mlp": partial(WeightPredictor, layer=DenseLayers),
    "tcn": partial(WeightPredictor, layer=ConvolutionLayers),
    "gru": partial(WeightPredictor, layer=RecurrentLayer),
    "table": StepTable,
}
"""The networks there are, by name; a new one is entered here."""
