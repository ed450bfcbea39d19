"""How features are scaled before training: each node by its size, or each column by its spread.

Everything is computed from the whole graph, when it is loaded, in float64 where numbers are added
up over nodes; so it does not depend on how the graph is divided.

Letters: n nodes, F features, E stored entries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix
from distributed_ignn.graph.feature_scaling import FeatureNorm, FeatureScaling

logger = logging.getLogger(__name__)

Features = CSRMatrix | Tensor
Kind = Literal["sparse", "binary", "uneven", "even"]

CHOSEN: dict[Kind, FeatureNorm] = {
    "sparse": "l2",
    "binary": "l2",
    "uneven": "standard",
    "even": "standard",
}
"""What ``data.feature_norm = auto`` takes, by the kind of the features."""

_KINDS: dict[Kind, str] = {
    "sparse": "most of them are 0",
    "binary": "they are 0 or 1",
    "uneven": "their columns are of very different size",
    "even": "their columns are of about the same size",
}
_ROWS = 1 << 16  # nodes whose features are held in float64 at a time
_SPARSE = 0.1  # share of numbers that are not 0, up to which features count as sparse
_UNEVEN = 10.0  # times the smallest deviation: a column of this size drowns others
_DENSE = 0.2  # share of numbers that are not 0 from which on a sum over columns says little


def scale_features(
    features: Features | None, asked: FeatureNorm | Literal["auto"], origin: str
) -> tuple[Features | None, FeatureScaling | None]:
    """Scale as ``data.feature_norm`` says.

    Args:
        features: [n, F], or None.
        asked: "row" divides each row by its L1 norm, "l2" by its L2 norm (rows of zeros stay);
            "standard" subtracts its mean from each column and divides by its standard deviation
            (constant columns become 0; sparse features are divided only); "none" changes nothing;
            "auto" takes what suits the features.
        origin: of the features, the first word of messages.

    Returns:
        The features, and what has to be done to those of other graphs where ``asked`` does not say
        it.
    """
    if features is None:
        return None, None
    norm = asked if asked != "auto" else _choose(features, origin)
    if norm == "row":
        _warn_of_row(features, origin)
    if norm != "standard":
        known = FeatureScaling(norm) if asked == "auto" else None
        return _by_rows(features, norm, origin), known
    scaling = FeatureScaling(norm, *column_statistics(features))
    if isinstance(features, CSRMatrix):
        logger.info(
            "%s: data.feature_norm = standard divides the columns of sparse features by their "
            "standard deviation; no mean is subtracted, zeros stay",
            origin,
        )
    return apply_scaling(features, scaling, origin), scaling


def apply_scaling(features: Features | None, scaling: FeatureScaling, origin: str) -> Features:
    """Do to features [n, F] what was done to those of another graph.

    Raises:
        UserError: there are others than those.
    """
    width = None if features is None else _width(features)
    columns = scaling.columns
    if features is None or (columns is not None and columns[0].numel() != width):
        raise UserError(
            f"{origin} has {width or 'no'} feature columns and the model was trained on "
            f"{'some' if columns is None else columns[0].numel()}; give the same features in the "
            "same order"
        )
    if columns is None:
        return _by_rows(features, scaling.norm, origin)
    if isinstance(features, CSRMatrix) and bool(columns[0].any()):
        features = features.to_dense(torch.float32)  # a mean is subtracted from zeros, too
    return _standardised(features, *columns)


def _width(features: Features) -> int:
    return features.num_cols if isinstance(features, CSRMatrix) else features.shape[1]


def _choose(features: Features, origin: str) -> FeatureNorm:
    kind = kind_of(features)
    norm = CHOSEN[kind]
    text = "%s: data.feature_norm auto takes %s for these features: %s"
    logger.info(text, origin, norm, _KINDS[kind])
    return norm


def kind_of(features: Features) -> Kind:
    """What features [n, F] are like, as far as their scaling is concerned."""
    if isinstance(features, CSRMatrix) or _filled(features) <= _SPARSE:
        return "sparse"
    if all(bool(((rows == 0) | (rows == 1)).all()) for rows in features.split(_ROWS)):
        return "binary"
    mean, deviation = column_statistics(features)
    varying = deviation > 0
    if not bool(varying.any()):
        return "even"
    size = (mean.square() + deviation.square()).sqrt()
    uneven = float(size.max()) > _UNEVEN * float(deviation[varying].min())
    return "uneven" if uneven else "even"


def _filled(features: Features) -> float:
    """Share of numbers that are not 0."""
    if isinstance(features, CSRMatrix):
        return features.num_entries / max(features.num_rows * features.num_cols, 1)
    found = sum(int(torch.count_nonzero(rows)) for rows in features.split(_ROWS))
    return found / max(features.numel(), 1)


def _warn_of_row(features: Features, origin: str) -> None:
    """Say so where dividing by the sum of a row is a poor idea."""
    values = features.value if isinstance(features, CSRMatrix) else features
    signed = values is not None and any(bool((rows < 0).any()) for rows in values.split(_ROWS))
    filled = _filled(features)
    if signed or filled > _DENSE:
        why = "some are negative" if signed else f"{filled:.0%} of them are not 0"
        logger.warning(
            "%s: data.feature_norm = row suits counts that are mostly 0, and of these features %s; "
            "standard, l2 or none may serve better",
            origin,
            why,
        )


def _by_rows(features: Features, norm: FeatureNorm, origin: str) -> Features:
    if norm == "none":
        return features
    if isinstance(features, Tensor):
        power = 1.0 if norm == "row" else 2.0
        _check_lengths(torch.linalg.vector_norm(features, power, dim=1), norm, origin)
        return torch.nn.functional.normalize(features, p=power, dim=1)
    rows = features.rows()
    value = torch.ones(features.num_entries) if features.value is None else features.value
    size = value.abs() if norm == "row" else value.square()
    length = torch.zeros(features.num_rows, dtype=value.dtype).index_add_(0, rows, size)
    _check_lengths(length, norm, origin)
    if norm == "l2":
        length = length.sqrt()
    scaled = value / length.clamp_min(torch.finfo(value.dtype).tiny)[rows]
    return CSRMatrix(features.rowptr, features.col, scaled, features.num_cols)


def _check_lengths(length: Tensor, norm: FeatureNorm, origin: str) -> None:
    """Refuse rows [n] that are finite and whose sum or length is not: they would become 0."""
    if not bool(torch.isfinite(length).all()):
        node = int((~torch.isfinite(length)).nonzero()[0])
        raise UserError(
            f"{origin}: the features of node {node} are too large for data.feature_norm = {norm}; "
            "divide them by a number, or correct them"
        )


def column_statistics(features: Features) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of n, not n - 1) of every column, float64 [F] each.

    The deviation of a column is exactly 0 where all its numbers are the same. The mean of sparse
    features is 0, since nothing is subtracted from them.
    """
    if isinstance(features, CSRMatrix):
        deviation = _sparse_deviation(features)
        return torch.zeros(features.num_cols, dtype=torch.float64), deviation
    nodes = max(features.shape[0], 1)
    # numpy adds in one order, whatever the number of threads
    mean = sum((rows.sum(axis=0) for rows in _doubles(features)), np.zeros(1)) / nodes
    squares = sum((np.square(rows - mean).sum(axis=0) for rows in _doubles(features)), np.zeros(1))
    low, high = torch.aminmax(features, dim=0)
    deviation = torch.from_numpy(np.sqrt(squares / nodes))
    return torch.from_numpy(mean), deviation.masked_fill(low == high, 0.0)


def _doubles(features: Tensor) -> Iterator[np.ndarray]:
    """The rows of dense features in float64, a block at a time."""
    for rows in features.split(_ROWS):
        yield rows.double().numpy()


def _sparse_deviation(features: CSRMatrix) -> Tensor:
    """As ``column_statistics``, from the stored entries; the others are zeros."""
    columns, nodes = features.num_cols, max(features.num_rows, 1)
    col = features.col.long().numpy()
    value = np.ones(col.size) if features.value is None else features.value.double().numpy()
    stored = np.bincount(col, minlength=columns)
    mean = np.bincount(col, value, columns) / nodes
    squares = np.bincount(col, np.square(value - mean[col]), columns)
    variance = (squares + (nodes - stored) * np.square(mean)) / nodes
    low, high = np.zeros(columns), np.zeros(columns)
    full = stored == nodes  # no zeros beside the stored entries
    low[full], high[full] = np.inf, -np.inf
    np.minimum.at(low, col, value)
    np.maximum.at(high, col, value)
    return torch.from_numpy(np.where(low == high, 0.0, np.sqrt(variance)))


def _standardised(features: Features, mean: Tensor, deviation: Tensor) -> Features:
    divisor = deviation.masked_fill(deviation == 0, torch.inf)  # a constant column becomes 0
    if isinstance(features, CSRMatrix):
        stored = features.value
        value = torch.ones(features.num_entries) if stored is None else stored
        scaled = (value.double() / divisor[features.col.long()]).to(value.dtype)
        return CSRMatrix(features.rowptr, features.col, scaled, features.num_cols)
    scaled = torch.empty_like(features)
    for rows, given in zip(scaled.split(_ROWS), features.split(_ROWS), strict=True):
        rows.copy_((given.double() - mean) / divisor)
    return scaled
