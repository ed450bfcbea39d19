"""The map of one solve and its adjoint, for every kind of cell.

All cells solve Z = phi(sum_c B_c Z W_c + b) and differ in phi, in how the W_c are made from
parameters (``models/cells``), and in the step that makes the iteration converge:

    f(Z) = phi((1 - t) Z + t (sum_c B_c Z W_c + b)),    B_c = (1 - r) A_hat_c + r I

with an activation phi (``activations.py``). ReLU is the projection on the nonnegative numbers, so
its fixed points of f are those of t = 1 for every t in (0, 1] (forward-backward splitting).

Letters: O owned nodes, H halo nodes, D hidden width, R rider columns, c channel, t step,
r residual.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from distributed_ignn.models.activations import RELU, Activation
from distributed_ignn.propagation.kernels import KERNELS
from distributed_ignn.propagation.operators import ChannelOperator
from distributed_ignn.propagation.propagate import Propagation
from distributed_ignn.propagation.row_sum import RowSum
from distributed_ignn.propagation.triton_rows import Tail, total_squares
from distributed_ignn.solvers.base import Evaluation
from distributed_ignn.solvers.blocks import residual_squares
from distributed_ignn.solvers.dense import affine, matmul, times_constant

_SAFETY = 2.0  # measured: up to 1.3 is needed with two bits, and no more with the others


@dataclass(frozen=True, slots=True)
class CellForm:
    """What distinguishes the maps of different cells besides their weights.

    Args:
        activation: phi.
        step: t in (0, 1]; 1 is the plain map.
        residual: r in [0, 1), the share of a node's own state in what is propagated. It keeps the
            spectrum of A_hat_c inside [-1, 1] and its growth at most what it was, so every bound
            proved for A_hat_c holds for B_c. (A residual around the whole map, r Z + (1 - r) f(Z),
            is not offered: it has the same fixed points, only slower; that is Picard's beta.)
    """

    activation: Activation = RELU
    step: float = 1.0
    residual: float = 0.0

    def __post_init__(self) -> None:
        if not self.activation.steepest <= 1.0:
            name = type(self.activation).__name__
            raise ValueError(
                f"{name} has a slope of up to {self.activation.steepest:g}, and the bounds on the "
                "weights count on 1 at most; scale it down"
            )
        if self.step < 1.0 and not self.activation.homogeneous:
            name = type(self.activation).__name__
            raise ValueError(
                f"a step of {self.step:g} changes the fixed points of {name}, which is no "
                "projection on a cone; take a step of 1"
            )

    def at(self, weights: Sequence[Tensor]) -> CellForm:
        """The form of the map with these W_c; here the same for all."""
        return self

    def activate(self, x: Tensor) -> Tensor:
        """phi(x); at x = b it is f(0) of the plain map."""
        return self.activation(x)

    def slope(self, image: Tensor) -> Tensor | None:
        """phi' [O, D] at an image f(Z) of the plain map; None where it is 1 everywhere."""
        return self.activation.slope(image)

    def mix(self, product: Tensor, z: Tensor) -> Tensor:
        """B z from A_hat z, in place."""
        if self.residual > 0.0:
            product.mul_(1.0 - self.residual).add_(z, alpha=self.residual)
        return product


PLAIN = CellForm()


class EquilibriumCell:
    """The map of one solve: fixed weights, fixed injection, no gradient.

    Rows are worked off in blocks: sparse product, dense product and activation of a block follow
    each other while it is in the cache. The products B_c Z of the last evaluation are kept where
    the backward pass needs them, because a solve usually returns its last point. Where the kernel
    can (``RowSum.fuses``), a block is one pass that writes the image, the kept product and the sums
    of squares that the residual is made of.

    Args:
        propagation: all channels behind one exchange.
        weights: W_c [D, D], one per channel.
        injection: b [O, D].
        sparsified: A_s, which riders are multiplied by; None if no solver needs it.
        form: activation, step and residual.
        keep_products: whether the backward pass will ask for B_c Z, [O, D] per channel.
    """

    def __init__(
        self,
        propagation: Propagation,
        weights: Sequence[Tensor],
        injection: Tensor,
        sparsified: ChannelOperator | None = None,
        form: CellForm = PLAIN,
        *,
        keep_products: bool = False,
    ) -> None:
        self._propagation = propagation
        self.weights = tuple(weights)
        self.form = form
        self._injection = injection
        self._sparsified = sparsified
        self._keep = keep_products
        self._products: list[Tensor] = []
        self._sums = False
        self.evaluations = 0
        propagation.link.begin()

    @staticmethod
    def held_bytes(state: int, channels: int) -> int:
        """Bytes of the kept products, where a state [O, D] has ``state``."""
        return state * channels

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        """The record of f(z) for z [O, D] and A_s rider for [O, R]; one exchange carries both."""
        self.evaluations += 1
        image = torch.empty_like(z)
        if self._keep and not self._products:
            self._products = [torch.empty_like(z) for _ in self.weights]

        shares: list[Tensor] = []

        def finish(rows: slice, sums: list[RowSum]) -> None:
            shares.extend(self._evaluate(rows, sums, z, image))

        rider_halo = self._propagation.iterate_sums(z, finish, rider)
        return Evaluation(
            point=z,
            image=image,
            ridden=self._carry(rider, rider_halo),
            squares=total_squares(shares) if self._sums and shares else None,
            error_square=self._error_square(),
            products=tuple(self._products) if self._keep else None,
        )

    def _evaluate(
        self, rows: slice, sums: Sequence[RowSum], z: Tensor, image: Tensor
    ) -> list[Tensor]:
        """Write some rows of the image and of the kept products; shares of ``Evaluation.squares``.

        None of them where nobody asks, unless they cost nothing.
        """
        plain = self.form.step == 1.0 and self.form.residual == 0.0
        name = self.form.activation.fused
        if plain and name is not None and sums[-1].fuses:
            return self._evaluate_fused(rows, sums, z, image, name)
        products = [self.form.mix(each.product(), z[rows]) for each in sums]
        for kept, product in zip(self._products, products, strict=False):
            kept[rows] = product
        self._write_image(image[rows], products, rows, z)
        return [residual_squares(z[rows], image[rows])[None]] if self._sums else []

    def _evaluate_fused(
        self, rows: slice, sums: Sequence[RowSum], z: Tensor, image: Tensor, activation: str
    ) -> list[Tensor]:
        """The same where nothing is mixed; the last channel's kernel does all that follows."""
        total = self._injection[rows]
        kept: list[Tensor | None] = [block[rows] for block in self._products]
        kept = kept or [None] * len(sums)
        for each, weight, block in zip(sums[:-1], self.weights[:-1], kept[:-1], strict=True):
            product = each.product()
            total = affine(product, weight, total)
            if block is not None:
                block.copy_(product)
        return sums[-1].evaluate(
            Tail(
                weight=self.weights[-1].contiguous(),
                offset=total.contiguous(),
                own=z[rows],
                image=image[rows],
                product=kept[-1],
                activation=activation,
            )
        )

    def _write_image(self, image: Tensor, products: list[Tensor], rows: slice, z: Tensor) -> None:
        """phi((1 - t) z + t (sum_c (B_c z) W_c + b)) of some rows, [r, D]."""
        step = self.form.step
        injection = self._injection[rows]
        total = affine(products[0], self.weights[0], injection, offset_scale=step, scale=step)
        for product, weight in zip(products[1:], self.weights[1:], strict=True):
            total = affine(product, weight, total, scale=step)
        if step < 1.0:
            total.add_(z[rows], alpha=1.0 - step)
        self.form.activation.write(total, image)

    def _error_square(self) -> Tensor | None:
        """Of what rounded halo rows have just done to the image, this rank's share; float64 [1].

        None on a GPU where rows are exact: joining a zero to what is reduced costs a launch.

        Twice what is expected where the errors of different rows and columns are independent: rows
        of one community err alike to a degree.
        """
        square = self._propagation.link.error_square
        if self._propagation.rounds:
            return square * self._growth**2
        return None if square.is_cuda else square

    @cached_property
    def _growth(self) -> float:
        """How much of the halo rows' rounding error the image may show."""
        pairs = zip(self._propagation.rounding_gains, self.weights, strict=True)
        shown = [gain * float(w.square().sum() / w.shape[0]) ** 0.5 for gain, w in pairs]
        return _SAFETY * sum(shown) * self.form.step

    def arrays(self) -> tuple[Tensor, ...]:
        """See ``GroupMap``: W_c and b."""
        return *self.weights, self._injection

    def reading(self, arrays: Sequence[Tensor]) -> EquilibriumCell:
        """See ``GroupMap``."""
        *weights, injection = arrays
        where = self._propagation, weights, injection, self._sparsified, self.form
        return EquilibriumCell(*where, keep_products=self._keep)

    def constants(self) -> Hashable:
        """See ``GroupMap``."""
        return self._propagation, self.form, self._keep

    @property
    def sums_on_the_way(self) -> bool:
        """Whether the kernel that writes an image finds squares anyway."""
        kernel = KERNELS[self._propagation.channels[-1].owned.kernel]
        plain = self.form.step == 1.0 and self.form.residual == 0.0
        return kernel.fuses and plain and self.form.activation.fused is not None

    def sum_squares(self) -> None:
        """From the next evaluation on, sum squares while the image is written."""
        self._sums = True

    def settle(self) -> bool:
        """From the next evaluation on, use fresh halo rows; False if that is so already."""
        return self._propagation.link.settle()

    def _carry(self, rider: Tensor | None, halo: Tensor | None) -> Tensor | None:
        if rider is None or halo is None:
            return None
        if self._sparsified is None:
            raise ValueError("a rider needs the sparsified graph")
        return self._sparsified.finish(self._sparsified.owned @ rider, halo)

    def gate(self, values: Tensor, image: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
        """phi' * values at the point with this image; ``values`` may be overwritten.

        ``values`` and ``image`` are given for the owned ``rows`` alone, all by default.
        """
        return self.form.activation.gate(values, image)

    def propagate(self, columns: Tensor, sparsified: bool) -> list[Tensor]:
        """B_c columns [O, p] per channel, or A_s columns alone; one exchange."""
        if not sparsified:
            return [self.form.mix(p, columns) for p in self._propagation.hop(columns)]
        if self._sparsified is None:
            raise ValueError("there is no sparsified graph")
        return self._propagation.hop(columns, self._sparsified)

    def pre_activation(self, z: Tensor) -> Tensor:
        """sum_c B_c z W_c + b [O, D], what phi of the plain map is applied to; one exchange."""
        total = self._injection
        products = [self.form.mix(p, z) for p in self._propagation.apply(z)]
        for product, weight in zip(products, self.weights, strict=True):
            total = affine(product, weight, total)
        return total

    def differentiable(self, z: Tensor) -> Tensor:
        """f(z) [O, D], differentiable in z alone; one exchange of rows as they are, each way."""
        total, kept = self._injection, self.form.residual
        products = self._propagation([z] * len(self.weights))
        for product, weight in zip(products, self.weights, strict=True):
            mixed = (1.0 - kept) * product + kept * z if kept > 0.0 else product
            total = total + times_constant(mixed, weight)
        step = self.form.step
        total = total if step == 1.0 else (1.0 - step) * z + step * total
        return self.form.activation(total)

    def products_of(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """B_c z [O, D] per channel: those of the record, or propagated again where it has none.

        Whether a solve's record has them is the same on every rank, since the choice of the best
        iterate follows reduced numbers.
        """
        if evaluation.products is not None:
            return evaluation.products
        self._keep = True
        return self(evaluation.point, None).products or ()


class AdjointCell:
    """The map of the backward solve: v -> m * ((1 - t) v + t (sum_c B_c' v W_c' + g)).

    It is the transpose of the forward map's derivative, so it contracts wherever that does, and
    its fixed point is the same for every t.

    Args:
        propagation: as in the forward map.
        weights: W_c [D, D].
        slope: m = phi'(.) as a mask or numbers, [O, D]; None where it is 1 everywhere.
        incoming: g = dL/dZ*, [O, D].
        form: that of the forward map.
    """

    def __init__(
        self,
        propagation: Propagation,
        weights: Sequence[Tensor],
        slope: Tensor | None,
        incoming: Tensor,
        form: CellForm = PLAIN,
    ) -> None:
        self._propagation = propagation
        self.weights = tuple(weight.T for weight in weights)
        self._slope = slope
        self._incoming = incoming
        self._form = form
        self._sums = False
        self.evaluations = 0
        propagation.link_home.begin()

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        """The record of one application to v = ``z``; nothing rides on the adjoint's exchange."""
        self.evaluations += 1
        turned = [matmul(z, weight) for weight in self.weights]
        image = torch.empty_like(z)
        shares: list[Tensor] = []

        def finish(rows: slice, totals: list[Tensor]) -> None:
            total = totals[0]
            if self._form.residual > 0.0:
                total.mul_(1.0 - self._form.residual)
                for own in turned:
                    total.add_(own[rows], alpha=self._form.residual)
            total.add_(self._incoming[rows])
            if self._form.step < 1.0:
                total.mul_(self._form.step).add_(z[rows], alpha=1.0 - self._form.step)
            if self._slope is None:
                image[rows] = total
            else:
                torch.mul(total, self._slope[rows], out=image[rows])
            if self._sums:
                shares.append(residual_squares(z[rows], image[rows])[None])

        self._propagation.iterate_home(turned, finish)
        # rows that come home are added as they are; those of different ranks err independently
        return Evaluation(
            point=z,
            image=image,
            squares=total_squares(shares) if shares else None,
            error_square=self._error_square(),
        )

    def arrays(self) -> tuple[Tensor, ...]:
        """See ``GroupMap``: W_c', g, and m where there is one."""
        slope = () if self._slope is None else (self._slope,)
        return *self.weights, self._incoming, *slope

    def reading(self, arrays: Sequence[Tensor]) -> AdjointCell:
        """See ``GroupMap``."""
        count = len(self.weights)
        weights = [weight.T for weight in arrays[:count]]
        incoming, slope = (*arrays[count:], None)[:2]
        if incoming is None:
            raise ValueError("the arrays of an adjoint map end in g")
        return AdjointCell(self._propagation, weights, slope, incoming, self._form)

    def constants(self) -> Hashable:
        """See ``GroupMap``."""
        return self._propagation, self._form

    def _error_square(self) -> Tensor | None:
        """As of ``EquilibriumCell``."""
        square = self._propagation.link_home.error_square
        return None if square.is_cuda and not self._propagation.rounds else square

    def sum_squares(self) -> None:
        """See ``EquilibriumCell``."""
        self._sums = True

    def settle(self) -> bool:
        """See ``EquilibriumCell``."""
        return self._propagation.link_home.settle()

    def gate(self, values: Tensor, image: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
        """m * values for some owned rows, whatever the point; ``values`` may be overwritten."""
        return values if self._slope is None else values.mul_(self._slope[rows])

    def propagate(self, columns: Tensor, sparsified: bool) -> list[Tensor]:
        """B_c' columns [O, p] per channel; one exchange. There is no sparsified transpose."""
        products = self._propagation.hop_home(columns)
        return [self._form.mix(product, columns) for product in products]

    def start(self) -> Tensor:
        """m * g, the plain map's first iterate from zero."""
        return self._incoming if self._slope is None else self._incoming * self._slope


def weight_gradients(products: Sequence[Tensor], v: Tensor) -> list[Tensor]:
    """dL/dW_c = (B_c Z*)' v [D, D] per channel, this rank's share; dL/db is v itself."""
    return [block.T @ v for block in products]
