"""Objects at a URL: in memory, in a shared folder, and in a bucket of a server."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_ignn.errors import UserError
from distributed_ignn.files import temporary_sibling
from distributed_ignn.urls import object_store
from distributed_ignn.urls.object_store import PAUSES, ObjectStore, UnreachableError
from distributed_ignn.urls.url import Url, as_path
from tests.buckets import BUCKET, Server, served


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as server:
        yield server


def _store(text: str) -> ObjectStore:
    url = as_path(text)
    assert isinstance(url, Url)
    return ObjectStore(url)


@pytest.fixture(params=["memory", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "s3":
        request.getfixturevalue("server")
        return _store(f"s3://{BUCKET}/{tmp_path.name}")
    if request.param == "file":
        return _store(f"file://{tmp_path}/shared")
    return _store(f"memory:/{tmp_path}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No pauses between tries; how long they would have been."""
    waited: list[float] = []
    monkeypatch.setattr(object_store.time, "sleep", waited.append)
    return waited


def test_objects_are_written_listed_read_and_removed(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    assert store.listing() == {}
    assert store.read("a/b") is None
    assert not store.exists("a/b")
    assert not store.fetch("a/b", tmp_path / "target")
    assert not (tmp_path / "target").exists()

    store.push(source, "a/large")
    store.write("a/b", b"small")
    store.write("ab", b"not below a")
    assert set(store.listing()) == {"a/large", "a/b", "ab"}
    before = store.listing("a")
    assert set(before) == {"a/large", "a/b"}
    assert store.read("a/b") == b"small"
    assert store.fetch("a/large", tmp_path / "new" / "target")
    assert (tmp_path / "new" / "target").read_bytes() == source.read_bytes()

    store.write("a/b", b"another")
    after = store.listing("a")
    assert after["a/large"] == before["a/large"]
    assert after["a/b"] != before["a/b"]
    early, late = store.modified("a/large"), store.modified("a/b")
    assert early is not None
    assert late is not None
    assert early <= late
    store.remove(["a/large", "gone", "a/b"])
    assert set(store.listing()) == {"ab"}
    store.probe()
    store.push(tmp_path / "gone meanwhile", "b")
    assert set(store.listing()) == {"ab"}


class _Shaky:
    """A file system that fails so many times before it does what another does."""

    def __init__(self, inner: Any, failures: int, error: Exception) -> None:
        self._inner, self.left, self._error = inner, failures, error

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left:
                self.left -= 1
                raise self._error
            return getattr(self._inner, name)(*args, **kwargs)

        return call


def _shake(store: ObjectStore, failures: int, error: Exception) -> None:
    store.__dict__["file_system"] = _Shaky(store.file_system, failures, error)


def test_trouble_is_met_by_more_tries_each_in_a_line(
    impatient: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    store = _store("memory://trouble")
    _shake(store, len(PAUSES), OSError(errno.EIO, "the line is cut"))
    with caplog.at_level(logging.WARNING):
        store.write("a", b"1")
    assert store.read("a") == b"1"
    assert impatient == list(PAUSES)
    assert len(caplog.messages) == len(PAUSES)
    assert caplog.messages[0].startswith("cannot write memory://trouble/a ([Errno 5] the line is")
    assert caplog.messages[0].endswith("; trying again in 0.5 s")
    _shake(store, len(PAUSES) + 1, OSError(errno.EIO, "the line is cut"))
    with pytest.raises(UnreachableError, match=r"after 4 tries .*the line is cut") as told:
        store.write("a", b"2")
    assert told.value.exit_code == 75
    assert store.read("a") == b"1"


def test_a_mistake_of_ours_is_not_tried_again(impatient: list[float]) -> None:
    store = _store("memory://mistake")
    _shake(store, 1, KeyError("size"))
    with pytest.raises(KeyError):
        store.read("a")
    assert impatient == []


def test_a_full_disk_is_said_at_once(impatient: list[float]) -> None:
    store = _store("memory://full")
    _shake(store, 1, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UserError, match="No space left on device; TMPDIR names another folder"):
        store.read("a")
    assert impatient == []


def test_what_came_short_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: list[float]
) -> None:
    store = _store("memory://short")
    store.write("a", b"whole")
    whole, calls = store.file_system.get_file, []

    def cut(source: str, target: str) -> None:
        calls.append(target)
        whole(source, target)
        if len(calls) == 1:
            Path(target).write_bytes(b"who")

    monkeypatch.setattr(store.file_system, "get_file", cut)
    assert store.fetch("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert impatient == [PAUSES[0]]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_bucket_that_is_not_there_is_named(server: Server) -> None:
    with pytest.raises(UserError) as error:
        _store("s3://no-such-bucket/run").write("a", b"")
    assert str(error.value) == (
        "cannot write s3://no-such-bucket/run/a: there is no bucket no-such-bucket; make it, or "
        "name another place"
    )


def test_what_consoles_make_for_a_folder_is_no_object(server: Server) -> None:
    server.write("console/run/", b"")
    server.write("console/run/a", b"")
    assert set(_store(f"s3://{BUCKET}/console/run").listing()) == {"a"}


def test_keys_that_are_refused_are_said_to_be(server: Server, impatient: list[float]) -> None:
    store = _store(f"s3://{BUCKET}/refused")
    with server.refusing():
        for use in (lambda: store.write("a", b""), lambda: store.read("a"), store.listing):
            with pytest.raises(UserError, match=r"access is refused .*give credentials"):
                use()
    assert impatient == []
    store.probe()


def test_a_file_in_the_place_of_a_folder_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write file:///.*name another place"):
        _store(f"file://{tmp_path}/file/run").write("a", b"")


def test_what_a_killed_writer_left_is_no_object(tmp_path: Path) -> None:
    store = _store(f"file://{tmp_path}/run")
    store.write("a", b"1")
    with subprocess.Popen(["true"]) as process:
        pass
    name = temporary_sibling(tmp_path / "run" / "a").name
    (tmp_path / "run" / name.replace(f"-{os.getpid()}-", f"-{process.pid}-")).touch()
    (tmp_path / "run" / name).touch()  # of a writer that is alive
    assert set(store.listing()) == {"a"}
    store.write("a", b"2")
    assert store.read("a") == b"2"
    assert set(os.listdir(tmp_path / "run")) == {"a", name}
