"""Settings that decide how data are made and divided, and whether shards were made with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from distributed_ignn.config import DataConfig, PartitionConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.storage.manifest import COMMAND, Manifest
from distributed_ignn.reading.plain_files import in_one_line

#: Settings that are younger than the format, and what shards were made with that do not name them.
_YOUNGER: dict[str, dict[str, JsonValue]] = {
    "data": {
        "adjacency": None,
        "directions": "undirected",
        "edge_weights": "auto",
        "features": None,
        "label": None,
        "nodes": None,
        "split": "file",
        "split_seed": 0,
        "split_train": None,
        "split_val": None,
        "train_fraction": 0.06,
    },
    "partition": {"edge_weights": False},
}


def data_settings(dataset: str, data: DataConfig) -> dict[str, JsonValue]:
    """The settings that decide what a dataset is, in the form that manifests store."""
    tree = data.model_dump(mode="json")
    if data.edge_weights == "use":  # asks for what auto does, too, where it is granted
        tree["edge_weights"] = "auto"
    if dataset != "heterophilous":  # shards that are older than this section do not name it
        del tree["heterophilous"]
    return {"dataset": dataset, **_flat(_told(tree, "data"))}


def _told(tree: dict[str, JsonValue], section: str) -> dict[str, JsonValue]:
    """``tree`` without the younger settings that have the value they would be taken to have."""
    return {
        k: v for k, v in tree.items() if k not in _YOUNGER[section] or v != _YOUNGER[section][k]
    }


def _flat(tree: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Leaves of nested mappings under dotted keys, so that a difference can be named."""
    flat: dict[str, JsonValue] = {}
    for key, value in tree.items():
        below = _flat(value) if isinstance(value, Mapping) else {}
        flat |= {f"{key}.{inner}": leaf for inner, leaf in below.items()} or {key: value}
    return flat


def partition_request(config: PartitionConfig) -> dict[str, JsonValue]:
    """The settings that decide how a graph is divided, in the form that manifests store."""
    return _told(config.model_dump(mode="json", exclude={"dir"}), "partition")


def asked_for(config: PartitionConfig) -> dict[str, JsonValue]:
    """As ``partition_request``, what is not as by default alone: who names shards need not repeat
    how they were made, but must not contradict it.
    """
    plain = partition_request(PartitionConfig())
    return {k: v for k, v in partition_request(config).items() if v != plain.get(k)}


def check_same(
    folder: Path,
    found: Manifest,
    parts: int,
    settings: Mapping[str, Any],
    request: Mapping[str, Any],
) -> None:
    """Shards that are already there must be the ones that were to be written."""
    if found.parts != parts:
        raise UserError(
            f"{folder} already holds shards in {found.parts} parts, not {parts}; choose another "
            "folder"
        )
    check_settings(folder, found.settings, settings, "data")
    check_settings(folder, found.request, request, "partition")


def check_settings(
    folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], section: str
) -> None:
    """Name the first setting in which the shards differ from what is wanted."""
    named = [*wanted, *found]
    found, wanted = _YOUNGER[section] | dict(found), _YOUNGER[section] | dict(wanted)
    for key in dict.fromkeys([*named, *_YOUNGER[section]]):
        if found.get(key) != wanted.get(key):
            name = key if key == "dataset" else f"{section}.{in_one_line(key)}"
            value = in_one_line(found.get(key))
            raise UserError(
                f"the shards in {folder} were made with {name} = {value}, not "
                f"{wanted.get(key)}; write new ones with {COMMAND} to another folder"
            )
