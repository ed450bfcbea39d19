"""shards.json: a run that goes on and its predictions read the shards that it was trained on."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.commands.partition import main as partition
from distributed_ignn.config import parse_args
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.storage.shard_store import read_manifest
from distributed_ignn.runs import run as run_module
from distributed_ignn.runs.checkpoints.checkpoint import list_checkpoints, sealed
from distributed_ignn.runs.predict import PredictOptions, predict
from distributed_ignn.runs.run import run_training
from distributed_ignn.runs.shard_record import ShardRecord, read_record
from distributed_ignn.runs.shards import find_shards, source_of
from tests.ranks import run_ranks

CHAINS = ["--dataset", "chains", "--data.chains.chains-per-class", "8", "--data.chains.length", "5"]
METHOD = ["--partition.method", "contiguous"]
LIMIT = 3.0
"""Seconds that a rank waits for another in a collective of the slow tests."""
SMALL = ["--model.hidden", "4", "--device", "cpu", "--train.epochs", "2", "--train.threads", "1"]


def _train(output: Path, *arguments: str) -> dict[str, Any]:
    config = parse_args([*CHAINS, *METHOD, *SMALL, "--output", str(output), *arguments])
    return run_training(config, Communicator())


def _predict(run: Path, out: Path) -> bytes:
    predict(PredictOptions(run, out), Communicator())
    return out.read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shards") / "run"
    _train(output)
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy: the run has been moved to another place."""
    return Path(shutil.copytree(trained, tmp_path / "moved"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Receives the name of every dataset that a run loads."""
    names: list[str] = []
    load = run_module.load_dataset

    def watched(name: str, *rest: Any) -> GraphData:
        names.append(name)
        return load(name, *rest)

    monkeypatch.setattr(run_module, "load_dataset", watched)
    return names


def test_the_run_names_its_shards(trained: Path) -> None:
    record = json.loads((trained / "shards.json").read_text())
    (folder,) = (trained / "shards").iterdir()
    manifest = read_manifest(folder)
    assert record == {
        "folder": f"shards/{folder.name}",
        "fingerprint": manifest.fingerprint,
        "parts": 1,
    }


def test_a_moved_run_predicts(trained: Path, run: Path, tmp_path: Path) -> None:
    expected = _predict(trained, tmp_path / "there.parquet")
    hidden = trained.rename(trained.with_name("hidden"))
    try:
        assert _predict(run, tmp_path / "here.parquet") == expected
    finally:
        hidden.rename(trained)


def test_only_the_named_shards_are_read(trained: Path, run: Path, tmp_path: Path) -> None:
    """Others that sort first, of other data, are no business of the predictions."""
    other = str(run / "shards" / "aaa")
    assert partition([*CHAINS[:-1], "7", *METHOD, "--parts", "1", "--out", other]) == 0
    expected = _predict(trained, tmp_path / "there.parquet")
    assert _predict(run, tmp_path / "here.parquet") == expected


def test_shards_outside_are_named_in_full(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    assert partition([*CHAINS, *METHOD, "--parts", "1", "--out", str(parts)]) == 0
    _train(tmp_path / "run", "--partition.dir", str(parts))
    assert read_record(tmp_path / "run").folder == str(parts)
    moved = (tmp_path / "run").rename(tmp_path / "other")
    assert _predict(moved, tmp_path / "p.parquet")
    shutil.rmtree(parts)
    with pytest.raises(UserError, match=rf"the shards of {moved} are gone from {parts}; put"):
        _predict(moved, tmp_path / "p.parquet")


def test_other_shards_in_their_place_are_refused(run: Path, tmp_path: Path) -> None:
    (folder,) = (run / "shards").iterdir()
    shutil.rmtree(folder)
    assert partition([*CHAINS[:-1], "7", *METHOD, "--parts", "1", "--out", str(folder)]) == 0
    with pytest.raises(UserError, match="now holds shards of other data than"):
        _predict(run, tmp_path / "p.parquet")


@pytest.mark.parametrize("content", [None, "{", '{"folder": "shards", "parts": 1}'])
def test_a_lost_or_damaged_record_is_one_line(
    run: Path, tmp_path: Path, content: str | None
) -> None:
    (run / "shards.json").unlink()
    if content is not None:
        (run / "shards.json").write_text(content)
    with pytest.raises(UserError, match=r"shards\.json .*; start .* --resume auto$") as caught:
        _predict(run, tmp_path / "p.parquet")
    assert "\n" not in str(caught.value)
    _train(run, "--resume", "auto")  # the way out that it names
    assert _predict(run, tmp_path / "p.parquet")


def test_a_run_that_goes_on_loads_no_dataset(run: Path, loads: list[str]) -> None:
    before = (run / "shards.json").read_bytes()
    assert _train(run, "--resume", "auto", "--train.epochs", "3")["epochs"] == 3
    assert loads == []
    assert (run / "shards.json").read_bytes() == before


@pytest.mark.parametrize(
    "change", ["--partition.order id", "--data.chains.noise 0.1", "gone", "other data"]
)
def test_shards_of_other_settings_are_not_taken(
    run: Path, loads: list[str], change: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = (run / "shards").iterdir()
    arguments: list[str] = []
    if change == "gone":
        shutil.rmtree(folder)
    elif change == "other data":
        values = read_record(run).model_dump() | {"fingerprint": "0" * 64}
        (run / "shards.json").write_text(json.dumps(values))
    else:
        arguments = change.split()
    _train(run, "--resume", "auto", *arguments)
    assert loads == ["chains"]
    record = read_record(run)
    assert read_manifest(record.path(run), fingerprint=record.fingerprint).parts == 1
    other = {
        "--data.chains.noise 0.1": "; chains.noise was 0.0 and is 0.1); it goes on",
        "other data": "holds a run on another graph (000000000000, this one is ",
    }
    assert ("another graph" in caplog.text) == (change in other)
    assert other.get(change, "") in caplog.text
    changed = change.startswith("--")
    assert (record.folder == f"shards/{folder.name}") == (not changed)


def test_a_file_that_has_changed_is_read_again_and_told(
    tmp_path: Path, loads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    nodes = np.arange(30)
    ring = np.stack([nodes, np.roll(nodes, 1)])
    masks = {f"{s}_mask": nodes % 3 == i for i, s in enumerate(("train", "val", "test"))}

    def train(shift: int | None) -> None:
        if shift is not None:
            y = (nodes + shift) % 2
            np.savez(tmp_path / "own.npz", edge_index=ring, x=np.eye(30), y=y, **masks)
        own = ["--dataset", str(tmp_path / "own.npz"), "--output", str(tmp_path / "run")]
        resume = ["--resume", "auto"] if loads else []
        run_training(parse_args([*METHOD, *SMALL, *own, *resume]), Communicator())

    train(0)
    train(None)
    assert len(loads) == 1
    train(0)  # written again, the same
    assert len(loads) == 2
    assert "another graph" not in caplog.text
    train(1)
    assert len(loads) == 3
    assert "holds a run on another graph" in caplog.text


def test_a_change_in_a_folder_of_ogb_is_seen(tmp_path: Path) -> None:
    config = parse_args([*METHOD, "--dataset", "file", "--data.path", str(tmp_path)])
    assert source_of(config) == ""
    files = ("raw/edge.csv.gz", "raw/node-label.csv.gz", "split/time/train.csv.gz")
    seen = set()
    for name in files * 2:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("ab") as file:
            file.write(b"1")
        seen.add(source_of(config))
    assert len(seen) == 6


def test_a_refused_resume_leaves_the_record(run: Path) -> None:
    before = (run / "shards.json").read_bytes()
    with pytest.raises(UserError, match="another shape"):
        _train(run, "--resume", "auto", "--model.hidden", "5", "--partition.order", "id")
    assert (run / "shards.json").read_bytes() == before
    assert len(list((run / "shards").iterdir())) == 2


def test_the_seconds_of_all_attempts_are_added(run: Path) -> None:
    state = list_checkpoints(run / "checkpoints")[-1] / "state.json"
    values = json.loads(state.read_text())
    seconds = values["parts"]["seconds"]
    assert 0 < seconds["solver_training"] + seconds["total"] < 100
    seconds["total"] = 1000.0
    state.write_text(json.dumps(sealed(values)))
    summary = _train(run, "--resume", "auto", "--train.epochs", "3")
    assert 1000 < summary["seconds_total"] < 1100
    newest = list_checkpoints(run / "checkpoints")[-1] / "state.json"
    seconds = json.loads(newest.read_text())["parts"]["seconds"]
    assert 1000 < seconds["total"] < summary["seconds_total"]


_METHODS = [("--partition.method", "contiguous"), ("--partition.method", "random")]


def _machines(comm: Communicator, folder: Path) -> list[str]:
    """Two machines of one rank each: the same data, different data, and divided differently."""
    comm.local_rank = 0
    results: list[str] = []
    for length, method in ((5, METHOD), (5 + comm.rank, METHOD), (5, _METHODS[comm.rank])):
        output = folder / f"{comm.rank}-{len(results)}"
        chains = [*CHAINS[:-1], str(length), *method, "--output", str(output)]
        config = parse_args(chains)

        def load(config: Any = config) -> GraphData:
            return run_module.load_dataset(config.dataset, config.data_root, config.data)

        try:
            record: ShardRecord = find_shards(config, comm, load)
            results.append(str(record.path(output).is_dir()))
        except UserError as error:
            results.append(str(error))
    return results


def test_machines_must_hold_the_same_data(tmp_path: Path) -> None:
    first, second = run_ranks(_machines, 2, tmp_path)
    assert first == second
    assert first[0] == "True"
    assert first[1].startswith("the machines of this run hold different data (")
    assert "divided the graph differently (with contiguous, random)" in first[2]


def _slowly(comm: Communicator, output: str) -> tuple[str, bool]:
    """Shards of a dataset whose loading takes twice as long as ranks wait in a collective."""
    config = parse_args([*CHAINS, *METHOD, *SMALL, "--output", output])
    loaded = False

    def load() -> GraphData:
        nonlocal loaded
        time.sleep(2 * LIMIT)
        loaded = True
        return load_dataset(config.dataset, config.data_root, config.data)

    return find_shards(config, comm, load).folder, loaded


@pytest.mark.slow
def test_loading_may_outlast_a_collective(tmp_path: Path) -> None:
    first, second = run_ranks(_slowly, 2, str(tmp_path), timeout=60, limit=LIMIT)
    assert first[0] == second[0]
    assert (first[1], second[1]) == (True, False)
    assert read_manifest(tmp_path / first[0]).parts == 2
