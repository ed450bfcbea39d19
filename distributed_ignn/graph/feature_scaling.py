"""FeatureScaling: what was done to the features of a graph, so that it can be done to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FeatureNorm = Literal["none", "row", "l2", "standard"]
"""What can be done; ``data.feature_norm`` may also leave the choice to the features."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureScaling:
    """What was done to the F columns of a graph's features.

    A model is used on features that are scaled as those it was trained on, by the numbers of those.

    Args:
        norm: in a word.
        mean: what is subtracted from each column, float64 [F]; zeros where features are sparse.
            None unless columns are standardised.
        deviation: what each column is then divided by, float64 [F]; 0: the column was constant and
            becomes 0. None like ``mean``.
    """

    norm: FeatureNorm
    mean: Tensor | None = None
    deviation: Tensor | None = None

    @property
    def columns(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of every column, if they are standardised."""
        if self.mean is None or self.deviation is None:
            return None
        return self.mean, self.deviation

    def fits(self, width: int) -> bool:
        """Say whether the numbers are those of F = ``width`` columns, and sound ones."""
        given = [values for values in (self.mean, self.deviation) if values is not None]
        complete = len(given) == (2 if self.norm == "standard" else 0)
        return complete and all(
            values.dtype is torch.float64
            and values.shape == (width,)
            and bool(torch.isfinite(values).all())
            for values in given
        )
