"""The error estimator: a tiny linear graph network that turns a residual into a step.

IGNN-Solver moves to Z_{k+1} = sum_i alpha_i (Z_i + beta G_i). Here beta is not a number but an
operator, H_i = beta_k(G_i), trained so that Z_i + H_i comes as close to Z* as it can. Newton's step
would be the exact error (I - J)^-1 G, with J E = m * sum_c A_c E W_c and m the active entries; the
estimator looks for it among features that cost little (``reduced.py``):

    Y_0 = G U,   Y_{h+1} = Y_0 + sum_c A_c Y_h (U' W_c U)
    H = G + m * (Y_0 N_0 + sum_h sum_c (A_c Y_h) N_hc)

With a coarse level (two-level multigrid) the compressed equation E = Y_0 + sum_c A_c E (U' W_c U)
is also solved on the cluster graph, alike on every rank; its solution, prolonged, joins Y_0 as a
second start of the hops: there information jumps where a hop goes one edge.

N_0 and N_hc are combinations of the basis matrices with coefficients t; these few numbers per step
are all that is learned. Untrained they are 0: H = G, Anderson's step. Everything is the same
however the graph is cut. A hop exchanges p columns where an evaluation exchanges D.

Letters: O owned rows, D columns, p compressed width, C channels, L resolvents, J coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from distributed_ignn.errors import UserError
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import Evaluation
from distributed_ignn.solvers.blocks import Rows, assemble, project
from distributed_ignn.solvers.dense import matmul
from distributed_ignn.solvers.reduced import (
    RESOLVENTS,
    BasisCache,
    ReducedBasis,
    hop,
    one_channel,
)
from distributed_ignn.solvers.solve import solve

_COARSE_MEMORY, _COARSE_TOLERANCE, _COARSE_STEPS = 10, 1e-2, 100


@runtime_checkable
class StructuredMap(Protocol):
    """A map whose derivative is E -> m * sum_c A_c E W_c, as far as an estimate needs it."""

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """W_c [D, D]."""
        ...

    def gate(self, values: Tensor, image: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
        """m * values for some rows; ``values`` and the image f(z) are given for those alone."""
        ...

    def propagate(self, columns: Tensor, sparsified: bool) -> list[Tensor]:
        """A_c columns [O, p] per channel, or A_s columns alone; one exchange."""
        ...


def structured(fixed_point_map: object) -> StructuredMap:
    """The map, if it has what an estimate needs.

    Raises:
        UserError: it has no weights or no graph, as the map of a layer of the user's own.
    """
    if not isinstance(fixed_point_map, StructuredMap):
        raise UserError(
            "this learned solver estimates errors from the weights and the graph of a run's model, "
            "and this map shows neither; give a NeuralSolver that was trained with "
            "solver.estimator none, or anderson"
        )
    return fixed_point_map


class CoarseGraph(Protocol):
    """A small graph of clusters that every rank holds."""

    @property
    def operators(self) -> Sequence[Any]:
        """P' B_c P [N, N] per channel, to be multiplied with ``@``."""
        ...

    def restrict(self, y: Tensor) -> Tensor:
        """P' y [N, p] of y [O, p], float64, the same on every rank; one reduction."""
        ...

    def prolong(self, coarse: Tensor) -> Tensor:
        """P coarse [O, p]."""
        ...


def coarse_solution(coarse: CoarseGraph, columns: Tensor, inner: Tensor) -> Tensor:
    """E [N, p] with E = P' columns + sum_c (P' B_c P) E inner_c; one reduction.

    Every rank solves the same small equation by itself, so nothing is exchanged.

    Args:
        coarse: the cluster graph.
        columns: Y_0 [O, p].
        inner: [C, p, p].
    """
    right = coarse.restrict(columns)
    steps = inner.to(right)

    def evaluate(z: Tensor, rider: Tensor | None) -> Evaluation:
        return Evaluation(z, hop(right, [operator @ z for operator in coarse.operators], steps))

    return solve(
        evaluate,
        right,
        Anderson(_COARSE_MEMORY),
        lambda sums: sums,
        tolerance=_COARSE_TOLERANCE,
        max_steps=_COARSE_STEPS,
    ).image


@dataclass(frozen=True, slots=True, eq=False)
class _Folded:
    """The coefficients of a step times the basis matrices that they belong to.

    Args:
        key: basis, step, and the coefficients' count of changes.
        matrix: [(1 + hops C) p, D].
    """

    key: tuple[ReducedBasis, int, int]
    matrix: Tensor


class ErrorEstimator(nn.Module):
    """beta: coefficients per step, and how they are applied.

    Args:
        cache: gives the basis of the map's weights, and p.
        hops: products with the graph in each estimate; 0 reads no neighbours.
        channels: C.
        steps: steps with coefficients of their own; later ones use the last.
        sparsified: whether the hops use A_s instead of the channels.
        coarse: the cluster graph, or None.

    Attributes:
        coefficients: t [steps, J].
        plain_rate: what one application of the map leaves of the distance to Z*, as the fit has
            seen it; 1 before.
    """

    def __init__(
        self,
        cache: BasisCache,
        hops: int,
        channels: int,
        steps: int,
        sparsified: bool = False,
        coarse: CoarseGraph | None = None,
    ) -> None:
        super().__init__()
        self.hops = hops
        self.steps = steps
        self.sparsified = sparsified
        self._cache = cache
        self._coarse = coarse
        levels = 1 + len(RESOLVENTS)
        starts = 1 if coarse is None else 2
        count = starts * levels * (1 + hops * (1 if sparsified else channels)) - 1
        self.coefficients = nn.Parameter(torch.zeros(steps, count), requires_grad=False)
        self.plain_rate = nn.Parameter(torch.ones(()), requires_grad=False)
        self._folded: _Folded | None = None
        self._rate = -1, 1.0

    def known_rate(self) -> float:
        """``plain_rate`` as a number, copied to the host when it has changed."""
        if self._rate[0] != self.plain_rate._version:
            self._rate = self.plain_rate._version, float(self.plain_rate)
        return self._rate[1]

    @staticmethod
    def held_bytes(rows: int, rank: int, item: int, hops: int, channels: int, coarse: bool) -> int:
        """Bytes of an estimate's compressed columns.

        Args:
            rows: O.
            rank: p.
            item: bytes of a number.
            hops, channels: as of the estimator.
            coarse: whether there is a coarse level, whose solution is a second start.
        """
        starts = 2 if coarse else 1
        return rows * rank * item * starts * (1 + hops * channels)

    def basis(self, fixed_point_map: StructuredMap) -> ReducedBasis:
        """The basis of the map's weights."""
        basis = self._cache.get(fixed_point_map.weights)
        return one_channel(basis) if self.sparsified else basis

    def estimate(
        self, fixed_point_map: StructuredMap, residual: Tensor, image: Tensor, step: int
    ) -> Tensor:
        """H [O, D] for a residual G [O, D]; ``hops`` exchanges of p columns.

        Args:
            fixed_point_map: the map.
            residual: G = f(z) - z.
            image: f(z).
            step: k, counted from 0 within the solve.
        """
        basis = self.basis(fixed_point_map)
        columns = self.columns(fixed_point_map, basis, residual.__getitem__, image)
        correction = self.correction(fixed_point_map, basis, columns, image, step)
        return assemble(lambda rows: correction(rows).add_(residual[rows]), image)

    def correction(
        self,
        fixed_point_map: StructuredMap,
        basis: ReducedBasis,
        columns: list[Tensor],
        image: Tensor,
        step: int,
    ) -> Rows:
        """H - G block by block, from what ``columns`` found of the residual G; one product each.

        The image and this are the estimate of Z*.
        """
        matrix = self._matrix(basis, min(step, self.steps - 1))

        def rows(part: slice) -> Tensor:
            change = matmul(torch.cat([block[part] for block in columns], dim=1), matrix)
            return fixed_point_map.gate(change, image[part], part)

        return rows

    def columns(
        self, fixed_point_map: StructuredMap, basis: ReducedBasis, residual: Rows, like: Tensor
    ) -> list[Tensor]:
        """What an estimate reads of a residual; ``hops`` exchanges of p columns.

        The starts Y_0 (and the coarse level's), then A_c Y_h of each, [O, p] per block.
        """
        starts = [project(residual, basis.frame, like)]
        if self._coarse is not None:
            inner = self._cache.get(fixed_point_map.weights).inner  # of all channels
            solution = coarse_solution(self._coarse, starts[0], inner)
            starts.append(self._coarse.prolong(solution))
        found, current = list(starts), starts
        for number in range(self.hops):
            joined = current[0] if len(current) == 1 else torch.cat(current, dim=1)
            products = fixed_point_map.propagate(joined, self.sparsified)
            blocks = [product.split(basis.rank, dim=1) for product in products]
            found += [block for product in blocks for block in product]
            if number + 1 < self.hops:
                per_start = zip(*blocks, strict=True)
                current = [hop(starts[0], arrived, basis.inner) for arrived in per_start]
        return found

    def matrices(self, basis: ReducedBasis) -> list[Tensor]:
        """For each block of ``columns`` the basis matrices of its coefficients, [., p, D]."""
        starts = [basis.own]
        if self._coarse is not None:
            starts.append(torch.cat([basis.frame.T[None], basis.own]))
        per_hop = [lifted for lifted in basis.lifted for _ in starts]
        return [*starts, *per_hop * self.hops]

    def _matrix(self, basis: ReducedBasis, step: int) -> Tensor:
        """All N of a step below each other, [(1 + hops C) p, D]; kept until something changes."""
        key = basis, step, self.coefficients._version
        if self._folded is None or self._folded.key != key:
            blocks = self.matrices(basis)
            weights = self.coefficients[step].split([len(block) for block in blocks])
            pairs = zip(weights, blocks, strict=True)
            parts = [torch.tensordot(some, block, dims=1) for some, block in pairs]
            self._folded = _Folded(key, torch.cat(parts))
        return self._folded.matrix
