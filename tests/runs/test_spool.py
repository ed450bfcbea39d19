"""A run whose output is a URL, in one process: what goes there, in which order, what is left."""

from __future__ import annotations

import io
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_ignn.cli import shown_log
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.comm.processes import Process
from distributed_ignn.config import parse_args
from distributed_ignn.errors import JobError, UserError
from distributed_ignn.files import FileLock
from distributed_ignn.runs.checkpoints.checkpoint import Snapshot, load_newest
from distributed_ignn.runs.checkpoints.checkpoint_store import CheckpointStore
from distributed_ignn.runs.output import folder
from distributed_ignn.runs.run import run_training
from distributed_ignn.runs.spool import remote_lock
from distributed_ignn.runs.spool.mirror import Mirror
from distributed_ignn.runs.spool.places import Places, opened
from distributed_ignn.runs.spool.remote_lock import RUNS, SILENT_SECONDS, RemoteLock
from distributed_ignn.runs.spool.run_place import RunPlace
from distributed_ignn.urls import object_store
from distributed_ignn.urls.object_store import ObjectStore
from distributed_ignn.urls.url import Url, as_path
from tests.launch.test_train_command import SMALL
from tests.ranks import run_ranks

NODES = torch.tensor([4, 0, 2, 9])
BRIEF = [*SMALL, "--train.epochs", "3"]


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder of this machine, in which nothing may be left."""
    of_machine = tmp_path / "machine"
    of_machine.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(of_machine))
    monkeypatch.setattr(object_store, "PAUSES", ())
    yield of_machine
    assert [
        path for path in of_machine.rglob("*") if "kept-" not in str(path) and path.is_file()
    ] == []


@pytest.fixture
def place(tmp_path: Path) -> Url:
    """A new place in a shared folder."""
    url = as_path(f"file://{tmp_path}/shared/run")
    assert isinstance(url, Url)
    return url


def _snapshot(value: float) -> Snapshot:
    return Snapshot(
        {"epoch": int(value), "val_metric": value},
        {"model/weight": torch.full((7, 3), value)},
        {"warm/train": torch.full((4, 2), value)},
    )


def _save(places: Places, place: Url, *epochs: int, keep: int = 2) -> None:
    comm, mirror = Communicator(), places.mirror(place)
    output = RunPlace(mirror, comm)
    output.read()
    output.take(0.0)
    store = CheckpointStore(mirror.folder / "checkpoints", comm, keep, places, output)
    try:
        for epoch in epochs:
            store.save(epoch, _snapshot(float(epoch)), NODES)
    finally:
        store.close()
        output._lock.release()


def _newest(place: Url) -> Snapshot | None:
    """What an attempt on another machine finds."""
    comm = Communicator()
    with opened(comm, [place]) as places:
        mirror = places.mirror(place)
        RunPlace(mirror, comm).read()
        return load_newest(mirror.folder / "checkpoints", comm, NODES, places)


def _epochs(place: Url) -> list[str]:
    names = ObjectStore(place).listing("checkpoints")
    return sorted({name.split("/")[1] for name in names})


def test_checkpoints_are_sent_pruned_and_found_from_elsewhere(place: Url) -> None:
    with opened(Communicator(), [place]) as places:
        _save(places, place, 1, 2, 3)
    assert _epochs(place) == ["epoch-000002", "epoch-000003"]
    found = _newest(place)
    assert found is not None
    assert found.state["epoch"] == 3
    assert torch.equal(found.rows["warm/train"], torch.full((4, 2), 3.0))
    with opened(Communicator(), [place]) as places:  # the next attempt knows of them
        _save(places, place, 4)
    assert _epochs(place) == ["epoch-000003", "epoch-000004"]


@pytest.mark.parametrize("damage", ["common.safetensors", "rank-00000-of-00001.safetensors"])
def test_a_damaged_or_missing_object_makes_it_go_back(place: Url, damage: str) -> None:
    with opened(Communicator(), [place]) as places:
        _save(places, place, 1, 2)
    store, name = ObjectStore(place), f"checkpoints/epoch-000002/{damage}"
    data = store.read(name)
    assert data is not None
    store.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    for problem in ("is damaged, its checksum differs", "is missing or damaged"):
        screen = io.StringIO()
        with shown_log(screen):
            found = _newest(place)
        assert found is not None
        assert found.state["epoch"] == 1
        line = f"{place}/{name} {problem}; choose another checkpoint; going back to the one before"
        assert screen.getvalue() == f"warning: {line}\n"
        store.remove([name])


def test_what_is_cut_off_at_any_write_leaves_the_checkpoint_before(
    place: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an epoch is written a second time, which begins by unmaking the first."""
    with opened(Communicator(), [place]) as places:
        _save(places, place, 1, 2)
    left = 0

    def cut(original: Any, self: ObjectStore, *args: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise object_store.UnreachableError("the line is cut")
        original(self, *args)

    for name in ("push", "remove"):
        original = getattr(ObjectStore, name)
        monkeypatch.setattr(ObjectStore, name, lambda self, *args, o=original: cut(o, self, *args))
    cuts, whole = 0, False
    while not whole:
        left = cuts
        with suppress(JobError, UserError):
            with opened(Communicator(), [place]) as places:
                _save(places, place, 2, 3)
            whole = True
        left = 10**6
        found = _newest(place)
        assert found is not None
        epoch = found.state["epoch"]
        assert epoch in (1, 2, 3)
        assert float(found.common["model/weight"][0, 0]) == epoch
        cuts += 1
        _rewrite(place)
    assert cuts > 8
    assert epoch == 3


def _rewrite(place: Url) -> None:
    """Let checkpoints 1 and 2 be there, as before."""
    store = ObjectStore(place)
    store.remove(store.listing())
    with opened(Communicator(), [place]) as places:
        _save(places, place, 1, 2)


def test_a_second_run_is_kept_out_until_the_first_has_ended(place: Url) -> None:
    first, second = RemoteLock(ObjectStore(place)), RemoteLock(ObjectStore(place))
    first.take(0.0)
    with pytest.raises(UserError, match=f"output = {place} is in use by another run on '"):
        second.take(0.0)
    assert len(ObjectStore(place).listing(RUNS)) == 1
    first.release()
    second.take(0.0)
    second.release()
    second.release()
    assert ObjectStore(place).listing(RUNS) == {}


def _claim(place: Url, process: Process) -> None:
    told = json.dumps({"host": "elsewhere", "process": process}).encode()
    ObjectStore(place).write(f"{RUNS}/other.json", told)


def test_a_run_that_was_killed_keeps_nobody_out(
    place: Url, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of this machine at once; one of another when it has been silent for long."""
    _claim(place, Process.this()._replace(born="0"))
    lock = RemoteLock(ObjectStore(place))
    lock.take(0.0)
    lock.release()
    _claim(place, Process("another machine", 1, "0"))
    monkeypatch.setattr(remote_lock, "_POLL_SECONDS", 0.01)
    waits = iter([1.0, SILENT_SECONDS - 1, SILENT_SECONDS + 1])
    look = ObjectStore.modified

    def later(self: ObjectStore, name: str) -> Any:
        found = look(self, name)
        return found + timedelta(seconds=next(waits)) if found and "other" not in name else found

    monkeypatch.setattr(ObjectStore, "modified", later)
    lock = RemoteLock(ObjectStore(place))
    lock.take(60.0)
    lock.release()
    assert caplog.messages == [
        f"output = {place} is in use by another run on 'elsewhere'; waiting up to 60 s for its end"
    ]
    assert ObjectStore(place).listing(RUNS) == {}


def test_a_run_whose_place_was_taken_gives_up(place: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "BEAT_SECONDS", 0.01)
    with opened(Communicator(), [place]) as places:
        comm, mirror = Communicator(), places.mirror(place)
        output = RunPlace(mirror, comm)
        output.take(0.0)
        ObjectStore(place).remove(ObjectStore(place).listing(RUNS))
        assert output._lock._heart is not None
        output._lock._heart.join(10)
        store = CheckpointStore(mirror.folder / "checkpoints", comm, 2, places, output)
        with pytest.raises(UserError, match=f"{place} was taken by another run"):
            store.save(1, _snapshot(1.0), NODES)
        store.close()
        output._lock.release()
    assert _newest(place) is None


def test_folders_of_killed_runs_are_cleared_and_those_of_others_stay(
    place: Url, spool: Path
) -> None:
    with opened(Communicator(), [place]) as places:
        (above,) = spool.iterdir()
        (own,) = (path for path in above.iterdir() if path.is_dir())
        (above / "run-dead").mkdir()
        (above / "run-dead.lock").touch()
        (above / "run-alive").mkdir()
        alive = FileLock(above / "run-alive.lock")
        assert alive.take()
        with opened(Communicator(), [place]):
            assert own.is_dir()
            assert not (above / "run-dead").exists()
            assert (above / "run-alive").is_dir()
        assert places.local(place).is_relative_to(own)
        (above / "run-alive").rmdir()
        alive.release()
    assert list(spool.iterdir()) == []


def test_several_ranks_share_no_memory_of_one_process() -> None:
    with (
        pytest.raises(UserError, match="memory://run is in the memory of one process, and there"),
        opened(Communicator(0, 2), [as_path("memory://run")]),  # type: ignore[list-item]
    ):
        pass


def _cut_off(comm: Communicator, shared: str) -> tuple[str, bool, bool]:
    def send() -> None:
        if comm.rank == 1:
            raise object_store.UnreachableError("no answer to rank 1")

    url = as_path(shared)
    assert isinstance(url, Url)
    with opened(comm, [url]) as places:
        places.wait(lambda: None)
        with pytest.raises(JobError) as error:
            places.wait(send)
        assert places.local(url).is_relative_to(tempfile.gettempdir())
        return str(error.value), error.value.told, places.cut


def test_all_ranks_end_when_one_gets_no_answer(place: Url) -> None:
    told = run_ranks(_cut_off, 2, str(place), timeout=60)
    assert told == [("no answer to rank 1", False, True), ("no answer to rank 1", True, True)]


def test_without_urls_nothing_is_made_and_nobody_is_asked() -> None:
    """A communicator of two ranks would look for the other one."""
    with opened(Communicator(0, 2), []) as places:
        assert not places.any
        assert places.local(Path("runs/x")) == Path("runs/x")
        assert places.origin(Path("runs/x")) == Path("runs/x")
        assert places.named("runs/x") == "runs/x"


def _train(output: Url, *arguments: str) -> dict[str, Any]:
    return run_training(parse_args([*BRIEF, *arguments, "--output", str(output)]), Communicator())


def test_a_run_leaves_at_a_url_what_it_leaves_in_a_folder(place: Url, tmp_path: Path) -> None:
    summary = _train(place)
    twin = run_training(parse_args([*BRIEF, "--output", str(tmp_path / "twin")]), Communicator())
    assert summary["best_val"] == twin["best_val"]
    there = Path(place.key)

    def names(folder: Path) -> set[str]:
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        files = {name for name in found if (folder / name).is_file()}
        return {name for name in files if not name.startswith("events.out")}

    assert names(there) == names(tmp_path / "twin")
    assert f"output: {place}\n" in (there / "config.yaml").read_text()
    with pytest.raises(UserError, match=f"output = {place} already holds a run; choose another"):
        _train(place)
    memory = as_path("memory://in/memory")
    assert isinstance(memory, Url)
    assert _train(memory)["best_val"] == twin["best_val"]
    later = ["--train.epochs", "4", "--train.async-checkpoints", "true"]
    longer = _train(memory, "--resume", "auto", *later)
    assert longer["epochs"] == 4
    assert len((ObjectStore(memory).read("metrics.jsonl") or b"").splitlines()) == 4
    other = memory.with_name("other")
    assert isinstance(other, Url)
    named = _train(other, "--resume", f"{place}/checkpoints/epoch-000003", *later)
    assert named["best_val"] == longer["best_val"]
    assert named["residual_last"] == longer["residual_last"]


def test_what_a_run_has_left_behind_is_gone_from_its_url(
    place: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "job_starter", lambda: "one")
    _train(place)
    there = Path(place.key)
    assert (there / "summary.json").exists()
    other = place.with_name("other")
    named = ["--resume", f"{place}/checkpoints/epoch-000003", "--train.epochs", "5"]
    config = parse_args([*BRIEF, *named, "--output", str(other)])
    run_training(config, Communicator(), until=4)
    # a second attempt goes on from the checkpoint that the first one has written
    assert json.loads((there.with_name("other") / "starter.json").read_text()) == {
        "starters": ["one"]
    }
    config = parse_args([*BRIEF, "--resume", "auto", "--train.epochs", "5", "--output", str(place)])
    run_training(config, Communicator(), until=4)
    assert not (there / "summary.json").exists()


def test_a_run_that_never_begins_leaves_shards_alone(place: Url) -> None:
    with pytest.raises(UserError, match="does not fit into memory"):
        _train(place, "--train.memory-limit", "0.001")
    assert {name.split("/")[0] for name in ObjectStore(place).listing()} == {"shards"}


def test_what_cannot_be_sent_ends_the_run_in_one_line_and_is_kept(
    place: Url, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The network goes away in the middle of a run."""
    push, gone = ObjectStore.push, False

    def cut(self: ObjectStore, source: Path, name: str) -> None:
        nonlocal gone
        gone = gone or name.startswith("checkpoints/epoch-000003")
        if gone:
            raise object_store.UnreachableError(f"cannot write {self.url / name}: no answer")
        push(self, source, name)

    monkeypatch.setattr(ObjectStore, "push", cut)
    with pytest.raises(JobError) as error, caplog.at_level(logging.WARNING):
        _train(place)
    assert str(error.value).startswith(f"cannot write {place}/checkpoints/epoch-000003/")
    (kept,) = spool.glob("ignn-*/kept-*")
    assert caplog.messages[-1] == f"what was not sent to {place} is in {kept}"
    assert len(next(kept.rglob("metrics.jsonl")).read_bytes().splitlines()) == 3
    monkeypatch.undo()
    assert _epochs(place) == ["epoch-000002"]
    ObjectStore(place).remove(ObjectStore(place).listing(RUNS))  # as when this process has ended
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    assert _train(place, "--resume", "auto")["epochs"] == 3


def test_a_file_is_fetched_once_though_several_ask(
    place: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ObjectStore(place).write("a", b"1")
    mirror = Mirror(place, tmp_path / "mirror")
    calls = []
    fetch = ObjectStore.fetch

    def counted(self: ObjectStore, name: str, target: Path) -> bool:
        calls.append(name)
        return fetch(self, name, target)

    monkeypatch.setattr(ObjectStore, "fetch", counted)
    for get in (partial(mirror.fetch, tmp_path / "mirror" / "a"),) * 2:
        get()
    mirror.fetch(tmp_path / "mirror" / "absent")
    assert calls == ["a", "absent"]
    assert [path.name for path in (tmp_path / "mirror").iterdir()] == ["a"]
