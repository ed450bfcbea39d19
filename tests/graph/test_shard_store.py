"""The store: bit-exact round trips, atomic writes, and one line for whatever can be wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn import files
from distributed_ignn.config import ChainsConfig, DataConfig, PartitionConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges
from distributed_ignn.graph.partitioning.metis import is_installed
from distributed_ignn.graph.partitioning.partition import assign_clusters, assign_parts
from distributed_ignn.graph.partitioning.sharding import build_shard
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.graph.storage import shard_store
from distributed_ignn.graph.storage.request import data_settings
from distributed_ignn.graph.storage.shard_store import (
    Manifest,
    find_shards,
    prepare_shards,
    read_manifest,
    read_shard,
    write_shards,
)

CONTIGUOUS = PartitionConfig(method="contiguous")
SETTINGS = data_settings("chains", DataConfig())
NODES = 30


def graph(*, symmetric: bool = True) -> CSRMatrix:
    ends = torch.randint(0, NODES - 5, (2, 60))
    return csr_from_edges(ends[0], ends[1], NODES, symmetric=symmetric)


def graph_data(
    features: CSRMatrix | Tensor | None = None, *, labels: Tensor | None = None, **fields: Any
) -> GraphData:
    return GraphData(
        name=fields.pop("name", "random"),
        graphs=(graph(), graph(symmetric=False)),
        features=features,
        labels=torch.arange(NODES) % 3 if labels is None else labels,
        num_classes=3,
        task="multiclass" if labels is None else "multilabel",
        train_nodes=torch.arange(0, 5),
        val_nodes=torch.arange(5, 9),
        test_nodes=torch.arange(9, 20),
        **fields,
    )


def write(
    folder: Path,
    data: GraphData,
    parts: int = 2,
    config: PartitionConfig = CONTIGUOUS,
) -> Manifest:
    assignment = assign_parts(data.graphs, parts, config)
    return write_shards(folder, data, assignment, config, settings=SETTINGS)


def assert_same(left: Any, right: Any, path: str = "shard") -> None:
    """Equal types, dtypes, shapes and bits, all the way down."""
    assert type(left) is type(right), path
    if dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            name = field.name
            assert_same(getattr(left, name), getattr(right, name), f"{path}.{name}")
    elif isinstance(left, tuple):
        assert len(left) == len(right), path
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}[{i}]")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype, path
        assert torch.equal(left, right), path
    else:
        assert left == right, path


SPARSE = CSRMatrix(torch.arange(NODES + 1), torch.arange(NODES) % 7, torch.rand(NODES), 7)
FEATURES: dict[str, CSRMatrix | Tensor | None] = {
    "sparse": SPARSE,
    "sparse of ones": CSRMatrix(SPARSE.rowptr, SPARSE.col, None, 7),
    "dense": torch.randn(NODES, 5, dtype=torch.float64),
    "half precision": torch.randn(NODES, 5).half(),
    "none": None,
}


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("verify", [True, False])
def test_round_trip_is_bit_exact(tmp_path: Path, kind: str, verify: bool) -> None:
    data = graph_data(FEATURES[kind])
    config = PartitionConfig(method="random", seed=3)
    assignment = assign_parts(data.graphs, 3, config)
    write_shards(tmp_path / "shards", data, assignment, config)
    expected = [build_shard(data, assignment.plan, part) for part in range(3)]
    assert expected[0].num_halo > 0
    for part, shard in enumerate(expected):
        assert_same(read_shard(tmp_path / "shards", part, verify=verify), shard)


def test_round_trip_of_multilabel_and_empty_parts(tmp_path: Path) -> None:
    data = graph_data(labels=torch.randint(0, 2, (NODES, 3)).float())
    assignment = assign_parts(data.graphs, NODES + 5, CONTIGUOUS)
    assert assignment.stats.empty_parts >= 5
    write_shards(tmp_path / "shards", data, assignment, CONTIGUOUS)
    for part in range(NODES + 5):
        expected = build_shard(data, assignment.plan, part)
        assert_same(read_shard(tmp_path / "shards", part), expected)


@pytest.mark.skipif(not is_installed("pymetis"), reason="pymetis is not installed")
def test_clusters_are_stored_and_do_not_depend_on_the_parts(tmp_path: Path) -> None:
    data = dataclasses.replace(graph_data(), graphs=(graph(),))
    config = PartitionConfig(method="random", clusters=6)
    expected = assign_clusters(data.graphs, config)
    assert expected.unique().numel() > 3
    for parts in (1, 3, NODES + 5):
        folder = tmp_path / str(parts)
        write(folder, data, parts, config)
        for part in range(parts):
            shard = read_shard(folder, part)
            assert shard.clusters is not None
            assert torch.equal(shard.clusters, expected[shard.owned_nodes])
    write(tmp_path / "none", data)
    assert read_shard(tmp_path / "none", 0).clusters is None


@pytest.mark.parametrize("wrong", [-1, 10**12])
def test_clusters_are_numbers_of_clusters(wrong: int) -> None:
    """A kernel takes them for places in arrays, and a file may hold anything."""
    clusters = torch.zeros(NODES, dtype=torch.int64)
    data = dataclasses.replace(graph_data(), graphs=(graph(),), clusters=clusters)
    assignment = assign_parts(data.graphs, 1, PartitionConfig(method="contiguous"))
    shard = build_shard(data, assignment.plan, 0)
    clusters = clusters.clone()
    clusters[3] = wrong
    with pytest.raises(ValueError, match="clusters cover owned nodes"):
        dataclasses.replace(shard, clusters=clusters)


def test_a_run_with_other_clusters_has_other_shards(tmp_path: Path) -> None:
    data = dataclasses.replace(graph_data(), graphs=(graph(),))
    folders = {
        prepare_shards(
            lambda: data, tmp_path, 2, PartitionConfig(method="contiguous", clusters=n), SETTINGS
        )[0]
        for n in (0, 1)
    }
    assert len(folders) == 2


def test_comparison_of_shards_notices_one_bit(tmp_path: Path) -> None:
    write(tmp_path / "shards", graph_data(torch.randn(NODES, 5)))
    changed = read_shard(tmp_path / "shards", 0)
    assert isinstance(changed.features, Tensor)
    changed.features[0, 0] = torch.nextafter(changed.features[0, 0], torch.tensor(9.0))
    with pytest.raises(AssertionError, match="features"):
        assert_same(read_shard(tmp_path / "shards", 0), changed)


def test_writing_into_a_mapped_shard_leaves_the_file_alone(tmp_path: Path) -> None:
    write(tmp_path / "shards", graph_data(torch.randn(NODES, 5)))
    shard = read_shard(tmp_path / "shards", 0)
    shard.labels.fill_(7)
    assert int(read_shard(tmp_path / "shards", 0).labels.max()) < 3


def test_manifest_says_what_was_written(tmp_path: Path) -> None:
    data = graph_data()
    written = write(tmp_path / "shards", data)
    manifest = read_manifest(tmp_path / "shards", parts=2, fingerprint=data.fingerprint())
    assert manifest == written
    assert manifest.dataset == "random"
    assert manifest.request["method"] == "contiguous"
    assert "dir" not in manifest.request
    assert (manifest.provider, manifest.objective) == ("contiguous", "none")
    assert manifest.settings["chains.length"] == 20
    assert manifest.statistics == assign_parts(data.graphs, 2, CONTIGUOUS).stats
    for part, entry in enumerate(manifest.files):
        path = tmp_path / "shards" / entry.name
        assert entry.name == f"part-0000{part}-of-00002.safetensors"
        assert path.stat().st_size == entry.size
        assert files.sha256_file(path) == entry.sha256
    assert manifest.num_bytes == sum(entry.size for entry in manifest.files)


@pytest.mark.parametrize("kind", FEATURES)
def test_manifest_says_how_large_every_part_is(tmp_path: Path, kind: str) -> None:
    features = FEATURES[kind]
    data = graph_data(features)
    config = PartitionConfig(method="random", seed=3)
    manifest = write(tmp_path / "shards", data, 3, config)
    for part, size in enumerate(manifest.part_sizes):
        shard = read_shard(tmp_path / "shards", part)
        rows = (size.owned, size.interior, size.boundary, size.halo, size.sent)
        assert rows == (
            shard.owned_nodes.numel(),
            shard.num_interior,
            shard.channels[0].boundary.num_rows,
            shard.halo_nodes.numel(),
            shard.send_index.numel(),
        )
        assert size.owned_entries == tuple(c.owned.col.numel() for c in shard.channels)
        assert size.boundary_entries == tuple(c.boundary.col.numel() for c in shard.channels)
        assert (size.sources, size.targets) == (2, 2)
    total = [sum(size.owned_entries) + sum(size.boundary_entries) for size in manifest.part_sizes]
    loops = len(data.graphs) * NODES
    assert sum(total) == sum(graph.num_entries for graph in data.graphs) + loops
    assert sum(size.sent for size in manifest.part_sizes) == manifest.statistics.halo_rows
    for name, nodes in (("train", 5), ("val", 4), ("test", 11)):
        assert sum(getattr(size, name) for size in manifest.part_sizes) == nodes
    stored = {"sparse": NODES, "sparse of ones": NODES, "none": 0}.get(kind, 5 * NODES)
    assert sum(size.feature_entries for size in manifest.part_sizes) == stored
    whole = manifest.whole
    assert (whole.num_nodes, whole.num_classes, whole.task) == (NODES, 3, "multiclass")
    assert whole.num_features == data.num_features
    assert whole.symmetric == (True, False)
    expected = {
        "sparse": ("sparse", "float32"),
        "sparse of ones": ("sparse", ""),
        "dense": ("dense", "float64"),
        "half precision": ("dense", "float16"),
        "none": ("none", ""),
    }
    assert (whole.features, whole.feature_dtype) == expected[kind]


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    data = graph_data(SPARSE)
    assert write(tmp_path / "a", data) == write(tmp_path / "b", data)


def test_shards_are_as_readable_as_other_new_files(tmp_path: Path) -> None:
    write(tmp_path / "shards", graph_data())
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "shards").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


# Refusals


def edit_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "shards", graph_data(SPARSE))
    return tmp_path / "shards"


def test_wrong_number_of_ranks_is_refused(folder: Path) -> None:
    message = refusal(lambda: read_manifest(folder, parts=4))
    assert "hold 2 parts, the run has 4 ranks" in message
    assert message.endswith("ignn partition --parts 4")


def test_other_data_are_refused(folder: Path) -> None:
    message = refusal(lambda: read_manifest(folder, fingerprint="0" * 64))
    assert "other data" in message
    assert "not 000000000000" in message


def test_absent_shards_are_refused(tmp_path: Path) -> None:
    message = refusal(lambda: read_manifest(tmp_path / "nowhere"))
    assert "holds no shards" in message
    assert "ignn partition" in message


@pytest.mark.parametrize("part", [-1, 2])
def test_absent_part_is_refused(folder: Path, part: int) -> None:
    assert f"no part {part}" in refusal(lambda: read_shard(folder, part))


def test_missing_file_is_refused(folder: Path) -> None:
    (folder / "part-00001-of-00002.safetensors").unlink()
    message = refusal(lambda: read_shard(folder, 1))
    assert "part 1 of 2 cannot be read" in message
    assert "No such file" in message
    read_shard(folder, 0)


def test_damaged_bytes_are_refused(folder: Path) -> None:
    path = folder / "part-00000-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "differs from its checksum" in refusal(lambda: read_shard(folder, 0))


@pytest.mark.parametrize("verify", [True, False])
def test_cut_off_file_is_refused(folder: Path, verify: bool) -> None:
    path = folder / "part-00000-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "is damaged" in refusal(lambda: read_shard(folder, 0, verify=verify))


def test_damaged_header_is_refused_without_verification_too(folder: Path) -> None:
    path = folder / "part-00000-of-00002.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert "is damaged" in refusal(lambda: read_shard(folder, 0, verify=False))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.update(version=1), "format version 1 and versions 2 and 3 are read"),
        (lambda m: m.pop("version"), "not a manifest"),
        (lambda m: m.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda m: m.update(parts="2"), "parts: Input should be a valid integer"),
        (lambda m: m.pop("fingerprint"), "fingerprint: Field required"),
        (lambda m: m["statistics"].update(nodes=1.5), "statistics.nodes"),
        (lambda m: m["files"].pop(), "2 parts in 1 files"),
        (lambda m: m["part_sizes"].pop(), "2 parts in 1 sizes"),
        (lambda m: m["part_sizes"][0].update(halo=-1), "part_sizes.0.halo"),
        (lambda m: m["whole"].pop("num_nodes"), "whole.num_nodes: Field required"),
        (lambda m: m["files"][0].update(name="../secret"), "files.0.name"),
    ],
)
def test_damaged_manifest_is_refused(
    folder: Path, change: Callable[[dict], None], expected: str
) -> None:
    edit_manifest(folder, change)
    message = refusal(lambda: read_shard(folder, 0))
    assert expected in message
    assert f"delete {folder}" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_manifest_of_other_content_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert "not a manifest of shards" in refusal(lambda: read_manifest(folder))


# Atomic writes


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = shard_store.build_shard

    def fail_late(data: GraphData, plan: Any, p: int) -> GraphShard:
        if p == 1:
            raise OSError(28, "No space left on device")
        return built(data, plan, p)

    monkeypatch.setattr(shard_store, "build_shard", fail_late)
    message = refusal(lambda: write(tmp_path / "shards", graph_data()))
    assert message.endswith("No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in refusal(lambda: write(tmp_path / "file" / "shards", graph_data()))
    assert "holds no shards" in refusal(lambda: write(tmp_path / "file", graph_data()))


def test_folder_with_other_content_is_kept_and_refused(tmp_path: Path) -> None:
    target = tmp_path / "results"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    assert "holds no shards" in refusal(lambda: write(target, graph_data()))
    assert [path.name for path in tmp_path.rglob("*")] == ["results", "thesis.txt"]


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    write(tmp_path / "shards", graph_data())
    assert read_shard(tmp_path / "shards", 1).part == 1


def test_existing_equal_shards_are_kept_and_others_refused(tmp_path: Path) -> None:
    target, data = tmp_path / "shards", graph_data()
    first = write(target, data)
    inode = (target / "manifest.json").stat().st_ino
    assert write(target, data) == first
    assert (target / "manifest.json").stat().st_ino == inode
    assert "already holds shards in 2 parts" in refusal(lambda: write(target, data, parts=3))
    random = PartitionConfig(method="random")
    message = refusal(lambda: write(target, data, config=random))
    assert "partition.method = contiguous, not random" in message
    assert "other data" in refusal(lambda: write(target, graph_data()))
    assert os.listdir(tmp_path) == ["shards"]


def test_concurrent_writers_agree(tmp_path: Path) -> None:
    data = graph_data(SPARSE)
    found: list[Manifest] = []
    threads = [
        threading.Thread(target=lambda: found.append(write(tmp_path / "shards", data)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 4
    assert all(manifest == found[0] for manifest in found)
    assert os.listdir(tmp_path) == ["shards"]
    assert read_shard(tmp_path / "shards", 0).parts == 2


@pytest.mark.parametrize("before", [None, b"old"])
def test_interrupted_file_is_as_before(
    tmp_path: Path, before: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.atomic_write_bytes(path, b"new")
    assert (path.read_bytes() if path.exists() else None) == before
    assert len(os.listdir(tmp_path)) == (before is not None)


def test_atomic_files_hold_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.atomic_write_text(path, "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n")
    assert path.read_bytes() == b"gr\xc3\xbcn"
    files.atomic_write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        files.atomic_write_json(path, float("nan"))
    assert json.loads(path.read_text()) == {"a": [1, None]}
    files.atomic_write_bytes(path, b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(path) == expected


@pytest.mark.parametrize("whose", ["mine", "another container's", "another name's"])
def test_what_a_killed_writer_left_is_removed_by_who_can_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    with subprocess.Popen(["true"]) as process:  # whose id nobody has once it was waited for
        pass
    path = tmp_path / "shards"
    target = path.with_name("shards.new") if whose == "another name's" else path
    with monkeypatch.context() as patch:
        if whose == "another container's":
            patch.setattr(files, "place", lambda: "elsewhere")
        names = [files.temporary_sibling(target).name for _ in range(2)]
    ended = names[0].replace(f"-{os.getpid()}-", f"-{process.pid}-")
    for name in (ended, names[1]):  # that of this process is in use
        (tmp_path / name).mkdir()
    files.temporary_sibling(path)
    assert set(os.listdir(tmp_path)) == {names[1], ended} - ({ended} if whose == "mine" else set())


# What training calls


def test_settings_name_every_leaf() -> None:
    settings = data_settings("chains", DataConfig(chains=ChainsConfig(length=7), knn=3))
    assert settings["dataset"] == "chains"
    assert (settings["chains.length"], settings["knn"]) == (7, 3)
    assert json.loads(json.dumps(settings)) == settings
    # of the youngest dataset no shards of others speak, as those do not that are older
    assert not any(name.startswith("heterophilous") for name in settings)
    assert data_settings("heterophilous", DataConfig())["heterophilous.homophily"] == 0.1


def test_training_reuses_cached_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = graph_data()
    first = prepare_shards(lambda: data, tmp_path, 2, CONTIGUOUS, SETTINGS)
    monkeypatch.setattr(shard_store, "assign_parts", pytest.fail)
    assert prepare_shards(lambda: data, tmp_path, 2, CONTIGUOUS, SETTINGS) == first
    assert read_shard(first[0], 1).num_nodes == NODES
    assert os.listdir(tmp_path) == [first[0].name]


def test_cached_shards_differ_with_data_parts_and_method(tmp_path: Path) -> None:
    data = graph_data(name="folder/my graph.npz")
    random = PartitionConfig(method="random")
    found = [
        prepare_shards(lambda: data, tmp_path, 2, CONTIGUOUS, SETTINGS),
        prepare_shards(lambda: data, tmp_path, 3, CONTIGUOUS, SETTINGS),
        prepare_shards(lambda: data, tmp_path, 2, random, SETTINGS),
        prepare_shards(graph_data, tmp_path, 2, CONTIGUOUS, SETTINGS),
    ]
    assert len({path for path, _ in found}) == 4
    assert all(path.parent == tmp_path for path, _ in found)


def test_damaged_cache_is_refused_rather_than_used(tmp_path: Path) -> None:
    data = graph_data()
    folder, _ = prepare_shards(lambda: data, tmp_path, 2, CONTIGUOUS, SETTINGS)
    (folder / "manifest.json").unlink()
    message = refusal(lambda: prepare_shards(lambda: data, tmp_path, 2, CONTIGUOUS, SETTINGS))
    assert "holds no shards" in message


def test_given_folder_is_used_without_loading_the_dataset(folder: Path, tmp_path: Path) -> None:
    # The method does not matter: whoever names a folder wants the shards in it.
    config = PartitionConfig(dir=folder, method="metis")
    load = lambda: pytest.fail("the dataset was loaded")  # noqa: E731
    found = prepare_shards(load, tmp_path / "cache", 2, config, SETTINGS)
    assert found == (folder, read_manifest(folder))
    assert not (tmp_path / "cache").exists()
    message = refusal(lambda: prepare_shards(load, tmp_path, 4, config, SETTINGS))
    assert "the run has 4 ranks" in message
    other = data_settings("chains", DataConfig(chains=ChainsConfig(length=9)))
    message = refusal(lambda: prepare_shards(load, tmp_path, 2, config, other))
    assert "data.chains.length = 20, not 9" in message
    message = refusal(
        lambda: prepare_shards(load, tmp_path, 2, config, SETTINGS | {"dataset": "x"})
    )
    assert "dataset = chains, not x" in message


def test_find_shards_accepts_only_the_same_or_nothing(folder: Path, tmp_path: Path) -> None:
    assert find_shards(tmp_path / "new", 2, CONTIGUOUS, SETTINGS) is None
    (tmp_path / "empty").mkdir()
    assert find_shards(tmp_path / "empty", 2, CONTIGUOUS, SETTINGS) is None
    assert find_shards(folder, 2, CONTIGUOUS, SETTINGS) == read_manifest(folder)
    (tmp_path / "file").touch()
    message = refusal(lambda: find_shards(tmp_path / "file", 2, CONTIGUOUS, SETTINGS))
    assert "Not a directory" in message
    assert "holds no shards" in refusal(lambda: find_shards(tmp_path, 2, CONTIGUOUS, SETTINGS))
    assert "not 3" in refusal(lambda: find_shards(folder, 3, CONTIGUOUS, SETTINGS))
    seeded = PartitionConfig(method="contiguous", seed=1)
    assert "partition.seed = 0, not 1" in refusal(lambda: find_shards(folder, 2, seeded, SETTINGS))
