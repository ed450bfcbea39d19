"""ImplicitLayer: the equilibrium as a differentiable function of the injection and the weights.

Forward: Z* = f(Z*). Backward (implicit function theorem, IGNN-Solver eq. 3): v solves
v = m * (sum_c B_c' v W_c' + g) with m = phi'(.) and g = dL/dZ*; then dL/db = v and
dL/dW_c = (B_c Z*)' v. Both are fixed points, so any solver serves either. How the W_c depend on
parameters is autograd's business, so one layer serves every cell (``models/cells``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distributed_ignn.models.activations import Activation
from distributed_ignn.models.maps import (
    PLAIN,
    AdjointCell,
    CellForm,
    EquilibriumCell,
    weight_gradients,
)
from distributed_ignn.propagation.operators import ChannelOperator
from distributed_ignn.propagation.propagate import Propagation
from distributed_ignn.solvers.base import AnySolver, Outcome, Reduce, Solution
from distributed_ignn.solvers.captured import Captures
from distributed_ignn.solvers.solve import solve

Cell = EquilibriumCell | AdjointCell

Start = Callable[["Cell", Tensor], Tensor]
"""Starting point of a solve from its map and b (forward) or m * g (adjoint)."""


@dataclass(frozen=True, slots=True, eq=False)
class SolvePlan:
    """How one direction is solved.

    Args:
        solver: the method.
        start: from the map and b or m * g to the first point.
        tolerance, max_steps: see ``solve``.
        done: told the record of each solve (metrics, warm start).
        products: told B_c Z* [O, D] per channel where the backward pass keeps them, if anybody
            asks.
        captures: solves in groups of evaluations; None for one by one.
    """

    solver: AnySolver
    start: Start
    tolerance: float
    max_steps: int
    done: Callable[[Solution], None]
    products: Callable[[tuple[Tensor, ...]], None] | None = None
    captures: Captures | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ImplicitLayer:
    """The layer on this rank's rows.

    Args:
        propagation: normalised channels.
        reduce: sums a float64 vector over ranks, wherever it lies.
        sparsified: A_s for the learned solver, or None.
        form: activation, step and residual of the cell.
    """

    propagation: Propagation
    reduce: Reduce
    sparsified: ChannelOperator | None = None
    form: CellForm = PLAIN

    def __call__(
        self, injection: Tensor, weights: list[Tensor], forward: SolvePlan, adjoint: SolvePlan
    ) -> Tensor:
        """f(Z) at the solved Z, [O, D]; differentiable in ``injection`` [O, D] and ``weights``."""
        result: Tensor = _Equilibrium.apply(self, forward, adjoint, injection, *weights)
        return result

    @torch.no_grad()
    def solve(self, injection: Tensor, weights: list[Tensor], plan: SolvePlan) -> Solution:
        """The record of a forward solve, without gradient."""
        return self._solve_cell(self.cell(injection, weights), injection, plan)

    @staticmethod
    def saved_bytes(state: int, item: int, channels: int, activation: Activation) -> int:
        """Bytes kept for the backward pass: Z*, B_c Z* of every channel, and phi'.

        Args:
            state: bytes of a state [O, D].
            item: bytes of one of its numbers.
            channels: C.
            activation: phi.
        """
        slope = state // item * activation.slope_bytes(item)
        return state + EquilibriumCell.held_bytes(state, channels) + slope

    def cell(
        self, injection: Tensor, weights: list[Tensor], *, keep_products: bool = False
    ) -> EquilibriumCell:
        """The map f for these weights and this injection; see ``EquilibriumCell``."""
        detached = [weight.detach() for weight in weights]
        return EquilibriumCell(
            self.propagation,
            detached,
            injection.detach(),
            self.sparsified,
            self.form.at(detached),
            keep_products=keep_products,
        )

    def adjoint_cell(
        self, equilibrium: Tensor, weights: list[Tensor], incoming: Tensor
    ) -> AdjointCell:
        """The map of the backward solve at Z* [O, D] for g = dL/dZ* [O, D]."""
        detached = [weight.detach() for weight in weights]
        slope = self.form.slope(equilibrium)
        return AdjointCell(self.propagation, detached, slope, incoming, self.form)

    @torch.no_grad()
    def products(self, x: Tensor) -> list[Tensor]:
        """B_c x [O, D] per channel for x [O, D]; one exchange."""
        return [self.form.mix(product, x) for product in self.propagation.apply(x)]

    def _solve_cell(self, cell: Cell, driver: Tensor, plan: SolvePlan) -> Solution:
        start = [plan.start(cell, driver)]
        del driver
        by = solve if plan.captures is None else plan.captures.solve
        solution = by(
            cell,
            start.pop(),  # so that nobody but the solve holds it
            plan.solver,
            self.reduce,
            tolerance=plan.tolerance,
            max_steps=plan.max_steps,
        )
        if solution.outcome is Outcome.DIVERGED:
            self.propagation.reset_links()
        plan.done(solution)
        return solution


class _Equilibrium(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: ImplicitLayer,
        forward: SolvePlan,
        adjoint: SolvePlan,
        injection: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        cell = layer.cell(injection, list(weights), keep_products=True)
        solution = layer._solve_cell(cell, injection, forward)
        ctx.layer, ctx.adjoint, ctx.form = layer, adjoint, cell.form
        products = cell.products_of(solution.best)
        if forward.products is not None:
            forward.products(products)
        ctx.save_for_backward(layer.form.slope(solution.image), *weights, *products)
        # another view of the array that warm start keeps: whoever gets it must not write into it
        return solution.image.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer: ImplicitLayer = ctx.layer
        slope, *rest = ctx.saved_tensors
        weights, products = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        incoming = grad.contiguous()
        cell = AdjointCell(layer.propagation, weights, slope, incoming, ctx.form)
        v = layer._solve_cell(cell, cell.start(), ctx.adjoint).image
        return (None, None, None, v, *weight_gradients(products, v))
