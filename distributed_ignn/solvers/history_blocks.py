"""The history entered and mixed block by block, each number read once; ``triton_history`` on a GPU.

Letters: m iterates held, O owned rows, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ignn.solvers.blocks import Rows, blocks


@dataclass(slots=True, eq=False)
class Slot:
    """One older iterate: dg and dy to the next newer one, [O, D] in the storage format."""

    residual: Tensor
    estimate: Tensor


def enter_residual(
    z: Tensor,
    image: Tensor,
    point: Tensor | None,
    newest: Tensor,
    slot: Slot | None,
    older: Sequence[Slot],
) -> Tensor:
    """Enter (z, image - z) where residuals are held; see ``History.push``.

    Args:
        z, image: [O, D].
        point: the one held so far, if there is one.
        newest: its residual, overwritten with the new one.
        slot: overwritten with the change since; None for the first iterate.
        older: all that are held then, ``slot`` first.

    Returns:
        The local dots [m], newest first, float64.
    """
    total = torch.zeros(1 + len(older), dtype=torch.float64, device=z.device)
    for rows in blocks(z):
        fresh = image[rows] - z[rows]
        if slot is not None and point is not None:
            change = fresh - newest[rows]
            slot.residual[rows].copy_(change)
            slot.estimate[rows].copy_(change.add_(z[rows]).sub_(point[rows]))
        newest[rows].copy_(fresh)
        flat = newest[rows].view(-1)
        total += torch.stack([torch.dot(flat, flat), *_dots(flat, older, rows)])
    # g_i = g_k - sum of the changes since
    total[1:] = total[0] - total[1:].cumsum(0)
    return total


def enter_estimate(
    z: Tensor,
    image: Tensor,
    correction: Rows | None,
    ahead: Tensor,
    held: tuple[Tensor, Tensor] | None,
    older: Sequence[Slot],
    *,
    square_before: bool,
) -> Tensor:
    """Enter (z, ahead - z) where estimates are held; see ``History.enter``.

    Args:
        z, image: [O, D].
        correction: what ``ahead`` [O, D] is overwritten with, beside the image; None to read it.
        ahead: y.
        held: z and y of the iterate before; None for the first.
        older: all that are held then, the change since first, which is overwritten.
        square_before: whether to find the square of the residual before.

    Returns:
        The local dots [m], newest first, and that square if asked for, float64.
    """
    size = 1 + len(older) + square_before
    total = torch.zeros(size, dtype=torch.float64, device=z.device)
    for rows in blocks(z):
        if correction is not None:
            torch.add(image[rows], correction(rows), out=ahead[rows])
        fresh = ahead[rows] - z[rows]
        if held is not None:
            slot, (point, before) = older[0], held
            slot.residual[rows].copy_(torch.sub(point[rows], before[rows]).add_(fresh))
            slot.estimate[rows].copy_(ahead[rows] - before[rows])
        flat = fresh.reshape(-1)
        dots = [torch.dot(flat, flat), *_dots(flat, older, rows)]
        if square_before and held is not None:
            change = older[0].residual[rows].reshape(-1).to(flat.dtype)
            dots.append(torch.dot(change, change))
        total += torch.stack(dots)
    if square_before:
        # g_0 = g_1 - dg
        total[2] += total[0] - 2.0 * total[1]
    gram = slice(1, 1 + len(older))
    total[gram] = total[0] - total[gram].cumsum(0)
    return total


def corrected(image: Tensor, correction: Rows) -> Tensor:
    """The image and what an estimate adds to it."""
    ahead = torch.empty_like(image)
    for rows in blocks(image):
        torch.add(image[rows], correction(rows), out=ahead[rows])
    return ahead


def mix_residuals(
    point: Tensor, residual: Tensor, older: Sequence[Slot], alpha: Tensor, beta: float
) -> Tensor:
    """sum_i alpha_i (z_i + beta g_i) from z_k, g_k and the changes since; see ``History.mix``."""
    mixed = torch.empty_like(point)
    per_node = alpha.dim() == 2
    alpha = alpha.detach().to(point.device if per_node else "cpu", torch.float64)
    # what the iterates older than each difference weigh together
    gamma = alpha[..., 1:].flip(-1).cumsum(-1).flip(-1)
    for rows in blocks(point):
        part = torch.add(point[rows], residual[rows], alpha=beta, out=mixed[rows])
        weights = gamma[rows].to(point.dtype) if per_node else gamma
        for place, slot in enumerate(older):
            weight = weights[:, place, None] if per_node else float(weights[place])
            _subtract(part, slot.estimate[rows], weight)
            if beta != 1.0:
                _subtract(part, slot.residual[rows], weight * (beta - 1.0))
    return mixed


def mix_estimates(newest: Tensor, older: Sequence[Slot], alpha: Tensor) -> Tensor:
    """sum_i alpha_i y_i from y_k and the changes since; ``alpha`` is [m]."""
    mixed = torch.empty_like(newest)
    gamma = alpha.detach().to("cpu", torch.float64)[1:].flip(-1).cumsum(-1).flip(-1).tolist()
    for rows in blocks(newest):
        part = mixed[rows].copy_(newest[rows])
        for weight, slot in zip(gamma, older, strict=True):
            _subtract(part, slot.estimate[rows], weight)
    return mixed


def _dots(flat: Tensor, older: Sequence[Slot], rows: slice) -> list[Tensor]:
    return [dot(flat, old.residual[rows]) for old in older]


def dot(flat: Tensor, stored: Tensor) -> Tensor:
    """Inner product of some rows [s D] with stored ones [s, D], in the format of the former."""
    return torch.dot(flat, stored.reshape(-1).to(flat.dtype))


def _subtract(total: Tensor, stored: Tensor, weight: float | Tensor) -> None:
    """total -= weight stored, in place; the product is formed in the format of ``total``."""
    if isinstance(weight, Tensor):
        total.addcmul_(stored.to(total.dtype), weight, value=-1.0)
    else:
        total.add_(stored.to(total.dtype), alpha=-weight)
