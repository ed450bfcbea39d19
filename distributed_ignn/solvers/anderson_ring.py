"""Anderson acceleration without branches: the history in a ring, its small system on the device.

The same method as ``Anderson``: the same differences (``history.py``), the same weights, restarts
and ways back. The ring has a place for each of the last M differences, and every evaluation writes
the next one, whatever becomes of it; how many of them count is a number on the device. What a
branch decides on the host is a mask here:

- weights of iterates that do not count are 0, because their rows of the system are those of I;
- a system without useful solution gives Picard's step from the newest iterate, and so does a
  residual that has grown although the best iterate has been gone back to;
- a residual that has grown otherwise gives the best iterate's image, and nothing counts any more.

The system is positive definite where it is regularised, so elimination needs no pivots, and no
library that might ask the host. Its solution differs from the host's by rounding.

Letters: M memory, n = M + 1, m <= n iterates that count, O owned rows, D columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from distributed_ignn.device.triton_seam import triton_kernels_for
from distributed_ignn.solvers.base import Evaluation
from distributed_ignn.solvers.blocks import blocks
from distributed_ignn.solvers.groups import Verdict

GROWTH_LIMIT = 2.0  # a residual this many times the best one means that the history misleads
_FORMATS = torch.float32, torch.float64, torch.bfloat16  # of points that the kernels read
LARGEST_WEIGHT = 1e4  # beyond it, cancellation eats the digits of float32


def masked_weights(
    gram: Tensor, count: Tensor, identity: Tensor, regularization: float
) -> tuple[Tensor, Tensor]:
    """As ``anderson_weights`` of the newest ``count`` iterates, without asking the host.

    Args:
        gram: float64 [n, n], newest first.
        count: m, an integer scalar from 1 to n.
        identity: I, like ``gram``.
        regularization: see ``anderson_weights``.

    Returns:
        Weights [n], 0 for iterates that do not count, and whether they are usable, a bool scalar;
        where they are not, the newest iterate alone has one.
    """
    places = torch.arange(gram.shape[0], device=gram.device)
    counts = places < count
    scale = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
    correlation = gram / torch.outer(scale, scale)
    correlation = torch.add(correlation, identity, alpha=regularization)
    system = torch.where(counts & counts[:, None], correlation, identity)
    right = torch.where(counts, 1.0 / scale, 0.0)
    alpha = _solved(system, right, identity) / scale
    alpha = alpha / alpha.sum()
    alone = count == 1
    usable = (alpha.abs().amax() <= LARGEST_WEIGHT) | alone  # NaN is not
    return torch.where(usable & ~alone, alpha, identity[0]), usable


def _solved(system: Tensor, right: Tensor, identity: Tensor) -> Tensor:
    """x [n] with system x = right, by elimination of all other rows in turn."""
    table = torch.cat([system, right[:, None]], dim=1)
    for number in range(system.shape[0]):
        pivot = table[number] / table[number, number]
        table = torch.addr(table, table[:, number] - identity[number], pivot, alpha=-1.0)
    return table[:, -1]


@dataclass(slots=True, eq=False)
class Ring:
    """What ``GroupAnderson`` remembers.

    Args:
        residuals, estimates: dg and dy between neighbouring iterates, [M, O, D].
        point, residual: z and g of the newest iterate [O, D], where the next group finds them.
        gram: float64 [n, n], newest first.
        identity: I, like that.
        count: m.
        left_best: residual of the best iterate that a restart has gone back to.
        orders: for each phase the places of the ring, newest first, int64 [M, M]; each row is its
            own inverse.
        newest: z and g of the newest iterate, within a group.
    """

    residuals: Tensor
    estimates: Tensor
    point: Tensor
    residual: Tensor
    gram: Tensor
    identity: Tensor
    count: Tensor
    left_best: Tensor
    orders: Tensor
    newest: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class GroupAnderson:
    """Anderson acceleration, see ``Anderson``.

    Args:
        memory, beta, regularization, storage: as there.
    """

    memory: int
    beta: float
    regularization: float
    storage: torch.dtype | None

    @property
    def phases(self) -> int:
        """The ring's places."""
        return self.memory

    def allocate(self, like: Tensor) -> Ring:
        """Zeros, so that places nobody has written to hold numbers."""
        places = torch.arange(self.memory)
        orders = (places[:, None] - places) % self.memory
        shape, small = (self.memory, *like.shape), like.new_zeros((), dtype=torch.float64)
        point, residual = torch.zeros_like(like), torch.zeros_like(like)
        return Ring(
            like.new_zeros(shape, dtype=self.storage),
            like.new_zeros(shape, dtype=self.storage),
            point,
            residual,
            small.new_zeros(self.memory + 1, self.memory + 1),
            torch.eye(self.memory + 1, dtype=small.dtype, device=small.device),
            small.new_zeros((), dtype=torch.int64),
            small.clone(),
            orders.to(like.device),
            (point, residual),
        )

    def begin(self, state: Ring, *, clean: bool) -> None:
        """Nothing counts."""
        if clean:
            held = state.residuals, state.estimates, state.point, state.residual, state.gram
            for array in held:
                array.zero_()
        state.count.zero_()
        state.left_best.fill_(math.inf)
        state.newest = state.point, state.residual

    def sums(self, state: Ring, phase: int, evaluation: Evaluation) -> Tensor:
        """The new row of the Gram matrix [n] and ||f(z)||^2."""
        z, image = evaluation.point, evaluation.image
        kernels = triton_kernels_for("triton_history", z, *_FORMATS)
        if kernels is not None:
            return self._sums_fused(kernels, state, phase, evaluation)
        point, residual = state.newest
        change, shift = state.residuals[phase], state.estimates[phase]
        fresh = torch.empty_like(z)
        total = torch.zeros(self.memory + 2, dtype=torch.float64, device=z.device)
        for rows in blocks(z):
            part = torch.sub(image[rows], z[rows], out=fresh[rows])
            changed = part - residual[rows]
            change[rows] = changed
            shift[rows] = changed.add_(z[rows]).sub_(point[rows])
            flat, reached = part.reshape(-1), image[rows].reshape(-1)
            along = torch.mv(_flat(state.residuals, rows, flat.dtype), flat)
            squares = torch.stack([torch.dot(flat, flat), torch.dot(reached, reached)])
            total += torch.cat([squares[:1], along, squares[1:]])
        state.newest = z, fresh
        older = total[1:-1].index_select(0, state.orders[phase])
        # g_i = g_k - sum of the changes since
        total[1:-1] = total[0] - older.cumsum(0)
        return total

    def _sums_fused(
        self, kernels: ModuleType, state: Ring, phase: int, evaluation: Evaluation
    ) -> Tensor:
        """The same in two launches."""
        z, (point, residual) = evaluation.point, state.newest
        fresh = torch.empty_like(z)
        older = self._order(phase)[1:]
        arrays = kernels.Entered(
            z,
            evaluation.image,
            before=point,
            held=residual,
            residual=state.residuals[phase],
            estimate=state.estimates[phase],
            fresh=fresh,
            older=[state.residuals[place] for place in older],
            holds_residual=True,
        )
        state.newest = z, fresh
        found: Tensor = kernels.enter(arrays, image_square=True)
        return found

    def _order(self, phase: int) -> list[int]:
        """The places of the ring, newest first."""
        return [(phase - back) % self.memory for back in range(self.memory)]

    def advance(
        self, state: Ring, phase: int, evaluation: Evaluation, sums: Tensor, verdict: Verdict
    ) -> Tensor:
        """The mixed point, or what a restart has in its place."""
        kernels = triton_kernels_for("triton_steps", sums, torch.float64)
        if kernels is None:
            alpha, beta, back = self._decide(state, sums[:-1], verdict)
        else:
            numbers = state.gram, sums, state.count, state.left_best, verdict.residual, verdict.best
            limits = self.regularization, self.beta, GROWTH_LIMIT, LARGEST_WEIGHT
            alpha, beta, back = kernels.weights(*numbers, kernels.Rules(*limits))
        return torch.where(back, verdict.best_image, self._mix(state, phase, alpha, beta))

    def _decide(self, state: Ring, dots: Tensor, verdict: Verdict) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [n], beta, and whether the step goes back to the best iterate's image."""
        self._enter(state, dots)
        grown = verdict.residual > GROWTH_LIMIT * verdict.best
        back = grown & (verdict.best < state.left_best)
        state.left_best.copy_(torch.where(back, verdict.best, state.left_best))
        system = state.gram, state.count, state.identity
        alpha, usable = masked_weights(*system, self.regularization)
        over = ~usable | grown
        state.count.copy_(torch.where(back, 0, torch.where(over, 1, state.count)))
        beta = self.beta + (1.0 - self.beta) * over.double()
        return torch.where(over, state.identity[0], alpha), beta, back

    def _enter(self, state: Ring, dots: Tensor) -> None:
        gram = torch.empty_like(state.gram)
        gram[1:, 1:] = state.gram[:-1, :-1]
        gram[0], gram[:, 0] = dots, dots
        state.gram.copy_(gram)
        state.count.add_(1).clamp_max_(self.memory + 1)

    def _mix(self, state: Ring, phase: int, alpha: Tensor, beta: Tensor) -> Tensor:
        """sum_i alpha_i (z_i + beta g_i), [O, D]."""
        point, residual = state.newest
        kernels = triton_kernels_for("triton_history", point, *_FORMATS)
        if kernels is not None:
            order = self._order(phase)
            stored = [[kept[i] for i in order] for kept in (state.estimates, state.residuals)]
            plain = 1.0 if self.beta == 1.0 else beta
            found: Tensor = kernels.mix(point, residual, *stored, alpha, plain)
            return found
        # what the iterates older than each difference weigh together, by places of the ring
        gamma = alpha[1:].flip(0).cumsum(0).flip(0)
        weights = gamma.index_select(0, state.orders[phase]).to(point.dtype)
        beta = beta.to(point.dtype)
        mixed = torch.empty_like(point)
        for rows in blocks(point):
            part = torch.addcmul(point[rows], residual[rows], beta, out=mixed[rows]).view(-1)
            part.addmv_(_flat(state.estimates, rows, part.dtype).T, weights, alpha=-1.0)
            if self.beta != 1.0:
                shares = weights * (1.0 - beta)
                part.addmv_(_flat(state.residuals, rows, part.dtype).T, shares)
        return mixed

    def keep(self, state: Ring) -> None:
        """z and g of the newest iterate."""
        state.point.copy_(state.newest[0])
        state.residual.copy_(state.newest[1])
        state.newest = state.point, state.residual


def _flat(stored: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """Some rows of every array of the ring, [M, r D]."""
    return stored[:, rows].reshape(stored.shape[0], -1).to(dtype)
