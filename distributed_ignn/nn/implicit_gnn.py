"""ImplicitGNN: this package's model as an ordinary module, on the graph that it is called with.

The equilibrium, its gradient, the cells and b(X) are those of ``models/``, on a graph that one
process holds whole. Letters: n nodes, F features, D hidden width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distributed_ignn.errors import UserError
from distributed_ignn.models.cells import GraphFit, cell_weights
from distributed_ignn.models.dropout import NodeDropout, Stream
from distributed_ignn.models.encoder import Injection, Source
from distributed_ignn.models.features import FeatureStore
from distributed_ignn.models.implicit import Cell, ImplicitLayer, SolvePlan
from distributed_ignn.nn.local_graph import GivenFeatures, LocalGraph, read_adjacency, read_features
from distributed_ignn.nn.remembered import Remembered
from distributed_ignn.nn.solving import (
    Direction,
    Failure,
    SolveInfo,
    WarmStart,
    Watcher,
    both_directions,
    checked,
    local_sum,
    refuse_float16,
)
from distributed_ignn.solvers.base import AnySolver, Solution

_SEED = 0  # masks differ by the number of the call, which torch's generator draws
_ADVICE = "allow more steps (max_steps) or a larger tolerance, or lower kappa"

Adjacency = Any
"""``edge_index`` int [2, E], or an ``adj_t`` [n, n] as a sparse tensor or ``SparseTensor``."""


class ImplicitOutput(NamedTuple):
    """What a call of ``ImplicitGNN`` gives.

    Args:
        logits: [n, C].
        z: the equilibrium [n, D].
        info: how it was found; the backward solve enters it when it happens.
    """

    logits: Tensor
    z: Tensor
    info: SolveInfo


class ImplicitGNN(nn.Module):
    r"""An implicit graph neural network for the user's own loop, loss and optimiser.

    .. math::
        \mathbf{Z} = \phi(\hat{\mathbf{A}} \mathbf{Z} \mathbf{W} + b(\mathbf{X})), \qquad
        b(\mathbf{X}) = \mathbf{X} \mathbf{\Omega}_1 + \hat{\mathbf{A}} \mathbf{X}
        \mathbf{\Omega}_2 + \mathbf{b}, \qquad
        \hat{\mathbf{A}} = \mathbf{\tilde{D}}^{-1/2} (\mathbf{A} + \mathbf{I})
        \mathbf{\tilde{D}}^{-1/2}

    and logits = Linear(dropout(Z)), with gradients by the implicit function theorem (Gu et al.,
    "Implicit Graph Neural Networks", NeurIPS 2020). The weights are kept where the equilibrium
    exists and is unique: where a cell needs it, every call first projects them back, in place, so a
    plain loop with any optimiser is enough. Parameters have the names that a training run gives
    them: its weights can be loaded here and the other way round. The gradient can be taken once, as
    that of ``FixedPoint``.

    It computes in the number format of its parameters (``model.double()`` for float64), also under
    autocast. The graph is normalised once and kept while ``edge_index`` is the same, unchanged
    object. Dropout masks follow ``torch.manual_seed``.

    Args:
        in_features: F.
        hidden: D.
        classes: C.
        cell: ``ignn``, ``eignn`` or ``mignn``, see ``model.cell`` in ``--help``.
        solver: ``anderson``, ``broyden``, ``picard``, or an object with the methods of
            ``distributed_ignn.solvers.base.FixedPointSolver``.
        channels: propagation graphs; each has a W of its own.
        tolerance, max_steps: relative residual at which to stop, and most evaluations of a solve.
        memory, beta, regularization: of the solver, see ``forward.memory`` and its like in
            ``--help``. One that no method here reads is refused; a solver that is an object has its
            own.
        adjoint_solver, adjoint_tolerance, adjoint_max_steps: the same for the backward solve; those
            of the forward solve by default.
        warm_start: start from the solution of the last call in the same mode where that has the
            same shape.
        on_failure: what to do about a solve that ends above its tolerance: ``warn`` (once, until
            one converges again), ``raise``, or ``ignore``. Numbers that are not finite raise unless
            ignored.
        model: further keys of section ``model`` as in ``--help``: ``kappa``, ``learn_kappa``,
            ``skew``, ``residual``, ``normalisation``, ``init``, ``constraint``, ``dropout``,
            ``input_dropout``, ``node_dropout``, ``injection``, ``injection_channels``,
            ``injection_layers``, ``injection_norm``, ``bias``; not ``kind``, whose other values are
            trained by ``fit`` alone.

    Shapes:
        - **x:** :math:`(n, F)`, dense or sparse
        - **edge_index:** :math:`(2, E)`, or an adj_t :math:`(n, n)`
        - **edge_weight:** :math:`(E)`
        - **output:** logits :math:`(n, C)`, z :math:`(n, D)`

    Raises:
        UserError: a setting outside its limits; at a call, inputs that do not fit, or a solve that
            fails.

    Example::

        model = ImplicitGNN(data.num_features, 64, classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        out = model(data.x, data.edge_index)
        loss = torch.nn.functional.cross_entropy(out.logits[train], data.y[train])
        loss.backward()
        optimizer.step()
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        classes: int,
        *,
        cell: str = "ignn",
        solver: str | AnySolver = "anderson",
        channels: int = 1,
        tolerance: float = 1e-4,
        max_steps: int = 50,
        memory: int = 5,
        beta: float = 1.0,
        regularization: float = 1e-8,
        adjoint_solver: str | AnySolver | None = None,
        adjoint_tolerance: float | None = None,
        adjoint_max_steps: int | None = None,
        warm_start: bool = False,
        on_failure: Failure = "warn",
        **model: Any,
    ) -> None:
        super().__init__()
        for name, size in (
            ("in_features", in_features),
            ("classes", classes),
            ("channels", channels),
        ):
            if size < 1:
                raise UserError(f"{name} = {size} must be at least 1")
        if model.get("kind", "implicit") != "implicit":
            raise UserError(
                f"kind = {model['kind']} is for training runs, and ImplicitGNN is the implicit "
                "model; drop it, or take a layer of torch_geometric"
            )
        self.config = checked({"model": {"hidden": hidden, "cell": cell, **model}}).model
        self.in_features, self.channels = in_features, channels
        self._forward, self._adjoint = both_directions(
            solver,
            tolerance,
            max_steps,
            adjoint_solver=adjoint_solver,
            adjoint_tolerance=adjoint_tolerance,
            adjoint_max_steps=adjoint_max_steps,
            memory=memory,
            beta=beta,
            regularization=regularization,
        )
        self.encoder = Injection(in_features, self.config, channels)
        self.cell_weights = cell_weights(self.config, channels, GraphFit(1.0, "max"))
        self.head = nn.Linear(hidden, classes)
        self._dropout = NodeDropout(self.config.dropout, Stream.OUTPUT)
        self._watcher = Watcher(on_failure, _ADVICE)
        self._graphs: Remembered[LocalGraph] = Remembered()
        self._sources: Remembered[Source] = Remembered()
        self._warm = WarmStart(warm_start)
        self._hold(self.cell_weights.growth)

    @torch.compiler.disable(reason="the solve decides on numbers, and its products are compiled")
    def forward(
        self,
        x: Any,
        edge_index: Adjacency | Sequence[Adjacency],
        edge_weight: Tensor | Sequence[Tensor | None] | None = None,
    ) -> ImplicitOutput:
        """Logits and equilibrium of a graph.

        Args:
            x: features [n, F]; where they are dense they get a gradient if they ask for one.
            edge_index: edges from row 0 to row 1, as PyG has them, or an adj_t; a list of such with
                several channels. Self-loops are added once and repeated edges count once, or add
                up their weights.
            edge_weight: [E], finite and not negative; constants, which get no gradient. A list with
                several channels.

        Raises:
            UserError: see the class.
        """
        refuse_float16(self.head.weight.dtype, "the model", "use model.float() or model.bfloat16()")
        with torch.inference_mode(False):  # what is remembered may be needed for recording
            graph = self._graph(x, edge_index, edge_weight)
        self._hold(graph.fit.growth)
        with torch.autocast(graph.nodes.device.type, enabled=False):
            with torch.inference_mode(False):
                source = self._source(x, graph)
            step = int(torch.randint(2**31 - 1, ())) if self.training else None
            z, info = self._solve(graph, self.encoder.of(source, step))
            logits = self.head(self._dropout(z, _SEED, step, graph.nodes))
        return ImplicitOutput(logits, z, info)

    def _hold(self, growth: float) -> None:
        """Bring the weights back inside the bound that a graph with this growth asks for."""
        weights = self.cell_weights
        weights.growth = growth
        if not weights.is_inside() and weights.project():
            # a backward pass that is still to come must not use what was changed, unnoticed
            torch.autograd.graph.increment_version(list(weights.parameters()))

    def _solve(self, graph: LocalGraph, injection: Tensor) -> tuple[Tensor, SolveInfo]:
        """Z* [n, D], differentiable where gradients are recorded."""
        info = SolveInfo()
        layer = ImplicitLayer(graph.propagation, local_sum, None, self.cell_weights.form)
        weights = self.cell_weights()
        mode = "training" if self.training else "evaluation"
        forward = self._plan("forward", mode, self._forward, info)
        if not torch.is_grad_enabled():
            return layer.solve(injection, weights, forward).image, info
        adjoint = self._plan("backward", "backward", self._adjoint, info)
        return layer(injection, weights, forward, adjoint), info

    def _plan(self, direction: str, state: str, how: Direction, info: SolveInfo) -> SolvePlan:
        def start(cell: Cell, driver: Tensor) -> Tensor:
            kept = self._warm.find(state, driver)
            if kept is not None:
                return kept
            return self.cell_weights.form.activate(driver) if direction == "forward" else driver

        def done(solution: Solution) -> None:
            found = self._watcher.record(direction, solution, how)
            if direction == "forward":
                info.forward = found
            else:
                info.adjoint = found
            self._warm.keep(state, solution)

        return SolvePlan(how.solver, start, how.tolerance, how.max_steps, done)

    def _graph(self, x: Any, edge_index: Any, edge_weight: Any) -> LocalGraph:
        """The graph, made or remembered."""
        given = _as_list(edge_index)
        weights = [None] * len(given) if edge_weight is None else _as_list(edge_weight)
        if not len(given) == len(weights) == self.channels:
            raise UserError(
                f"{len(given)} edge_index and {len(weights)} edge_weight for {self.channels} "
                "channels; give a list with one for each"
            )
        if any(isinstance(w, Tensor) and w.requires_grad for w in weights):
            raise UserError(
                "edge_weight asks for a gradient and gets none here; give edge_weight.detach(), or "
                "use FixedPoint around a layer of PyG that takes edge_weight"
            )
        head, nodes = self.head.weight, int(x.size(0))
        key = (nodes, head.device, head.dtype, tuple(w is None for w in weights))
        objects = [*given, *(w for w in weights if w is not None)]
        found = self._graphs.find(key, objects)
        if found is not None:
            return found
        read = partial(read_adjacency, nodes=nodes)
        channels = [read(each, w) for each, w in zip(given, weights, strict=True)]
        made = LocalGraph.build(channels, self.config, head.device, head.dtype)
        return self._graphs.keep(key, objects, made)

    def _source(self, x: Any, graph: LocalGraph) -> Source:
        """What b(X) is computed from, made or remembered."""
        objects = (x, graph)
        # x may have come to ask for a gradient, which does not count as writing into it
        asks = isinstance(x, Tensor) and x.requires_grad
        key = (self.head.weight.device, self.head.weight.dtype, asks)
        found = self._sources.find(key, objects)
        if found is not None:
            return found
        features = read_features(x, self.in_features)
        live = isinstance(features, Tensor) and features.requires_grad
        drop, node_drop = self.config.input_dropout, self.config.node_dropout
        given = GivenFeatures(features, graph.nodes)
        store = FeatureStore(given, key[1], key[0], drop, _SEED, node_drop)
        made = Source.of(store, graph.propagation, graph.nodes, self.config, _SEED)
        return made if live else self._sources.keep(key, objects, made)

    def extra_repr(self) -> str:
        """What is printed besides the parts."""
        return f"cell={self.config.cell}, kappa={self.config.kappa}, channels={self.channels}"


def _as_list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]
