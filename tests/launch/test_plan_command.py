"""The planning command: what it prints and writes, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed_ignn.commands import plan
from distributed_ignn.config import DataConfig, PartitionConfig, SyntheticConfig
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.storage.shard_store import write_shards
from distributed_ignn.lab.planning.hardware import write_profile
from tests.lab.planning.small import machine

_PAPERS = ["--nodes", "111059956", "--edges", "1615685872", "--classes", "172"]


def test_a_graph_of_which_only_the_size_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "new" / "papers.json", tmp_path / "papers.png"
    files = ["--json", str(out), "--plot", str(plot)]
    ranks = ["--ranks", "8", "64", "4096", "--codec", "all"]
    assert plan.main([*_PAPERS, "--halo-growth", "0.5@8", *ranks, *files]) == 0
    shown = capsys.readouterr().out
    assert "4,096" in shown
    assert "assumed as 0.5@8" in shown
    assert "not measured" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.read_text())
    assert list(found["forecasts"]) == ["fp32", "bf16", "int8", "int4", "int3", "int2"]
    first, _, last = found["forecasts"]["fp32"]
    assert (first["ranks"], last["ranks"]) == (8, 4096)
    assert first["part"]["halo"] == pytest.approx(1.05 * 0.5 * 111059956 / 8)
    assert first["seconds"] > last["seconds"]
    assert 0 < last["efficiency"] < first["efficiency"] <= 1


def test_shards_give_sizes_and_the_growth_of_the_halo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DataConfig(synthetic=SyntheticConfig(scale=0.001))
    data = load_dataset("synthetic-products", Path(), config)
    folders, largest = [], {}
    for parts in (2, 4):
        assignment = assign_parts(data.graphs, parts, PartitionConfig())
        folder = tmp_path / str(parts)
        write_shards(folder, data, assignment, PartitionConfig())
        folders.append(str(folder))
        largest[parts] = assignment.stats.halo_rows_largest
    out = tmp_path / "plan.json"
    command = ["--shards", *folders, "--ranks", "1", "2", "4", "8", "--json", str(out)]
    assert plan.main([*command, "--hardware", "a100", "--network", "ethernet25"]) == 0
    assert "fitted to shards of 2, 4 parts" in capsys.readouterr().out
    found = {one["ranks"]: one for one in json.loads(out.read_text())["forecasts"]["fp32"]}
    assert found[1]["part"]["halo"] == 0
    assert {parts: found[parts]["part"]["halo"] for parts in largest} == largest
    assert found[8]["part"]["halo"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (_PAPERS, "add --halo-growth"),
        ([*_PAPERS, "--halo-growth", "random", "--network", "ether"], "network ether is not"),
        (["--nodes", "5", "--edges", "9", "--halo-growth", "random", "--ranks", "6"], "6 parts"),
        (["--shards", "nowhere", "--nodes", "5", "--directed"], "--nodes and --directed: no eff"),
        (["--shards", "nowhere", "--classes", "47"], "--classes: no effect with --shards; drop"),
        (["--calibrate", "here.yaml", "--nodes", "5"], "--nodes: no effect with --calibrate"),
        (["--validate", "--hardware", "cpu", "--plot", "a.svg"], "--plot: no effect with --val"),
        (
            [*_PAPERS, "--halo-growth", "random", "--device", "cpu"],
            "--device: no effect without --calibrate",
        ),
        (
            [*_PAPERS, "--halo-growth", "random", "--epochs", "3"],
            "--epochs: no effect without --validate",
        ),
        (["--calibrate", "here.yaml", "--network-us", "9"], "no effect without --network-gbit"),
        ([*_PAPERS, "--halo-growth", "random", "--ranks", "0"], "at least 1"),
        ([*_PAPERS, "--halo-growth", "random", "--locality", "2"], "--locality 2"),
        (["--validate"], "measure it with --calibrate"),
        (["--calibrate", "here.txt"], "must end in .yaml"),
        ([*_PAPERS, "--halo-growht", "random"], "did you mean '--halo-growth'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_profile_of_ones_own_is_read_from_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    write_profile(path, machine(origin="measured", date="2026-01-02"))
    graph = ["--nodes", "80000", "--edges", "800000", "--halo-growth", "0.3@4", "--ranks", "4"]
    assert plan.main([*graph, "--hardware", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "round" in shown
    assert "not measured" not in shown
