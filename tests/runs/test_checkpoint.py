"""Checkpoints on disk: complete or absent, the newest few, and one line for whatever is wrong."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.runs.checkpoints.checkpoint import (
    Snapshot,
    list_checkpoints,
    load_checkpoint,
    load_newest,
)
from distributed_ignn.runs.checkpoints.checkpoint_store import CheckpointStore
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from tests.training.small_trainers import small_config, small_trainer, train

NODES = torch.tensor([4, 0, 2, 9])


def _snapshot(value: float = 1.0, size: int = 3) -> Snapshot:
    rows = {"warm/train": torch.full((4, 2), value), "model/rows": NODES[:, None] * value}
    return Snapshot(
        {"epoch": 7, "solver_ready": True},
        {"model/weight": torch.full((size, size), value), "step": torch.tensor(5.0)},
        rows,
    )


def _validated(epoch: int, val: float | None) -> Snapshot:
    found = _snapshot(float(epoch))
    return replace(found, state={"epoch": epoch, "val_metric": val})


def _solved(epoch: int, converged: bool) -> Snapshot:
    state = {"epoch": epoch, "converged": converged}
    return replace(_snapshot(float(epoch)), state=state)


def _store(folder: Path, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(folder, Communicator(), keep)


def _load(path: Path, nodes: torch.Tensor = NODES) -> Snapshot:
    return load_checkpoint(path, Communicator(), nodes)


def _line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def _epochs(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("epoch-")) for path in list_checkpoints(folder)]


@contextmanager
def _disk_full_beyond(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes: writes fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = _snapshot()
    path = _store(tmp_path / "new" / "checkpoints").save(7, saved, NODES)
    found = _load(path)
    assert found.state["epoch"] == 7
    assert found.state["solver_ready"] is True
    for mine, theirs in (
        (found.common, saved.common),
        (found.rows, saved.rows),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert all(mine[key].dtype == theirs[key].dtype for key in mine)


def test_rows_follow_their_nodes_when_the_cut_changes(tmp_path: Path) -> None:
    path = _store(tmp_path).save(7, _snapshot(2.0), NODES)
    found = _load(path, torch.tensor([9, 4]))
    assert found.rows["model/rows"].tolist() == [[18.0], [8.0]]
    empty = _load(path, torch.zeros(0, dtype=torch.int64))
    assert empty.rows["model/rows"].shape == (0, 1)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = _store(tmp_path, keep=2)
    for epoch in (5, 10, 1_000_000, 1_000_005):
        store.save(epoch, _snapshot(float(epoch)), NODES)
    assert _epochs(tmp_path) == [1_000_000, 1_000_005]
    assert float(_load(list_checkpoints(tmp_path)[-1]).rows["warm/train"][0, 0]) == 1_000_005


def test_the_best_is_kept_besides(tmp_path: Path) -> None:
    """The first of equals; one that was never validated is none."""
    store = _store(tmp_path, keep=1)
    for epoch, val in ((1, 0.5), (2, 0.8), (3, None), (4, 0.8), (5, 0.1)):
        store.save(epoch, _validated(epoch, val), NODES)
    assert _epochs(tmp_path) == [2, 5]
    assert float(_load(tmp_path / "epoch-000002").rows["warm/train"][0, 0]) == 2
    store.save(6, _validated(6, 0.9), NODES)
    assert _epochs(tmp_path) == [6]


def test_the_newest_whose_solves_converged_is_kept_besides_and_preferred_where_asked(
    tmp_path: Path,
) -> None:
    def newest(converged: bool) -> int:
        found = load_newest(tmp_path, Communicator(), NODES, converged=converged)
        assert found is not None
        return int(found.state["epoch"])

    store = _store(tmp_path, keep=1)
    for epoch, converged in ((1, False), (2, False)):
        store.save(epoch, _solved(epoch, converged), NODES)
    assert (_epochs(tmp_path), newest(True)) == ([2], 2)  # without any, the newest
    for epoch, converged in ((3, True), (4, True), (5, False), (6, False)):
        store.save(epoch, _solved(epoch, converged), NODES)
    assert _epochs(tmp_path) == [4, 6]
    assert (newest(True), newest(False)) == (4, 6)
    _flip_byte(tmp_path / "epoch-000004" / "state.json")
    assert newest(True) == 6
    store.save(7, _solved(7, True), NODES)
    assert _epochs(tmp_path) == [7]


@pytest.mark.parametrize("damage", ["rank-00000-of-00001.safetensors", "state.json"])
def test_a_damaged_newest_falls_back_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store = _store(tmp_path, keep=3)
    for epoch in (1, 2, 3):
        store.save(epoch, _validated(epoch, None), NODES)
    for epoch in (3, 2):
        _flip_byte(tmp_path / f"epoch-{epoch:06d}" / damage)
    found = load_newest(tmp_path, Communicator(), NODES)
    assert found is not None
    assert found.state["epoch"] == 1
    lines = [record.getMessage() for record in caplog.records]
    assert [line.endswith("; going back to the one before") for line in lines] == [True, True]
    assert "epoch-000003" in lines[0]
    _flip_byte(tmp_path / "epoch-000001" / damage)
    with pytest.raises(UserError, match="epoch-000001") as error:
        load_newest(tmp_path, Communicator(), NODES)
    _line(error)


def test_remains_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    store = _store(tmp_path)
    path = store.save(5, _snapshot(), NODES)
    shutil.copytree(path, tmp_path / ".epoch-000006.0a1b2c3d.tmp")
    store.save(6, _snapshot(), NODES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-000005", "epoch-000006"]


def test_one_of_the_same_epoch_goes_once_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _store(tmp_path).save(5, _snapshot(), NODES)
    remove, there = shutil.rmtree, []

    def noted(folder: Path, **options: Any) -> None:
        there.append((path / "state.json").exists())
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", noted)
    _store(tmp_path).save(5, _snapshot(2.0), NODES)
    assert there == [True]
    assert float(_load(path).common["model/weight"][0, 0]) == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-000005"]


def test_a_run_that_went_back_forgets_what_came_later(tmp_path: Path) -> None:
    """Else the next ``--resume auto`` would go on with the abandoned course."""
    for epoch in (10, 20, 30):
        _store(tmp_path, keep=3).save(epoch, _snapshot(), NODES)
    _store(tmp_path, keep=1).save(12, _snapshot(), NODES)
    assert _epochs(tmp_path) == [12]


def test_one_written_in_the_background_holds_what_was_then(tmp_path: Path) -> None:
    store, snapshot = _store(tmp_path), _snapshot(1.0)
    store.begin(7, snapshot.apart(), NODES)
    for tensor in (*snapshot.common.values(), *snapshot.rows.values()):
        tensor.mul_(0)  # the next steps
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(RuntimeError, match="is being written"):
        store.begin(8, snapshot, NODES)
    path = store.finish()
    assert not store.writing
    assert float(_load(path).common["model/weight"][0, 0]) == 1.0
    with pytest.raises(RuntimeError, match="no checkpoint"):
        store.finish()
    store.close()


def test_a_failure_in_the_background_is_told_at_the_end(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with _disk_full_beyond(100):
        store.begin(7, _snapshot(), NODES)
        with pytest.raises(UserError, match="cannot write the checkpoint") as error:
            store.finish()
    _line(error)
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_an_epoch_can_be_written_again(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.save(5, _snapshot(1.0), NODES)
    path = store.save(5, _snapshot(2.0), NODES)
    assert _epochs(tmp_path) == [5]
    assert float(_load(path).common["model/weight"][0, 0]) == 2.0


def test_leftovers_of_a_killed_run_are_not_listed(tmp_path: Path) -> None:
    path = _store(tmp_path).save(5, _snapshot(), NODES)
    shutil.copytree(path, tmp_path / ".epoch-000006.tmp")
    (tmp_path / "epoch-000007").touch()
    (tmp_path / "epoch-000008-old").mkdir()
    assert list_checkpoints(tmp_path) == [path]
    assert list_checkpoints(tmp_path / "absent") == []
    # and do not stand in the way
    _store(tmp_path).save(6, _snapshot(3.0), NODES)
    assert float(_load(tmp_path / "epoch-000006").rows["warm/train"][0, 0]) == 3.0


@pytest.mark.parametrize("limit", [100, 2000])
def test_a_failing_write_leaves_the_previous_one(tmp_path: Path, limit: int) -> None:
    """At 100 bytes the first file fails, at 2,000 only the large one."""
    store = _store(tmp_path)
    path = store.save(5, _snapshot(1.0), NODES)
    with _disk_full_beyond(limit), pytest.raises(UserError) as error:
        store.save(6, _snapshot(2.0, size=100), NODES)
    assert f"cannot write the checkpoint in {tmp_path}: " in _line(error)
    assert "too large" in _line(error)
    assert list_checkpoints(tmp_path) == [path]
    assert float(_load(path).common["model/weight"][0, 0]) == 1.0
    store.save(6, _snapshot(2.0, size=100), NODES)
    assert _epochs(tmp_path) == [5, 6]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        _store(tmp_path / "file" / "checkpoints").save(5, _snapshot(), NODES)
    assert _line(error).endswith("checkpoints: Not a directory")


def _flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["common.safetensors", "rank-00000-of-00001.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = _store(tmp_path).save(5, _snapshot(), NODES)
    file = path / name
    if damage == "flipped":
        _flip_byte(file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    else:
        file.unlink()
    with pytest.raises(UserError) as error:
        _load(path)
    assert name in _line(error)
    assert "choose another checkpoint" in _line(error)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 2}', '{"version": 99}'])
def test_an_unreadable_state_is_one_line(tmp_path: Path, content: str) -> None:
    path = _store(tmp_path).save(5, _snapshot(), NODES)
    (path / "state.json").write_text(content)
    with pytest.raises(UserError, match="choose another") as error:
        _load(path)
    assert str(path) in _line(error)


def test_a_changed_figure_in_the_state_is_noticed(tmp_path: Path) -> None:
    path = _store(tmp_path).save(5, _snapshot(), NODES)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"epoch": 7', '"epoch": 9'))
    with pytest.raises(UserError, match=r"the checksum of state\.json differs"):
        _load(path)


def test_a_folder_without_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a complete checkpoint \(state.json") as error:
        _load(tmp_path)
    assert str(tmp_path) in _line(error)


def test_nodes_of_another_graph_are_refused(tmp_path: Path) -> None:
    path = _store(tmp_path).save(5, _snapshot(), NODES)
    with pytest.raises(UserError, match=r"belongs to another graph, it lacks node 3"):
        _load(path, torch.tensor([0, 3]))


def test_state_is_readable_json_with_checksums(tmp_path: Path) -> None:
    path = _store(tmp_path).save(5, _snapshot(), NODES)
    state = json.loads((path / "state.json").read_text())
    assert state["version"] == 3
    assert state["world_size"] == 1
    assert set(state["sha256"]) == {"common.safetensors", "rank-00000-of-00001.safetensors"}


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({"model": {"hidden": 9}}, "float64", r"a model of another shape \(encoder.own is "),
        (
            {"solver": {"hidden": 5}},
            "float64",
            r"predictor.layer.own.weight is \[4, ",
        ),
        ({"solver": {"compress": 5}}, "float64", r"initialiser.readout is \[1, 8\], not \[5"),
        ({}, "float32", "train.dtype = float64, not float32"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    changes: dict[str, dict[str, Any]], dtype: str, message: str
) -> None:
    # one column would broadcast into any number of them
    first = small_trainer(Communicator(), small_config({"solver": {"compress": 1}}))
    train(first, 3)
    solver = {"compress": 1, **changes.get("solver", {})}
    other = small_trainer(Communicator(), small_config({**changes, "solver": solver}, dtype))
    with pytest.raises(UserError, match=message) as error:
        restore(other, take_snapshot(first))
    _line(error)
