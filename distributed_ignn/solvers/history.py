"""The last iterates as differences, and the global Gram matrix of the residuals.

Held are the newest point z_k and residual g_k, and for every older iterate the differences to the
next newer one, of the residuals and of the estimates y = z + g. Since the weights sum to 1,

    sum_i alpha_i (z_i + beta g_i) = z_k + beta g_k - sum_j gamma_j (dy_j + (beta - 1) dg_j),
    dy_j = y_{j+1} - y_j,  dg_j = g_{j+1} - g_j,  gamma_j = sum_{i <= j} alpha_i

(Walker & Ni 2011, the unconstrained form of Anderson's method). Differences shrink as the solve
converges, so they may be rounded: with bfloat16 storage the error of a step is 2^-9 of what the
step changes, never of the state, and the fixed point stays what it is. Points and residuals that
are themselves rounded would stop the solve at a relative residual of about 2^-9.

One globally reduced Gram matrix gives every rank the same mixing weights. Only its new row is
computed per step, so the reduction carries M + 2 numbers. Everything is done block by block, each
number read once; a slot's memory is taken when it is first written.

The newest iterate is held as z and g by ``push``, and as z and y by ``enter``, which costs less: y
of a plain iterate is the map's image, which is there already, and that of an estimate is the image
and a correction. ``begin`` enters the first iterate of a solve, from which the step is y itself;
its Gram matrix is not asked for before there is a second one, and is found with that. In floating
point z + (f(z) - z) is f(z) but for the last bit.

Letters: M memory, m <= M + 1 iterates held, O owned rows, D columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from distributed_ignn.device.triton_seam import triton_kernels_for
from distributed_ignn.solvers.base import SolveSizes
from distributed_ignn.solvers.blocks import HISTORY_FORMATS, Rows, blocks, square_sum
from distributed_ignn.solvers.history_blocks import (
    Slot,
    corrected,
    dot,
    enter_estimate,
    enter_residual,
    mix_estimates,
    mix_residuals,
)


@dataclass(slots=True, eq=False)
class History:
    """The iterates of one solve.

    Args:
        memory: M.
        storage: number format of the differences; None for that of the points.
        gram: float64 [m, m] on the CPU, <g_i, g_j> over all ranks, newest first.
    """

    memory: int
    storage: torch.dtype | None = None
    gram: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    _point: Tensor | None = None
    _residual: Tensor | None = None
    _ahead: Tensor | None = None  # y of the newest, where that is held instead
    _older: list[Slot] = field(default_factory=list)  # newest first
    _free: list[Slot] = field(default_factory=list)
    _held: int = 0

    @staticmethod
    def held_bytes(sizes: SolveSizes, memory: int, storage: torch.dtype | None) -> int:
        """Bytes of the differences after the last evaluation: two for every older iterate."""
        item = sizes.item if storage is None else storage.itemsize
        held = min(max(sizes.steps - 1, 0), memory)
        return 2 * held * sizes.state // sizes.item * item

    @staticmethod
    def moved_bytes(sizes: SolveSizes, memory: int, storage: torch.dtype | None) -> float:
        """Bytes that ``push`` and ``mix`` of an average step read and write."""
        share = 1.0 if storage is None else storage.itemsize / sizes.item
        steps = max(sizes.steps, 1)
        counts = (min(i + 1, memory + 1) for i in range(steps))
        passes = sum(step_passes(held, share, fused=sizes.fused) for held in counts)
        return passes / steps * sizes.state

    def __len__(self) -> int:
        return self._held

    def push(self, z: Tensor, image: Tensor) -> Tensor:
        """Enter (z, f(z) - z) and return the local dots [m] of the new residual, newest first.

        ``z`` is kept, not copied: nobody may write into it while the solve lasts. Float64, on the
        device of ``z``.
        """
        kernels = _kernels(z, image)
        if kernels is not None:
            return self._push_fused(kernels, z, image, image_square=False)
        slot = self._take_slot(z)
        older = self._older if slot is None else [slot, *self._older]
        newest = self._room_for_residual(z)
        total = enter_residual(z, image, self._point, newest, slot, older)
        self._hold(z, slot, newest, None)
        return total

    def push_with_image(self, z: Tensor, image: Tensor) -> Tensor:
        """As ``push``, and ||f(z)||^2 after the dots: [m + 1], local."""
        kernels = _kernels(z, image)
        if kernels is not None:
            return self._push_fused(kernels, z, image, image_square=True)
        return torch.cat([self.push(z, image), square_sum(image)[None]])

    def _push_fused(
        self, kernels: ModuleType, z: Tensor, image: Tensor, *, image_square: bool
    ) -> Tensor:
        slot, newest = self._take_slot(z), self._room_for_residual(z)
        return self._launch(kernels, z, image, slot, newest, image_square=image_square)

    def _launch(
        self,
        kernels: ModuleType,
        z: Tensor,
        ahead: Tensor,
        slot: Slot | None,
        residual: Tensor | None,
        **squares: bool,
    ) -> Tensor:
        """Enter (z, ahead - z) by kernels, which write into ``residual`` where that is held."""
        arrays = kernels.Entered(
            z,
            ahead,
            before=self._point,
            held=self._ahead if residual is None else residual,
            residual=None if slot is None else slot.residual,
            estimate=None if slot is None else slot.estimate,
            fresh=residual,
            older=[old.residual for old in self._older],
            holds_residual=residual is not None,
        )
        total: Tensor = kernels.enter(arrays, **squares)
        self._hold(z, slot, residual, ahead if residual is None else None)
        return total

    def _room_for_residual(self, z: Tensor) -> Tensor:
        """The newest residual, or where there is none room for one."""
        if self._residual is None and self._ahead is not None and self._point is not None:
            self._residual = self._ahead - self._point
        return torch.empty_like(z) if self._residual is None else self._residual

    def _hold(
        self, z: Tensor, slot: Slot | None, residual: Tensor | None, ahead: Tensor | None
    ) -> None:
        """``z`` is the newest; the one before is in ``slot``."""
        self._older = self._older if slot is None else [slot, *self._older]
        self._point, self._residual, self._ahead = z, residual, ahead
        self._held = 1 + len(self._older)

    def begin(
        self, z: Tensor, image: Tensor, correction: Rows | None = None, square: float = math.nan
    ) -> None:
        """Enter the only iterate; of a plain one nothing is read.

        Nobody may write into ``z`` or ``image`` while the solve lasts.

        Args:
            z, image: the point and f(z), [O, D].
            correction: y - f(z), made block by block; None for 0.
            square: ||g||^2 over all ranks, where that is known; else ``enter`` finds it.
        """
        self.clear()
        ahead = image if correction is None else corrected(image, correction)
        self._point, self._residual, self._ahead, self._held = z, None, ahead, 1
        self.gram = torch.tensor([[square]], dtype=torch.float64)

    def enter(self, z: Tensor, image: Tensor, correction: Rows | None = None) -> Tensor:
        """As ``push``, with y held, which is the image and the correction.

        Nobody may write into ``z`` or ``image`` while the solve lasts.

        Returns:
            The dots [m], and, where ``begin`` was not told it, the square of the iterate before.
        """
        unknown = self._held == 1 and bool(self.gram.isnan())
        slot = self._take_slot(z)
        kernels = _kernels(z, image)
        if kernels is not None:
            if slot is not None:
                self._held_estimate()
            ahead = image if correction is None else corrected(image, correction)
            return self._launch(kernels, z, ahead, slot, None, square_before=unknown)
        older = self._older if slot is None else [slot, *self._older]
        ahead = image if correction is None else torch.empty_like(z)
        held = None if slot is None else self._held_estimate()
        total = enter_estimate(z, image, correction, ahead, held, older, square_before=unknown)
        self._hold(z, slot, None, ahead)
        return total

    def _held_estimate(self) -> tuple[Tensor, Tensor]:
        """z and y of the newest iterate, where that is what is held."""
        if self._point is None or self._ahead is None:
            raise ValueError("the history was filled by push")
        return self._point, self._ahead

    def _take_slot(self, z: Tensor) -> Slot | None:
        """Where the change to the newest iterate goes; None where there is nothing older."""
        if self._held == 0:
            return None
        if len(self._older) == self.memory:
            return self._older.pop()
        if self._free:
            return self._free.pop()
        return Slot(*(torch.empty_like(z, dtype=self.storage) for _ in range(2)))

    def set_newest_gram(self, dots: Tensor) -> None:
        """Enter the globally reduced dots of ``push`` or ``enter`` (float64, CPU), newest first."""
        held = self._held
        if dots.numel() > held:
            dots, self.gram = dots[:held], dots[held:].reshape(1, 1)
        gram = torch.empty(held, held, dtype=torch.float64)
        gram[0], gram[:, 0] = dots, dots
        gram[1:, 1:] = self.gram[: held - 1, : held - 1]
        self.gram = gram

    def ordered_gram(self) -> Tensor:
        """Gram matrix [m, m], newest first."""
        return self.gram.clone()

    def newest(self) -> tuple[Tensor, Tensor]:
        """The newest point and what stands for its residual, [O, D] each; to be read only.

        Raises:
            ValueError: nothing is held.
        """
        if self._point is None or self._held == 0:
            raise ValueError("the history is empty")
        if self._residual is None and self._ahead is not None:
            return self._point, self._ahead - self._point
        if self._residual is None:
            raise ValueError("the history is empty")
        return self._point, self._residual

    def mix(self, alpha: Tensor, beta: float | Tensor) -> Tensor:
        """sum_i alpha_i (z_i + beta g_i), [O, D].

        Args:
            alpha: weights [m] newest first that sum to 1, or [O, m] with a row per node. Of [m] in
                the memory of a GPU nothing is copied to the host where kernels mix.
            beta: mixing of the residuals; a tensor is float64 without dimensions.
        """
        if self._ahead is not None and alpha.dim() == 1 and _is_one(beta):
            return self._mix_ahead(self._ahead, alpha)
        point, residual = self.newest()
        kernels = _kernels(point, residual) if alpha.dim() == 1 else None
        if kernels is not None:
            return self._mix_fused(kernels, point, residual, alpha, beta)
        return mix_residuals(point, residual, self._older, alpha, float(beta))

    def _mix_ahead(self, newest: Tensor, alpha: Tensor) -> Tensor:
        """sum_i alpha_i y_i, where y of the newest iterate is held; that itself if it is alone."""
        if not self._older:
            return newest
        kernels = _kernels(newest)
        if kernels is not None:
            return self._mix_fused(kernels, newest, None, alpha, 1.0)
        return mix_estimates(newest, self._older, alpha)

    def _mix_fused(
        self,
        kernels: ModuleType,
        newest: Tensor,
        residual: Tensor | None,
        alpha: Tensor,
        beta: float | Tensor,
    ) -> Tensor:
        estimates = [old.estimate for old in self._older]
        changes = [old.residual for old in self._older]
        mixed: Tensor = kernels.mix(newest, residual, estimates, changes, alpha.detach(), beta)
        return mixed

    def row_dots(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Row by row, inner products of every point and every residual with ``rows`` [O, D].

        Returns:
            Two tensors [O, m], newest first.
        """
        point, residual = self.newest()
        estimates = [((point + residual) * rows).sum(dim=1)]
        residuals = [(residual * rows).sum(dim=1)]
        for slot in self._older:
            estimates.append(estimates[-1] - (slot.estimate.to(rows) * rows).sum(dim=1))
            residuals.append(residuals[-1] - (slot.residual.to(rows) * rows).sum(dim=1))
        found = torch.stack(residuals, dim=1)
        return torch.stack(estimates, dim=1) - found, found

    def dots(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """Inner products of every point and every residual with ``other`` [O, D], local.

        Returns:
            Two tensors [m], newest first, float64 on the device of ``other``.
        """
        point, residual = self.newest()
        points = torch.zeros(len(self), dtype=torch.float64, device=other.device)
        residuals = points.clone()
        for rows in blocks(other):
            flat = other[rows].reshape(-1)
            along = [residual, *(slot.residual for slot in self._older)]
            ahead = [point, *(slot.estimate for slot in self._older)]
            residuals += torch.stack([dot(flat, array[rows]) for array in along])
            points += torch.stack([dot(flat, array[rows]) for array in ahead])
        residuals[1:] = residuals[0] - residuals[1:].cumsum(0)
        # z_i = y_i - g_i and y_i = y_k - sum of the changes since
        points[1:] = points[0] + residuals[0] - points[1:].cumsum(0) - residuals[1:]
        return points, residuals

    def drop_newest(self) -> None:
        """Take the newest iterate back."""
        point, residual = self.newest()
        if not self._older:
            self.clear()
            return
        slot = self._older.pop(0)
        change = slot.residual.to(residual)
        residual -= change
        self._residual, self._ahead = residual, None
        self._point = point - slot.estimate.to(point) + change
        self._free.append(slot)
        self._held -= 1
        self.gram = self.gram[1:, 1:]

    def forget_all_but_newest(self) -> None:
        """Restart: the next weights see one iterate only."""
        self._free += self._older
        self._older, self._held = [], min(self._held, 1)
        self.gram = self.gram[:1, :1]

    def clear(self) -> None:
        """Restart from nothing; the memory is kept for what comes."""
        self.forget_all_but_newest()
        self._held, self._point, self._ahead = 0, None, None
        self.gram = self.gram[:0, :0]


def step_passes(held: int, share: float = 1.0, *, fused: bool) -> float:
    """Passes over [O, D] of ``push`` and ``mix`` together.

    By kernels, entering reads two arrays and writes one, and from the second iterate on reads the
    last pair, too, writes two differences and reads those of the residuals before. Mixing reads two
    arrays and a difference for each older iterate, and writes one. On a CPU, where what a block
    makes stays in the cache, entering counts as reading a point, its image and the last pair and
    writing three arrays, and reading every difference of residuals.

    Args:
        held: m, iterates held then.
        share: bytes of a number in a difference over those of one in a point.
        fused: whether kernels do it, see ``triton_history``.
    """
    if not fused:
        return 10.0 + 2.0 * (held - 1) * share
    return 6.0 if held == 1 else 8.0 + (2 * held - 1) * share


def _kernels(*arrays: Tensor) -> ModuleType | None:
    """The GPU's kernels for arrays [O, D]; None where torch works on them block by block."""
    if not all(array.is_contiguous() for array in arrays):
        return None
    return triton_kernels_for("triton_history", arrays[0], *HISTORY_FORMATS)


def _is_one(beta: float | Tensor) -> bool:
    """Whether beta is known to be 1, without asking a GPU."""
    return not isinstance(beta, Tensor) and beta == 1.0
