"""Least-squares training of the initialiser and of the error estimator, without labels.

IGNN-Solver's loss (section 4.2) adds up ||h(b) - Z*|| and ||Z_k - Z*|| over the steps k. With the
history of each step held constant its terms separate, and both h and beta are linear in what is
learned, so each term has a closed form: normal equations of a few dozen columns, summed over ranks
in float64. A phase costs the solve for Z* and one evaluation per step; nothing is propagated back.

    h:     pre-activation(Z*) - (b + untrained part)  ~  columns B
    beta:  m * (Z* - Z_k - G_k)                       ~  sum_j t_kj m * (block_j N_j)

The estimator's fit is regularised towards H = G, Anderson's step.

Letters: O owned rows, D columns, p compressed width, J coefficients of a step, q columns that B
reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.hashing import hash_uniform
from distributed_ignn.models.maps import AdjointCell, EquilibriumCell
from distributed_ignn.solvers.anderson import anderson_weights
from distributed_ignn.solvers.blocks import square_sum
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.history import History
from distributed_ignn.solvers.initialiser import Initialiser

_RIDGE = 1e-6  # relative to the diagonal of the normal equations
_CHUNK_ENTRIES = 500_000  # float64 entries of features at a time
_CHUNK_ROWS = 4096
_SAMPLE_SEED = 77


@dataclass(frozen=True, slots=True, eq=False)
class FitSample:
    """The owned rows that enter the normal equations, the same nodes however the graph is cut.

    Args:
        rows: indices of owned rows, or None for all.
    """

    rows: Tensor | None

    @classmethod
    def draw(cls, nodes: Tensor, num_nodes: int, limit: int) -> FitSample:
        """About ``limit`` of the ``num_nodes`` nodes of the graph, by a hash of their ids.

        Args:
            nodes: global ids of the owned nodes [O].
            num_nodes: n.
            limit: how many to take; all if there are no more.
        """
        if num_nodes <= limit:
            return cls(None)
        chosen = hash_uniform(_SAMPLE_SEED, nodes) < limit / num_nodes
        return cls(chosen.nonzero()[:, 0])

    def parts(self, owned: int) -> Iterator[slice | Tensor]:
        """The rows a few thousand at a time, of ``owned`` ones."""
        if self.rows is not None:
            yield from self.rows.split(_CHUNK_ROWS)
            return
        for begin in range(0, owned, _CHUNK_ROWS):
            yield slice(begin, begin + _CHUNK_ROWS)

    @property
    def chosen(self) -> slice | Tensor:
        """What to index rows with."""
        return slice(None) if self.rows is None else self.rows

    def take(self, tensor: Tensor) -> Tensor:
        return tensor if self.rows is None else tensor.index_select(0, self.rows)


class SolverFit:
    """Fits the parts of the learned solver to one fixed point.

    Args:
        comm: this rank's communicator.
        many, few: rows that enter the normal equations of the initialiser and of the estimator.
        memory, regularization, storage: of the solver that the estimator will serve.
    """

    def __init__(
        self,
        comm: Communicator,
        many: FitSample,
        few: FitSample,
        memory: int,
        regularization: float,
        storage: torch.dtype | None = None,
    ) -> None:
        self._comm = comm
        self._many = many
        self._few = few
        self._memory = memory
        self._regularization = regularization
        self._storage = storage

    @torch.no_grad()
    def initialiser(
        self, h: Initialiser, cell: EquilibriumCell, injection: Tensor, target: Tensor
    ) -> None:
        """Set B and its frame; one exchange of D columns and h's own.

        Args:
            h: what is fitted.
            cell: the map.
            injection: b [O, D].
            target: Z* [O, D].
        """
        basis = h.basis(cell)
        columns = h.columns(cell, basis, injection, cell.form.activate)
        products = cell.propagate(target, False)
        size = sum(block.shape[1] for block in columns)
        shape = size, size + injection.shape[1]
        normal = torch.zeros(shape, dtype=torch.float64, device=injection.device)
        for part in self._many.parts(target.shape[0]):
            own = [block[part] for block in columns]
            missing = injection[part] - h.untrained(basis, injection[part], own)
            for product, weight in zip(products, cell.weights, strict=True):
                missing.addmm_(product[part], weight)
            features = torch.cat(own, dim=1).double()
            normal.addmm_(features.T, torch.cat([features, missing.double()], dim=1))
        sums = self._comm.sum(normal.cpu())
        h.readout.copy_(_ridge(sums[:, :size], sums[:, size:]))
        h.frame.copy_(basis.frame)

    @torch.no_grad()
    def estimator(
        self,
        beta: ErrorEstimator,
        cell: EquilibriumCell | AdjointCell,
        start: Tensor,
        target: Tensor,
    ) -> Tensor:
        """Set the coefficients of every step along a solve; one evaluation and one estimate each.

        Args:
            beta: what is fitted.
            cell: the map.
            start: first point [O, D].
            target: Z* [O, D].

        Sets ``plain_rate`` as well, that of the last of these steps.

        Returns:
            The point that the last of these steps leads to, [O, D].
        """
        history, z = History(self._memory, self._storage), start
        basis = beta.basis(cell)
        for step in range(beta.steps):
            image = cell(z, None).image
            residual = partial(_difference, image, z)
            columns = beta.columns(cell, basis, residual, image)
            missing = self._few.take(target) - self._few.take(image)  # Z* - Z_k - G_k
            row = self._solve(self._equations(beta.matrices(basis), columns, missing, cell, image))
            beta.coefficients[step:].copy_(row.expand(beta.steps - step, -1))
            self._note_rate(beta, z, image, target)
            dots = history.enter(z, image, beta.correction(cell, basis, columns, image, step))
            history.set_newest_gram(self._comm.sum(dots.cpu()))
            alpha = anderson_weights(history.ordered_gram(), self._regularization)
            if alpha is None:
                history.forget_all_but_newest()
                alpha = torch.ones(1, dtype=torch.float64)
            z = history.mix(alpha, 1.0)
        return z

    def _note_rate(self, beta: ErrorEstimator, z: Tensor, image: Tensor, target: Tensor) -> None:
        """Set what the map leaves of the distance to Z*, by the sums of all ranks; 1 for none."""
        squares = [square_sum(target, partial(_difference, target, x)) for x in (image, z)]
        after, before = self._comm.sum(torch.stack(squares).cpu()).tolist()
        rate = math.sqrt(after / before) if 0.0 < before < math.inf else 1.0
        beta.plain_rate.fill_(rate if math.isfinite(rate) else 1.0)

    def _equations(
        self,
        matrices: list[Tensor],
        columns: list[Tensor],
        missing: Tensor,
        cell: EquilibriumCell | AdjointCell,
        image: Tensor,
    ) -> Tensor:
        """This rank's normal equations of a step, [J, J + 1]; the last column is the right side.

        ``missing`` is given for the chosen rows alone.
        """
        take = self._few.take
        mask = cell.gate(torch.ones_like(missing), take(image), self._few.chosen)
        missing = missing * mask
        blocks = [take(block) for block in columns]
        count = sum(map(len, matrices))
        normal = torch.zeros(count, count + 1, dtype=torch.float64, device=image.device)
        height = max(1, _CHUNK_ENTRIES // (count * image.shape[1]))
        for begin in range(0, missing.shape[0], height):
            part = slice(begin, begin + height)
            features = torch.stack(
                [
                    block[part] @ matrix
                    for block, bases in zip(blocks, matrices, strict=True)
                    for matrix in bases
                ]
            )
            flat = features.mul_(mask[part]).double().flatten(1)
            normal[:, :count].addmm_(flat, flat.T)
            normal[:, count] += flat @ missing[part].double().flatten()
        return normal

    def _solve(self, equations: Tensor) -> Tensor:
        """t [J] of a step; 0 where the residual vanishes."""
        sums = self._comm.sum(equations.cpu())
        return _ridge(sums[:, :-1], sums[:, -1:])[:, 0]


def _difference(image: Tensor, z: Tensor, rows: slice) -> Tensor:
    """G = f(z) - z for some rows."""
    return image[rows] - z[rows]


def _ridge(gram: Tensor, moment: Tensor) -> Tensor:
    """(gram + r diag(gram))^-1 moment for the sums of all ranks; 0 where nothing was seen."""
    diagonal = gram.diagonal()
    floor = diagonal.max().clamp_min(1e-300) * 1e-12
    scale = diagonal.clamp_min(float(floor)).rsqrt()
    scaled = gram * scale[:, None] * scale
    scaled.diagonal().add_(_RIDGE)
    return torch.linalg.solve(scaled, moment * scale[:, None]) * scale[:, None]
