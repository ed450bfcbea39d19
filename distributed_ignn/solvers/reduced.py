"""The map seen through a few columns: what a solve can know about the error for little work.

The map multiplies the state by W_c, and a trained W has few large singular values. With U [D, p],
the p leading left singular vectors of all W_c side by side, almost everything that one evaluation
passes on to the neighbours goes through the p columns Z U:

    A_c Z W_c  ~  (A_c Z U) (U' W_c).

So a product with p columns, p / D of the work and of the bytes of an evaluation, carries the error
one hop. What W does to the error at one node is described by the resolvents (I - l S)^-1 with
S = sum_c W_c: where the error is smooth on the graph, (I - S)^-1 takes a residual to the error.

Letters: D columns of the state, p compressed width, C channels, L resolvents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RESOLVENTS = (0.4, 0.8)
"""The l of the resolvents; 0 is the identity, which is always there."""


@dataclass(frozen=True, slots=True, eq=False)
class ReducedBasis:
    """U and the matrices that lift compressed columns back to D.

    Args:
        frame: U [D, p], orthonormal columns.
        own: U' (R_l - I) [L, p, D]: what a node's own residual says about its error.
        lifted: U' W_c R_l [C, 1 + L, p, D], with R = I first: what a neighbour's says.
        inner: U' W_c U [C, p, p]: one hop within the compressed columns.
    """

    frame: Tensor
    own: Tensor
    lifted: Tensor
    inner: Tensor

    @property
    def rank(self) -> int:
        """p."""
        return self.frame.shape[1]


def reduced_basis(weights: Sequence[Tensor], rank: int) -> ReducedBasis:
    """The basis of a map with these weights.

    Computed in float64 on the CPU from weights that every rank holds bit for bit alike, so that
    every rank of one kind of machine has the same basis. Where ranks run on different kinds of CPU,
    equal singular values may be resolved differently; estimates then lose their worth, which the
    solver's safeguard sees, and the fixed point stays what it is.

    Args:
        weights: W_c [D, D], one per channel.
        rank: p, at most D are used.
    """
    stacked = torch.stack([weight.detach().double().cpu() for weight in weights])
    width = stacked.shape[1]
    gram = (stacked @ stacked.mT).sum(dim=0)
    # not an error of this rank alone, which the others would wait for: the solve shows it to all
    finite = bool(torch.isfinite(gram).all())
    leading = torch.linalg.eigh(gram).eigenvectors if finite else gram
    frame = leading[:, width - min(rank, width) :].flip(1)
    identity = torch.eye(width, dtype=torch.float64)
    total = stacked.sum(dim=0)
    resolvents = [_inverse(identity - level * total) for level in RESOLVENTS]
    own = torch.stack([frame.T @ (resolvent - identity) for resolvent in resolvents])
    steps = torch.stack([identity, *resolvents])
    reached = frame.T @ stacked
    lifted = reached[:, None] @ steps
    inner = reached @ frame
    like = weights[0].detach()
    return ReducedBasis(*(part.contiguous().to(like) for part in (frame, own, lifted, inner)))


def hop(start: Tensor, products: Sequence[Tensor], inner: Tensor) -> Tensor:
    """One step of the compressed map: start + sum_c products_c inner_c, [rows, p].

    Args:
        start: Y_0 [rows, p].
        products: A_c Y per channel.
        inner: [C, p, p].
    """
    total = start.clone()
    for product, matrix in zip(products, inner, strict=True):
        total.addmm_(product, matrix)
    return total


def one_channel(basis: ReducedBasis) -> ReducedBasis:
    """The basis for a graph layer on a single graph that stands for all channels."""
    return ReducedBasis(
        basis.frame,
        basis.own,
        basis.lifted.sum(dim=0, keepdim=True),
        basis.inner.sum(dim=0, keepdim=True),
    )


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse; the identity where it does not exist, which unconstrained weights allow."""
    inverse, info = torch.linalg.inv_ex(matrix)
    usable = int(info) == 0 and bool(torch.isfinite(inverse).all())
    return inverse if usable else torch.eye(matrix.shape[0], dtype=matrix.dtype)


@dataclass(slots=True, eq=False)
class _Seen:
    """A weight as it was seen: its memory, which is nobody else's while it is held, and a copy."""

    weight: Tensor
    version: int
    copy: Tensor

    def holds(self, weight: Tensor) -> bool:
        """Whether ``weight`` is the same, which the host knows where nobody has written into it.

        Else the numbers are compared, for which a GPU is waited for.
        """
        known, place = self.weight, weight.data_ptr()
        alike = known.shape == weight.shape and known.stride() == weight.stride()
        if place and alike and place == known.data_ptr() and weight._version == self.version:
            return True
        if not torch.equal(weight, self.copy):
            return False
        self.weight, self.version = weight.detach(), weight._version
        return True


class BasisCache:
    """The basis of the last weights, kept until they change.

    Whoever writes into weights past torch says so (``torch.autograd.graph.increment_version``).
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._seen: tuple[_Seen, ...] = ()
        self._basis: ReducedBasis | None = None

    def get(self, weights: Sequence[Tensor]) -> ReducedBasis:
        """As ``reduced_basis``."""
        known = len(weights) == len(self._seen) and all(map(_Seen.holds, self._seen, weights))
        if self._basis is None or not known:
            self._basis = reduced_basis(weights, self.rank)
            self._seen = tuple(_Seen(w.detach(), w._version, w.detach().clone()) for w in weights)
        return self._basis
