"""Predictions and embeddings of graphs in tables: ids of their own, other graphs, any ranks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from distributed_ignn.api.finished_run import load
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.predict import main
from distributed_ignn.config import parse_args
from distributed_ignn.runs.predict import PredictOptions, load_run, predict
from distributed_ignn.runs.run import run_training
from tests.ranks import run_ranks

N = 30
IDS = [f"nöde-{(7 * i) % N}" for i in range(N)]
LABELS = ("cat", "dog", "ant")
KINDS = ("implicit", "gcn")


def _tables(folder: Path, name: str, *, train: bool) -> tuple[Path, Path]:
    """A ring in communities of three classes; only the one to train on has labels and a split."""
    edges = [(a, b) for a in range(N) for b in ((a + 3) % N, (a + 6) % N)]
    rows = [f"{IDS[a]}\t{IDS[b]}" for a, b in edges]
    (folder / f"{name}.tsv").write_text("\n".join(["source\ttarget", *rows]) + "\n", "utf-8")
    lines = ["id,label,split,x0,x1,x2" if train else "id,x0,x1,x2"]
    for i, word in enumerate(IDS):
        features = ",".join(str(float(i % 3 == c) + i / 100) for c in range(3))
        known = f"{LABELS[i % 3]},{('train', 'val', 'test')[i // 10]}," if train else ""
        lines.append(f"{word},{known}{features}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / f"{name}.tsv", folder / f"{name}.csv"


def _arguments(folder: Path, kind: str) -> list[str]:
    return [
        *("--dataset", str(folder / "own.tsv"), "--data.nodes", str(folder / "own.csv")),
        *("--output", str(folder / kind), "--model.kind", kind, "--train.epochs", "3"),
        *("--device", "cpu", "--model.hidden", "8", "--train.threads", "1"),
    ]


def _options(folder: Path, kind: str, name: str, **more: Any) -> PredictOptions:
    out = folder / f"{kind}-{name}.parquet"
    return PredictOptions(
        folder / kind, out, embeddings=folder / f"{kind}-{name}-z.parquet", **more
    )


def _other(folder: Path) -> dict[str, Path]:
    return {"data": folder / "other.tsv", "nodes": folder / "other.csv"}


def _on_two_ranks(comm: Communicator, folder: Path) -> None:
    for kind in KINDS:
        run_training(parse_args(_arguments(folder, kind)), comm)
        predict(_options(folder, kind, "two"), comm)
        predict(_options(folder, kind, "other-two", **_other(folder)), comm)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds trained on two ranks, and what two ranks and one predict of two graphs."""
    folder = tmp_path_factory.mktemp("tables")
    _tables(folder, "own", train=True)
    _tables(folder, "other", train=False)
    run_ranks(_on_two_ranks, 2, folder, timeout=110)
    for kind in KINDS:
        predict(_options(folder, kind, "one"), Communicator())
        predict(_options(folder, kind, "other-one", **_other(folder)), Communicator())
    return folder


def _columns(path: Path, name: str) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(path)
    return table["node"].to_pylist(), np.stack(table[name].to_numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_labels_are_the_tables_own(folder: Path, kind: str) -> None:
    for name in ("two", "one", "other-two", "other-one"):
        table = pq.read_table(folder / f"{kind}-{name}.parquet")
        assert table["node"].to_pylist() == IDS
        assert set(table["prediction"].to_pylist()) <= set(LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_graphs_agree_with_the_model(folder: Path, kind: str) -> None:
    expected = load(folder / kind).predict()
    assert expected.embeddings is not None
    for name in ("two", "one", "other-two", "other-one"):
        nodes, state = _columns(folder / f"{kind}-{name}-z.parquet", "embedding")
        assert nodes == IDS
        assert state.dtype == expected.embeddings.numpy().dtype
        assert state.shape == (N, 8)
        assert np.allclose(state, expected.embeddings.numpy(), rtol=0, atol=1e-5)
        assert state.std(axis=0).max() > 1e-3
        _, probability = _columns(folder / f"{kind}-{name}.parquet", "probabilities")
        assert np.allclose(probability, expected.probabilities.numpy(), rtol=0, atol=1e-5)
    found = load(folder / kind).predict(folder / "other.tsv", nodes=folder / "other.csv")
    assert torch.allclose(found.logits, expected.logits, rtol=0, atol=1e-4)


def test_every_kind_of_file_has_the_same_ids_and_numbers(folder: Path, tmp_path: Path) -> None:
    nodes, state = _columns(folder / "gcn-one-z.parquet", "embedding")
    for ending in ("csv", "npz"):
        out, kept = tmp_path / f"p.{ending}", tmp_path / f"z.{ending}"
        run = str(folder / "gcn")
        assert main([run, "--out", str(out), "--embeddings", str(kept), "--device", "cpu"]) == 0
    with (tmp_path / "z.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["node", *(f"embedding_{d}" for d in range(8))]
    assert [row[0] for row in rows] == nodes
    assert np.array_equal(
        np.array([row[1:] for row in rows], np.float64).astype(state.dtype), state
    )
    assert json.loads((tmp_path / "z.csv.json").read_text())["epoch"] >= 1
    arrays = np.load(tmp_path / "z.npz", allow_pickle=False)
    assert arrays["node"].tolist() == nodes
    assert np.array_equal(arrays["embedding"], state)
    predicted = np.load(tmp_path / "p.npz", allow_pickle=False)
    assert predicted["node"].tolist() == nodes
    table = pq.read_table(folder / "gcn-one.parquet")
    assert predicted["prediction"].tolist() == table["prediction"].to_pylist()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nodes", "n.csv"], "--nodes has no effect without --data"),
        (["--embeddings", "z.txt"], "out = z.txt says no kind of file; end it in .parquet"),
        (["--embeddings", "p.csv"], "--embeddings and --out name one file; give each its own"),
        (["--data", "own.tsv"], "--data.nodes nodes.csv (of predict: --nodes)"),
        (["--data", "none.tsv"], "none.tsv does not exist"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(folder)
    assert main(["gcn", "--out", "p.csv", "--device", "cpu", *arguments]) == 2
    line = capsys.readouterr().err
    assert expected in line
    assert line.count("\n") == 1
    assert not (folder / "p.csv").exists()


def test_damaged_ids_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = (folder / "gcn" / "shards").glob("*/node-ids.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"!")
    try:
        assert main([str(folder / "gcn"), "--out", str(folder / "p.csv"), "--device", "cpu"]) == 2
    finally:
        path.write_bytes(whole)
    assert (
        "node-ids.safetensors is damaged: it differs from its checksum" in capsys.readouterr().err
    )


def test_the_embeddings_of_a_kind_are_what_its_last_layer_is_applied_to(folder: Path) -> None:
    trainer = load_run(folder / "gcn", Communicator())
    model: Any = trainer.model.eval()
    state = _columns(folder / "gcn-one-z.parquet", "embedding")[1]
    rows = torch.from_numpy(state)[trainer.shard.owned_nodes]
    with torch.no_grad():
        assert torch.allclose(model.layers[-1](rows), model(None), rtol=0, atol=1e-5)
    implicit = load_run(folder / "implicit", Communicator())
    state = _columns(folder / "implicit-one-z.parquet", "embedding")[1]
    rows = torch.from_numpy(state)[implicit.shard.owned_nodes]
    with torch.no_grad():
        logits = implicit.model.eval().read_out(rows)
    expected = load(folder / "implicit").predict().logits[implicit.shard.owned_nodes]
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5)
