"""NodeModel: what a Trainer knows of a model, whatever kind it is.

A model makes a state of every owned node and reads logits out of it. How a state comes about is the
kind's own business: an implicit model solves for it as it is told to, an explicit one goes through
its layers. Letters: O owned nodes, D width of the state, R rows that are asked for, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from distributed_ignn.models.implicit import SolvePlan
from distributed_ignn.solvers.base import Solution


class Plans(Protocol):
    """Says how the solves of a training step are done."""

    def train(self) -> SolvePlan:
        """Plan the forward solve."""
        ...

    def adjoint(self) -> SolvePlan:
        """Plan the backward solve."""
        ...


class NodeModel(nn.Module, ABC):
    """A model of the nodes that this rank owns; every rank calls it alike.

    Attributes:
        solves: whether states are equilibria: solved for, confirmed, and certain to a tolerance.
        state_name: what a person calls the state.
        reads_weights: whether weights of edges count; without, every edge counts 1.
    """

    solves: ClassVar[bool]
    state_name: ClassVar[str]
    reads_weights: ClassVar[bool] = True

    @abstractmethod
    def state(self, step: int, plans: Plans) -> Tensor:
        """The state [O, D] of a training step, differentiable; ``step`` seeds the dropout."""

    @abstractmethod
    def solve(self, plan: SolvePlan) -> Solution:
        """The state without dropout and without gradient, as the image of a solution.

        That of a model which does not solve has no evaluations and a residual of 0, and ``plan`` is
        not told of it.
        """

    @abstractmethod
    def read_out(
        self, state: Tensor, step: int | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Logits [O, C] of a state [O, D], or [R, C] of the owned ids ``rows`` [R].

        ``step`` seeds the dropout, None switches it off.
        """

    def embeddings(self, state: Tensor) -> Tensor:
        """What stands for each node, [O, D], of the state that ``solve`` has found."""
        return state

    def penalty(self, state: Tensor, step: int) -> Tensor | float:
        """This rank's share of what the kind itself adds to the loss of a training step."""
        return 0.0

    @abstractmethod
    def inputs(self, step: int | None) -> list[tuple[str, Tensor]]:
        """What states are computed from, by name, as far as it is not learned."""

    def sharded_names(self) -> frozenset[str]:
        """Parameters of which each rank holds its own nodes' rows (not summed over ranks)."""
        return frozenset()

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and state."""
        return next(self.parameters()).dtype

    def project(self) -> bool:
        """Bring the weights back inside their bound; False where they have none."""
        return False

    def tighten(self, factor: float) -> None:
        """Multiply the bound on the weights by ``factor``, and bring them inside it."""

    def reset_links(self) -> None:
        """Begin exchanges anew, as a run does that is resumed from here."""

    def exact_rows(self) -> AbstractContextManager[None]:
        """Inside, other ranks' rows are those of the evaluation at hand."""
        return nullcontext()
