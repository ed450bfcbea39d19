"""The partition command, from its arguments to the folder that training reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distributed_ignn.commands.partition import main
from distributed_ignn.config import DataConfig
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.storage.shard_store import read_manifest, read_shard

SMALL = ["--dataset", "chains", "--data.chains.chains-per-class", "10"]
TWO = ("--parts", "2", "--out", "x")


def run(*arguments: object) -> int:
    return main([*SMALL, *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command refuses its arguments with."""
    assert run(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize("method", ["metis", "fennel", "random", "contiguous"])
def test_shards_of_the_dataset_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    if method == "metis":
        pytest.importorskip("pymetis")
    assert run("--parts", 3, "--out", tmp_path / "shards", "--method", method) == 0
    manifest = read_manifest(tmp_path / "shards", parts=3)
    assert manifest.request["method"] == method
    owned = torch.cat([read_shard(tmp_path / "shards", part).owned_nodes for part in range(3)])
    assert torch.equal(owned.sort().values, torch.arange(manifest.statistics.nodes))
    printed = capsys.readouterr().out
    assert f"chains: 3 shards written to {tmp_path}" in printed
    for quantity in (
        "provider",
        "cut entries",
        "halo rows, total",
        "halo rows, largest part",
        "balance of nodes",
        "balance of entries",
        "interior nodes",
        "size on disk",
        "seconds, load",
        "seconds, partition",
        "seconds, write",
        "peak memory, load",
        "peak memory, partition",
        "peak memory, write",
    ):
        assert quantity in printed
    assert f"{manifest.statistics.halo_rows:,}" in printed


def test_shards_are_those_of_the_loaded_dataset(tmp_path: Path) -> None:
    assert main(["--dataset", "chains", "--parts", "2", "--out", str(tmp_path / "s")]) == 0
    data = load_dataset("chains", tmp_path, DataConfig())
    manifest = read_manifest(tmp_path / "s", fingerprint=data.fingerprint())
    assert manifest.settings["chains.chains_per_class"] == 100


def test_second_run_recognises_its_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--parts", 2, "--out", tmp_path / "shards", "--method", "contiguous")
    assert run(*arguments) == 0
    inode = (tmp_path / "shards" / "manifest.json").stat().st_ino
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "2 shards already in" in capsys.readouterr().out
    assert (tmp_path / "shards" / "manifest.json").stat().st_ino == inode


def test_short_method_flag_wins_over_the_setting(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    arguments = ("--partition.method", "random", "--method", "contiguous")
    assert run("--parts", 2, "--out", out, *arguments) == 0
    assert read_manifest(out).provider == "contiguous"


def test_settings_come_from_the_file_too(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("dataset: chains\npartition: {method: random, seed: 5}\n")
    arguments = ["--config", str(tmp_path / "my.yaml"), "--parts", "2", "--out"]
    assert main([*arguments, str(tmp_path / "shards")]) == 0
    assert read_manifest(tmp_path / "shards").request["seed"] == 5


def test_occupied_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert "holds no shards" in refused(capsys, "--parts", 2, "--out", tmp_path)
    out = tmp_path / "shards"
    assert run("--parts", 2, "--out", out, "--method", "contiguous") == 0
    capsys.readouterr()
    for arguments, expected in [
        (("--parts", 3, "--method", "contiguous"), "already holds shards in 2 parts, not 3"),
        (("--parts", 2, "--method", "random"), "partition.method = contiguous, not random"),
        (
            ("--parts", 2, "--method", "contiguous", "--data.chains.length", 5),
            "data.chains.length = 20, not 5",
        ),
    ]:
        assert expected in refused(capsys, "--out", out, *arguments)
    assert read_shard(out, 1).parts == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--out", "x"), "--parts"),
        (("--parts", "2"), "--out"),
        (("--parts", "2", "--out", "x", "--metod", "metis"), "did you mean"),
        ((*TWO, "--model.hidden", "7"), "model.hidden = 7 has no effect on how a graph is divided"),
        ((*TWO, "--device", "cuda"), "device = cuda has no effect on how a graph is divided; drop"),
        ((*TWO, "--seed", "5"), "seed = 5 has no effect on how a graph is divided; drop it"),
        ((*TWO, "--output-dir", "o"), "output = o has no effect on how a graph is divided; drop"),
        ((*TWO, "--partition.dir", "o"), "partition.dir = o has no effect on how"),
        ((*TWO, "--forward.method", "picard"), "forward.method = picard has no effect on how"),
        (
            (*TWO, "--data.synthetic.scale", "2"),
            "data.synthetic.scale = 2.0 has no effect with dataset = chains; drop it",
        ),
        (
            (*TWO, "--method", "fennel", "--partition.objective", "volume"),
            "partition.objective = volume has no effect with partition.method = fennel; drop it",
        ),
        (
            (*TWO, "--method", "random", "--partition.edge-weights", "true"),
            "edge_weights = true has no effect with method = random",
        ),
    ],
)
def test_wrong_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in refused(capsys, *arguments)


def test_settings_that_training_would_not_read_may_divide(tmp_path: Path) -> None:
    """The clusters are those of a learned solver, and a file says what is to be trained, too."""
    pytest.importorskip("pymetis")
    (tmp_path / "my.yaml").write_text(
        "dataset: chains\nforward: {method: picard}\nsolver: {steps: 3}\nseed: 4\n"
        "partition: {objective: volume}\n"
    )
    out = tmp_path / "shards"
    more = ["--partition.clusters", "4", "--method", "fennel", "--device", "cpu"]
    arguments = ["--config", str(tmp_path / "my.yaml"), "--parts", "2", "--out", str(out), *more]
    assert main(arguments) == 0
    assert read_manifest(out).request["clusters"] == 4
