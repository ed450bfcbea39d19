"""Predictions of two ranks go into one file in blocks, and no rank ever has the whole table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.runs.node_rows import NodeRows
from distributed_ignn.runs.prediction import Prediction
from distributed_ignn.runs.prediction_file import FORMATS, Table, write_predictions
from tests.ranks import run_ranks

NODES, CLASSES, BLOCK = 413, 5, 64 * 5 + 3  # 64 rows a block


def _logits(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(NODES, CLASSES, dtype=dtype)


def _prediction(logits: Tensor, multilabel: bool) -> Prediction:
    solve: dict[str, Any] = dict.fromkeys(
        ("certified_distance", "certified_relative", "norm", "contraction", "settled_nodes")
    )
    return Prediction(
        logits=logits,
        multilabel=multilabel,
        embeddings=None,
        epoch=1,
        evaluations=3,
        residual=1e-7,
        tolerance=1e-6,
        metric="accuracy",
        scores={"test": 0.5},
        **solve,
    )


def _part(comm: Communicator, logits: Tensor, entries: int = BLOCK) -> NodeRows:
    """Rows of this rank, of nodes that it has in any order."""
    torch.manual_seed(7)
    owner = torch.randint(comm.world_size, (NODES,))
    nodes = (owner == comm.rank).nonzero()[:, 0]
    nodes = nodes[torch.randperm(nodes.numel())]
    return NodeRows(logits[nodes], nodes, NODES, comm, entries)


def _write(comm: Communicator, folder: Path) -> dict[str, Any]:
    """All files by two ranks; how many numbers were ever sent at once; the table itself."""
    sent: list[int] = []
    reduce = comm.sum

    def watched(tensor: Tensor) -> Tensor:
        sent.append(tensor.numel() if tensor.is_floating_point() else 0)
        return reduce(tensor)

    comm.sum = watched  # type: ignore[method-assign]
    for dtype in (torch.float32, torch.float64):
        for multilabel in (False, True):
            logits = _logits(dtype)
            rows = _part(comm, logits)
            for kind in FORMATS:
                path = folder / f"{dtype}-{multilabel}{kind}"
                write_predictions(path, _prediction(logits[:1], multilabel), rows)
    most = max(sent)
    whole = _part(comm, _logits(torch.float64)).whole()
    return {"most": most, "whole": whole, "full disk": _full_disk(comm, folder)}


def _full_disk(comm: Communicator, folder: Path) -> tuple[str, list[str]]:
    """What each rank raises where the first one cannot write its third block."""
    logits, seen = _logits(torch.float32), [0]
    ids_of = Table.ids_of

    def fails(table: Table, first: int, last: int) -> Any:
        seen[0] += 1
        if seen[0] == 3:
            raise OSError(28, "No space left on device")
        return ids_of(table, first, last)

    Table.ids_of = fails  # type: ignore[method-assign,assignment]
    try:
        write_predictions(folder / "full.csv", _prediction(logits[:1], False), _part(comm, logits))
    except UserError as error:
        comm.barrier()
        left = [name for name in os.listdir(folder) if "full" in name]
        return str(error).removeprefix(f"cannot write {folder}"), left
    finally:
        Table.ids_of = ids_of  # type: ignore[method-assign]
    return "nothing raised", []


def test_two_ranks_write_in_blocks_what_one_process_writes_at_once(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    found = run_ranks(_write, 2, tmp_path / "two", timeout=100)
    for report in found:
        assert report["most"] == 64 * CLASSES
        assert torch.equal(report["whole"], _logits(torch.float64))
        assert report["full disk"] == ("/full.csv: No space left on device", [])
    for dtype in (torch.float32, torch.float64):
        for multilabel in (False, True):
            logits = _logits(dtype)
            name = f"{dtype}-{multilabel}"
            for kind in FORMATS:
                path = tmp_path / f"{name}{kind}"
                write_predictions(path, _prediction(logits, multilabel), NodeRows.of_one(logits))
            _assert_same(tmp_path / name, tmp_path / "two" / name)


def _assert_same(one: Path, two: Path) -> None:
    for ending in (".csv", ".csv.json"):
        assert Path(f"{one}{ending}").read_bytes() == Path(f"{two}{ending}").read_bytes()
    left, right = pq.read_table(f"{one}.parquet"), pq.read_table(f"{two}.parquet")
    assert left.equals(right, check_metadata=True)
    arrays, others = (np.load(f"{path}.npz", allow_pickle=False) for path in (one, two))
    assert (
        arrays.files == others.files == ["node", "prediction", "probabilities", "distributed_ignn"]
    )
    for name in arrays.files:
        assert arrays[name].dtype == others[name].dtype
        assert np.array_equal(arrays[name], others[name])


def test_an_array_file_is_what_numpy_would_write(tmp_path: Path) -> None:
    logits = _logits(torch.float32)
    found = _prediction(logits, False)
    write_predictions(tmp_path / "p.npz", found, NodeRows.of_one(logits, BLOCK))
    arrays = np.load(tmp_path / "p.npz", allow_pickle=False)
    assert arrays["node"].tolist() == list(range(NODES))
    assert np.array_equal(arrays["prediction"], found.labels.numpy())
    assert np.array_equal(arrays["probabilities"], found.probabilities.numpy())


@pytest.mark.parametrize("entries", [1, CLASSES, 10**6])
def test_blocks_of_any_size_make_the_same_table(entries: int) -> None:
    logits = _logits(torch.float64)
    assert torch.equal(_part(Communicator(), logits, entries).whole(), logits)
