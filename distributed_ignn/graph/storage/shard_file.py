"""One shard as one safetensors file: arrays by name, everything else as JSON in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from distributed_ignn.files import write_tensors
from distributed_ignn.graph.data import CSRMatrix, Task
from distributed_ignn.graph.feature_scaling import FeatureNorm, FeatureScaling
from distributed_ignn.graph.shard import ChannelShard, GraphShard
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.tensors import read_tensors

_TENSORS = (
    "owned_nodes",
    "halo_nodes",
    "recv_counts",
    "send_counts",
    "send_index",
    "labels",
    "train_index",
    "val_index",
    "test_index",
)
_SCALING = ("feature_mean", "feature_deviation")
#: Of ``_Stored``, what is no field of a shard.
_OWN = {"symmetric", "weighted", "feature_norm"}


class _Scalars(BaseModel):
    """What a shard holds besides arrays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    part: int
    parts: int
    num_nodes: int
    num_interior: int
    num_features: int
    num_classes: int
    task: Task
    name: str
    split_sizes: tuple[int, int, int]


class _Stored(_Scalars):
    """Besides, per channel; ``weighted`` is left out where no channel is.

    So are ``graph_channels`` where it is 1, and ``class_names`` without any. ``feature_norm`` is
    that of ``FeatureScaling``, and left out without one.
    """

    symmetric: tuple[bool, ...]
    weighted: tuple[bool, ...] = ()
    graph_channels: int = 1
    feature_norm: FeatureNorm | None = None
    class_names: tuple[str, ...] = ()


def write_shard_file(path: Path, shard: GraphShard) -> None:
    """Write ``shard`` and bring it onto the disk; the same shard gives the same bytes.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    tensors = {name: getattr(shard, name) for name in _TENSORS}
    if shard.clusters is not None:
        tensors["clusters"] = shard.clusters
    if isinstance(shard.features, CSRMatrix):
        tensors |= _csr_tensors("features", shard.features)
    elif shard.features is not None:
        tensors["features"] = shard.features
    for i, channel in enumerate(shard.channels):
        tensors |= _csr_tensors(f"channel{i}.owned", channel.owned)
        tensors |= _csr_tensors(f"channel{i}.boundary", channel.boundary)
        tensors[f"channel{i}.degree_owned"] = channel.degree_owned
        tensors[f"channel{i}.degree_halo"] = channel.degree_halo
    tensors |= _scaling_tensors(shard.scaling)
    scalars = {name: getattr(shard, name) for name in _Scalars.model_fields}
    scalars["symmetric"] = [channel.symmetric for channel in shard.channels]
    weighted = [channel.weighted for channel in shard.channels]
    if any(weighted):
        scalars["weighted"] = weighted
    if shard.graph_channels > 1:
        scalars["graph_channels"] = shard.graph_channels
    if shard.class_names:
        scalars["class_names"] = shard.class_names
    if shard.scaling is not None:
        scalars["feature_norm"] = shard.scaling.norm
    # one key: the order of several changes from run to run
    write_tensors(path, tensors, {"shard": json.dumps(scalars)})


def read_shard_file(path: Path) -> GraphShard:
    """Inverse of ``write_shard_file``; the arrays stay memory-mapped until they are used.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    tensors, metadata = read_tensors(path, copy=False, follow_links=False)
    try:
        stored = _Stored.model_validate_json(metadata["shard"])
        return _build(tensors, stored)
    except ValidationError as error:  # a ValueError of several lines
        raise ValueError(str(error.errors()[0]["msg"])) from error
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        # a missing array, or one whose shape or type does not even allow to look at it
        raise ValueError(in_one_line(error)) from error


def _build(tensors: Mapping[str, Tensor], stored: _Stored) -> GraphShard:
    scalars: dict[str, Any] = stored.model_dump(exclude=_OWN)
    owned, halo = tensors["owned_nodes"].numel(), tensors["halo_nodes"].numel()
    channels = tuple(
        ChannelShard(
            owned=_csr_from_tensors(f"channel{i}.owned", tensors, owned),
            boundary=_csr_from_tensors(f"channel{i}.boundary", tensors, halo),
            degree_owned=tensors[f"channel{i}.degree_owned"],
            degree_halo=tensors[f"channel{i}.degree_halo"],
            symmetric=flag,
        )
        for i, flag in enumerate(stored.symmetric)
    )
    if any(stored.weighted) and stored.weighted != tuple(channel.weighted for channel in channels):
        raise ValueError("its weights are not those of the channels that should have some")
    features: CSRMatrix | Tensor | None = tensors.get("features")
    if "features.rowptr" in tensors:
        features = _csr_from_tensors("features", tensors, stored.num_features)
    arrays: dict[str, Any] = {
        name: tensors[name] for name in (*_TENSORS, "clusters") if name in tensors
    }
    scaling = _scaling(stored.feature_norm, tensors)
    return GraphShard(**scalars, **arrays, channels=channels, features=features, scaling=scaling)


def _scaling_tensors(scaling: FeatureScaling | None) -> dict[str, Tensor]:
    columns = None if scaling is None else scaling.columns
    return {} if columns is None else dict(zip(_SCALING, columns, strict=True))


def _scaling(norm: FeatureNorm | None, tensors: Mapping[str, Tensor]) -> FeatureScaling | None:
    return None if norm is None else FeatureScaling(norm, *(tensors.get(name) for name in _SCALING))


def _csr_tensors(prefix: str, matrix: CSRMatrix) -> dict[str, Tensor]:
    tensors = {f"{prefix}.rowptr": matrix.rowptr, f"{prefix}.col": matrix.col}
    if matrix.value is not None:
        tensors[f"{prefix}.value"] = matrix.value
    return tensors


def _csr_from_tensors(prefix: str, tensors: Mapping[str, Tensor], num_cols: int) -> CSRMatrix:
    return CSRMatrix(
        tensors[f"{prefix}.rowptr"],
        tensors[f"{prefix}.col"],
        tensors.get(f"{prefix}.value"),
        num_cols,
    )
