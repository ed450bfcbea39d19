"""phi, the activation of an equilibrium: what the map, its adjoint and the certificate ask of it.

A solve keeps images and no pre-activations, so the derivative must follow from the image:
1[y > 0] for ReLU, 1 - y^2 for tanh.

Letters: r rows, D columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Activation(ABC):
    """A function of every entry.

    Attributes:
        steepest: the largest |phi'|, at most 1: what bounds the weights counts on it.
        homogeneous: phi(t x) = t phi(x) for t > 0, and phi is a projection: then smaller steps of
            the map have the same fixed points. Where it is not, the step must be 1.
        fused: the name that the fused kernels have for it (``triton_rows.FUSED``); None where they
            do not know it.
        certified: |phi(x)| <= |x|, and phi is computed within a few roundings of its result, as
            the certificate counts on.
    """

    steepest: float = 1.0
    homogeneous: bool = False
    fused: str | None = None
    certified: bool = False

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """phi(x), of the shape of ``x``."""

    @abstractmethod
    def slope(self, image: Tensor) -> Tensor | None:
        """phi' [r, D] where phi is ``image``, as a mask or numbers; None for 1 everywhere."""

    @abstractmethod
    def slope_bytes(self, item: int) -> int:
        """Bytes of an entry of ``slope`` for images whose numbers have ``item`` bytes."""

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write phi(x) into ``out``; ``x`` may be overwritten."""
        out.copy_(self(x))

    def gate(self, values: Tensor, image: Tensor) -> Tensor:
        """phi' * values [r, D] where phi is ``image``; ``values`` may be overwritten."""
        slope = self.slope(image)
        return values if slope is None else values.mul_(slope)


class Relu(Activation):
    """max(x, 0): the projection on the nonnegative numbers."""

    homogeneous = True
    fused = "relu"
    certified = True

    def __call__(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def slope(self, image: Tensor) -> Tensor:
        """Whether an entry is positive, bool."""
        return image > 0

    def slope_bytes(self, item: int) -> int:
        """A bool."""
        return 1

    def write(self, x: Tensor, out: Tensor) -> None:
        """See ``Activation``."""
        torch.clamp_min(x, 0.0, out=out)

    def gate(self, values: Tensor, image: Tensor) -> Tensor:
        """ReLU's own backward: one vectorised pass, no mask in memory."""
        return torch.ops.aten.threshold_backward(values, image, 0.0)


class Identity(Activation):
    """x: a linear equilibrium."""

    homogeneous = True
    fused = "identity"
    certified = True

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def slope(self, image: Tensor) -> None:
        """1 everywhere."""

    def slope_bytes(self, item: int) -> int:
        """Nothing is kept."""
        return 0


RELU, IDENTITY = Relu(), Identity()
