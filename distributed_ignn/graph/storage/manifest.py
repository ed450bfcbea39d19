"""What a folder of shards says of itself: where it came from, how good the cut is, how large it is.

The sizes of every part are here so that memory and time of a run can be predicted, and a run be
planned, without opening a shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from distributed_ignn.config import choices
from distributed_ignn.config.choices import Choice
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, Task
from distributed_ignn.graph.partitioning.metis import PROVIDERS
from distributed_ignn.graph.partitioning.partition import Objective, PartitionStats
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.strict_json import parse_json

FORMAT_VERSION: Literal[2] = 2
WEIGHTED_VERSION: Literal[3] = 3
"""Of shards with weights of edges, which a reader of version 2 would take for ones."""
MANIFEST = "manifest.json"
NODE_IDS = "node-ids.safetensors"
COMMAND = "ignn partition"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardFile(_Strict):
    """One part's file: its name in the folder, its size in bytes and its sha256."""

    name: str = Field(pattern=r"^(part-\d+-of-\d+|node-ids)\.safetensors$")
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class PartSize(_Strict):
    """What decides a rank's memory, arithmetic and traffic.

    Args:
        owned, interior, halo, sent: rows O, I, H and S of ``GraphShard``.
        sources, targets: other parts that it reads rows from, and sends rows to.
        owned_entries: per channel, entries of the block [O, O], self-loops included.
        boundary_entries: per channel, entries of the block [B, H].
        feature_entries: numbers stored for the features of the owned rows; O F where dense.
        train, val, test: owned nodes of each split.
    """

    owned: int = Field(ge=0)
    interior: int = Field(ge=0)
    halo: int = Field(ge=0)
    sent: int = Field(ge=0)
    sources: int = Field(ge=0)
    targets: int = Field(ge=0)
    owned_entries: tuple[int, ...]
    boundary_entries: tuple[int, ...]
    feature_entries: int = Field(ge=0)
    train: int = Field(ge=0)
    val: int = Field(ge=0)
    test: int = Field(ge=0)

    @property
    def boundary(self) -> int:
        """Rows B that read the halo."""
        return self.owned - self.interior

    @classmethod
    def of(cls, shard: GraphShard) -> PartSize:
        """The sizes of ``shard``."""
        features = shard.features
        if isinstance(features, CSRMatrix):
            stored = features.num_entries
        else:
            stored = 0 if features is None else features.numel()
        return cls(
            owned=shard.num_owned,
            interior=shard.num_interior,
            halo=shard.num_halo,
            sent=shard.send_index.numel(),
            sources=int((shard.recv_counts > 0).sum()),
            targets=int((shard.send_counts > 0).sum()),
            owned_entries=tuple(channel.owned.num_entries for channel in shard.channels),
            boundary_entries=tuple(channel.boundary.num_entries for channel in shard.channels),
            feature_entries=stored,
            train=shard.train_index.numel(),
            val=shard.val_index.numel(),
            test=shard.test_index.numel(),
        )


class DatasetSize(_Strict):
    """The whole graph, as far as the size of a model and of its inputs depends on it.

    Args:
        num_nodes, num_features, num_classes, task: as in ``GraphData``; F is 0 without features.
        features: how they are stored.
        feature_dtype: of their values, as torch names it; "" for ones and without features.
        symmetric: per channel, whether the adjacency is; a directed one needs its transpose too.
        weighted: per channel, whether its edges have weights; empty where none has.
        graph_channels: channels that are the dataset's own graph, as in ``GraphData``.
        class_names: as in ``GraphData``.
    """

    num_nodes: int = Field(ge=1)
    num_features: int = Field(ge=0)
    num_classes: int = Field(ge=1)
    task: Task
    features: Literal["none", "dense", "sparse"]
    feature_dtype: str
    symmetric: tuple[bool, ...]
    weighted: tuple[bool, ...] = ()
    graph_channels: int = Field(1, ge=1, le=2)
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, shard: GraphShard) -> DatasetSize:
        """What any one shard says of the whole."""
        weighted = tuple(channel.weighted for channel in shard.channels)
        features = shard.features
        sparse = isinstance(features, CSRMatrix)
        value = features.value if isinstance(features, CSRMatrix) else features
        return cls(
            num_nodes=shard.num_nodes,
            num_features=shard.num_features,
            num_classes=shard.num_classes,
            task=shard.task,
            features="none" if features is None else "sparse" if sparse else "dense",
            feature_dtype="" if value is None else str(value.dtype).removeprefix("torch."),
            symmetric=tuple(channel.symmetric for channel in shard.channels),
            weighted=weighted if any(weighted) else (),
            graph_channels=shard.graph_channels,
            class_names=shard.class_names,
        )


class Manifest(_Strict):
    """What a folder of shards holds and where it came from.

    Args:
        version: of the format: ``FORMAT_VERSION``, or ``WEIGHTED_VERSION`` with weights of edges.
        dataset, fingerprint: ``GraphData.name`` and ``GraphData.fingerprint()``.
        settings: what the dataset was loaded with, see ``data_settings``.
        parts: number of shards.
        request: the partitioning that was asked for, see ``partition_request``.
        provider, objective: what carried it out, and what that minimised.
        statistics: its quality.
        whole: sizes of the whole graph.
        part_sizes: sizes of every part, in order.
        files: one per part, in order.
        node_ids: the file of ``GraphData.node_ids``, if nodes have any.
    """

    version: Literal[2, 3]
    dataset: str
    fingerprint: str
    settings: dict[str, JsonValue]
    parts: int = Field(ge=1)
    request: dict[str, JsonValue]
    provider: Annotated[str, Choice(choices.PARTITIONERS, tuple(PROVIDERS))]
    objective: Objective
    statistics: PartitionStats
    whole: DatasetSize
    part_sizes: tuple[PartSize, ...]
    files: tuple[ShardFile, ...]
    node_ids: ShardFile | None = None

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        if self.version != version_of(self.whole):
            raise ValueError(
                f"version {self.version} is not that of a graph with or without weights"
            )
        return self

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(
            file.size for file in (*self.files, *((self.node_ids,) if self.node_ids else ()))
        )

    def content(self) -> dict[str, JsonValue]:
        """What is written; what later versions have added only where it says something."""
        return self.model_dump(mode="json", exclude_defaults=True)


def version_of(whole: DatasetSize) -> Literal[2, 3]:
    """The format that a graph is written in."""
    return WEIGHTED_VERSION if any(whole.weighted) else FORMAT_VERSION


def parse_manifest(path: Path, content: bytes) -> Manifest:
    """The checked manifest ``content``, read from ``path``.

    Raises:
        UserError: it is something else, of another format or damaged.
    """
    advice = f"delete {path.parent} and write it again with {COMMAND}"
    try:
        version = parse_json(content)["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a manifest of shards; {advice}") from error
    if version not in (FORMAT_VERSION, WEIGHTED_VERSION):
        raise UserError(
            f"{path} has format version {in_one_line(repr(version))} and versions "
            f"{FORMAT_VERSION} and {WEIGHTED_VERSION} are read; {advice}"
        )
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        problem = in_one_line(f"{key}: {first['msg']}")
        raise UserError(f"{path} is damaged: {problem}; {advice}") from error
    for name, found in {"files": manifest.files, "sizes": manifest.part_sizes}.items():
        if len(found) != manifest.parts:
            raise UserError(
                f"{path} is damaged: {manifest.parts} parts in {len(found)} {name}; {advice}"
            )
    if manifest.node_ids is not None and manifest.node_ids.name != NODE_IDS:
        raise UserError(
            f"{path} is damaged: ids of nodes are called {manifest.node_ids.name}; {advice}"
        )
    for part, file in enumerate(manifest.files):
        if file.name != part_name(part, manifest.parts):
            raise UserError(f"{path} is damaged: part {part} is called {file.name}; {advice}")
    return manifest


def part_name(part: int, parts: int) -> str:
    """The name of a part's file in the folder."""
    return f"part-{part:05d}-of-{parts:05d}.safetensors"
