"""Anderson's history entered and mixed by three launches; ``solvers.history`` does it by torch.

Letters: O rows, D columns, N = O * D, m iterates held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from distributed_ignn.device import triton_history as kernels

PROGRAMS = 1024  # eight on each unit of the largest GPUs, four of them at a time
FINISH_WARPS = 8  # with four ptxas spills on sm_80
_BLOCK = 512  # numbers of a tile: four for each thread of four warps, 16 bytes of float32
_FEW = 8  # sums in float64 registers beyond which a tile has half as many numbers


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """The arrays of an entry into the history, each [O, D] and contiguous.

    Args:
        point, ahead: z, and y or f(z).
        before: the point held so far.
        held: its residual, or its y; see ``holds_residual``.
        residual, estimate: overwritten with the changes dg and dy.
        fresh: overwritten with y - z; None to leave it.
        older: dg of the iterates before.
        holds_residual: whether ``held`` is a residual.
    """

    point: Tensor
    ahead: Tensor
    before: Tensor | None = None
    held: Tensor | None = None
    residual: Tensor | None = None
    estimate: Tensor | None = None
    fresh: Tensor | None = None
    older: Sequence[Tensor] = ()
    holds_residual: bool = False


def enter(arrays: Entered, *, square_before: bool = False, image_square: bool = False) -> Tensor:
    """Enter an iterate in two launches; see ``History.push`` and ``History.enter``.

    Args:
        arrays: what is read and written.
        square_before: find the square of the residual before, too, if there is an iterate before.
        image_square: find the square of ``ahead``.

    Returns:
        <g, g_i> newest first and then the squares asked for, local, float64 on the device.
    """
    point = arrays.point
    slot = arrays.residual is not None
    extra = 1 if square_before else 2 if image_square else 0
    gram = 1 + int(slot) + len(arrays.older)
    sums = gram + int(extra > 0)
    block = _BLOCK if sums <= _FEW else _BLOCK // 2
    programs, steps = _division(point.numel(), block)
    partial = point.new_empty(programs, sums, dtype=torch.float64)

    def given(array: Tensor | None) -> Tensor:
        return point if array is None else array

    with torch.cuda.device_of(point):
        kernels.enter_kernel[(programs,)](
            point,
            arrays.ahead,
            given(arrays.before),
            given(arrays.held),
            given(arrays.residual),
            given(arrays.estimate),
            given(arrays.fresh),
            tuple(arrays.older),
            partial,
            point.numel(),
            steps,
            HAS_SLOT=slot,
            HOLDS_RESIDUAL=arrays.holds_residual,
            KEEP=arrays.fresh is not None,
            EXTRA=extra,
            COMPUTE=_compute(point),
            BLOCK=block,
        )
    return _finish(partial, gram, square=square_before)


def residual_squares(point: Tensor, image: Tensor) -> Tensor:
    """||image - point||^2 and ||image||^2 of contiguous [O, D], float64 [2], in two launches."""
    programs, steps = _division(point.numel(), _BLOCK)
    partial = point.new_empty(programs, 2, dtype=torch.float64)
    with torch.cuda.device_of(point):
        kernels.squares_kernel[(programs,)](
            point, image, partial, point.numel(), steps, COMPUTE=_compute(point), BLOCK=_BLOCK
        )
    return _finish(partial, 0, square=False)


def _finish(partial: Tensor, gram: int, *, square: bool) -> Tensor:
    programs, sums = partial.shape
    total = partial.new_empty(sums)
    with torch.cuda.device_of(partial):
        kernels.finish_kernel[(1,)](
            partial,
            total,
            programs,
            SUMS=sums,
            GRAM=gram,
            SQUARE=square,
            BLOCK=PROGRAMS,
            num_warps=FINISH_WARPS,
        )
    return total


def mix(
    newest: Tensor,
    residual: Tensor | None,
    estimates: Sequence[Tensor],
    changes: Sequence[Tensor],
    alpha: Tensor,
    beta: float | Tensor,
) -> Tensor:
    """The mixed point [O, D] in one launch; see ``History.mix``.

    Args:
        newest: z_k where ``residual`` is given, else y_k.
        residual: g_k.
        estimates, changes: dy_j and dg_j, newest first, [O, D] each.
        alpha: [m] on any device.
        beta: 1.0 unless a residual is given; a tensor is float64 without dimensions.
    """
    mixed = torch.empty_like(newest)
    weights = alpha.to(newest.device, torch.float64, non_blocking=True).contiguous()
    mixes = isinstance(beta, Tensor) or beta != 1.0
    if not mixes:
        factor = weights
    elif isinstance(beta, Tensor):
        factor = beta.to(newest.device, torch.float64, non_blocking=True)
    else:
        factor = torch.full((), beta, dtype=torch.float64, device=newest.device)
    programs, steps = _division(newest.numel(), _BLOCK)
    with torch.cuda.device_of(newest):
        kernels.mix_kernel[(programs,)](
            newest,
            newest if residual is None else residual,
            tuple(estimates),
            tuple(changes) if mixes else (),
            weights,
            factor,
            mixed,
            newest.numel(),
            steps,
            HOLDS_RESIDUAL=residual is not None,
            HAS_BETA=mixes,
            COMPUTE=_compute(newest),
            BLOCK=_BLOCK,
        )
    return mixed


def _division(count: int, block: int) -> tuple[int, int]:
    """Programs, and tiles for each of them."""
    tiles = -(-count // block)
    programs = min(max(tiles, 1), PROGRAMS)
    return programs, -(-tiles // programs)


def _compute(array: Tensor) -> Any:
    """The format that numbers are computed in; sums are float64 whatever it is."""
    return tl.float64 if array.dtype is torch.float64 else tl.float32
