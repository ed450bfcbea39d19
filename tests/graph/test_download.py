"""Downloads: limited, whole, resumed, once, and over https whatever a server answers."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import requests

from distributed_ignn import long_steps
from distributed_ignn.errors import UserError
from distributed_ignn.files import FileLock
from distributed_ignn.graph.datasets import download, pyg_ogb, transfer
from tests.graph.publisher import Publisher, published

CONTENT = bytes(range(256)) * 2_000  # 512,000 bytes
SUM = hashlib.sha256(CONTENT).hexdigest()
CUT = 300_000
DATE = "Sat, 01 Nov 2025 10:00:00 GMT"

Serve = Callable[[Publisher], Publisher]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Publishes with a certificate that is trusted here; nobody waits between attempts."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "cert.pem"))
    monkeypatch.setattr(transfer, "PAUSES", (0.0, 0.0))
    with ExitStack() as stack:
        yield lambda publisher: stack.enter_context(published(publisher, folder))


def _fetch(publisher: Publisher, target: Path, sha256: str | None = SUM, path: str = "/x") -> Path:
    return download.fetch(publisher.address + path, target, source="here", sha256=sha256)


def _refused(url: str, target: Path, **settings: object) -> str:
    """The line; nothing is left of the download."""
    with pytest.raises(UserError) as caught:
        download.fetch(url, target, source="here", **settings)  # type: ignore[arg-type]
    assert str(caught.value).isprintable()
    assert os.listdir(target.parent) == []
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "ftp", "data", "HTTP"])
def test_only_https(tmp_path: Path, scheme: str) -> None:
    assert "is not https" in _refused(f"{scheme}://127.0.0.1:1/x", tmp_path / "new" / "x")


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/x", "ftp://127.0.0.1/x", "file:///x"])
def test_a_redirection_must_stay_https(tmp_path: Path, serve: Serve, target: str) -> None:
    publisher = serve(Publisher(CONTENT, redirect=target))
    line = _refused(f"{publisher.address}/to", tmp_path / "new" / "x")
    assert f"redirected to {target}, no https" in line


def test_a_redirection_within_https_is_followed_and_no_password_told(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert requests.utils.get_netrc_auth("https://127.0.0.1/x") == ("me", "secret")
    publisher = serve(Publisher(CONTENT))
    for number, target in enumerate(["/x", f"{publisher.address}/x"]):
        publisher.redirect = target
        path = _fetch(publisher, tmp_path / f"{number}", path="/to")
        assert path.read_bytes() == CONTENT
    _fetch(publisher, tmp_path / "directly")
    assert len(publisher.asked) == 3
    assert not any("Authorization" in headers for headers in publisher.asked)


def test_a_certificate_of_nobody_is_refused(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = serve(Publisher(CONTENT))
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    line = _refused(f"{publisher.address}/x", tmp_path / "new" / "x")
    assert "certificate verify failed" in line
    assert publisher.asked == []


def test_a_file_over_the_limit(tmp_path: Path, serve: Serve) -> None:
    origin = tmp_path / "origin"
    origin.write_bytes(bytes(1_000))
    download.fetch(origin.as_uri(), tmp_path / "a" / "x", source="here", limit=1_000)
    message = _refused(origin.as_uri(), tmp_path / "b" / "x", limit=999)
    assert "more than the 999 bytes allowed" in message
    publisher = serve(Publisher(CONTENT))
    message = _refused(f"{publisher.address}/x", tmp_path / "c" / "x", limit=len(CONTENT) - 1)
    assert "more than the 511,999 bytes allowed" in message


def test_a_file_of_this_machine_that_is_not_there(tmp_path: Path) -> None:
    line = _refused((tmp_path / "absent").as_uri(), tmp_path / "new" / "x")
    assert "No such file" in line
    assert "another machine" in _refused("file://elsewhere/x", tmp_path / "new" / "x")


def test_nobody_there_is_not_tried_again(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    serve(Publisher(CONTENT))  # elsewhere
    line = _refused("https://127.0.0.1:1/x", tmp_path / "new" / "x")
    assert "Connection refused" in line
    assert "attempt" not in line + caplog.text


def test_a_cut_is_gone_on_with_in_the_next_attempt(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    publisher = serve(Publisher(CONTENT, cuts=[CUT, 100_000]))
    assert _fetch(publisher, tmp_path / "new" / "x").read_bytes() == CONTENT
    assert os.listdir(tmp_path / "new") == ["x"]
    first, second, third = publisher.spans()
    assert first is None
    assert CUT - 2**16 <= _begin(second) <= CUT
    assert _begin(second) < _begin(third) <= CUT + 100_000
    assert [headers.get("If-Range") for headers in publisher.asked] == [None, *['"first"'] * 2]
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 2
    cut = "IncompleteRead(300000 bytes read, 212000 more expected)"
    assert lines[0] == f"downloading x: {cut}; attempt 2 of 3 follows in 0 s"


def _begin(span: str | None) -> int:
    assert span is not None
    return int(span.removeprefix("bytes=").removesuffix("-"))


def test_what_has_arrived_serves_the_next_run(tmp_path: Path, serve: Serve) -> None:
    publisher = serve(Publisher(CONTENT, cuts=[CUT, 0, 0]))
    target = tmp_path / "new" / "x"
    with pytest.raises(UserError) as caught:
        _fetch(publisher, target)
    begin = _begin(publisher.spans()[-1])
    assert f"{begin:,} bytes are kept, the same command goes on from there" in str(caught.value)
    assert "after 3 attempts" in str(caught.value)
    assert sorted(os.listdir(target.parent)) == [".x.part", ".x.part.json"]
    assert (target.parent / ".x.part").read_bytes()[:begin] == CONTENT[:begin]
    assert _fetch(publisher, target).read_bytes() == CONTENT
    assert publisher.spans()[-1] == f"bytes={begin}-"
    assert os.listdir(target.parent) == ["x"]


def _cut(serve: Serve, target: Path, **settings: object) -> Publisher:
    """A publisher of whose file a part has arrived."""
    settings = {"cuts": [CUT] * 3, "ranges": False} | settings
    publisher = serve(Publisher(CONTENT, **settings))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="attempts"):
        _fetch(publisher, target)
    publisher.ranges, publisher.asked = True, []
    return publisher


def test_the_time_of_the_last_change_will_do(tmp_path: Path, serve: Serve) -> None:
    publisher = _cut(serve, tmp_path / "x", etag='W/"weak"', modified=DATE)
    assert _fetch(publisher, tmp_path / "x").read_bytes() == CONTENT
    assert publisher.spans()[0] is not None
    assert publisher.asked[0]["If-Range"] == DATE


def test_a_server_without_ranges_begins_anew(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    publisher = _cut(serve, tmp_path / "x")
    publisher.ranges = False
    assert _fetch(publisher, tmp_path / "x").read_bytes() == CONTENT
    assert "beginning x anew: it has changed, or cannot be resumed" in caplog.text


def test_a_file_that_has_changed_begins_anew(tmp_path: Path, serve: Serve) -> None:
    publisher = _cut(serve, tmp_path / "x")
    publisher.content, publisher.etag = CONTENT[::-1] + b"longer", '"second"'
    assert _fetch(publisher, tmp_path / "x", None).read_bytes() == publisher.content
    assert len(publisher.asked) == 1  # the condition is the server's to judge


@pytest.mark.parametrize("settings", [{"etag": ""}, {"etag": 'W/"weak"'}])
def test_nothing_is_kept_of_a_file_that_cannot_be_told_from_another(
    tmp_path: Path, serve: Serve, settings: dict[str, str]
) -> None:
    publisher = _cut(serve, tmp_path / "new" / "x", **settings)
    assert os.listdir(tmp_path / "new") == []
    _fetch(publisher, tmp_path / "new" / "x")
    assert publisher.spans() == [None]


@pytest.mark.parametrize(
    "damage", ["", "{", '{"url": "https://elsewhere/x", "etag": "\\"first\\""}']
)
def test_a_part_with_a_damaged_or_foreign_note_begins_anew(
    tmp_path: Path, serve: Serve, damage: str
) -> None:
    publisher = _cut(serve, tmp_path / "x")
    (tmp_path / ".x.part.json").write_text(damage)
    assert _fetch(publisher, tmp_path / "x").read_bytes() == CONTENT
    assert publisher.spans() == [None]


def test_a_part_that_is_wrong_is_fetched_anew(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = _cut(serve, tmp_path / "x")
    part = tmp_path / ".x.part"
    part.write_bytes(b"?" + part.read_bytes()[1:])
    assert _fetch(publisher, tmp_path / "x").read_bytes() == CONTENT
    assert [span is None for span in publisher.spans()] == [False, True]
    assert "after it was resumed (its sha256 is" in caplog.text


def test_a_part_that_is_already_the_whole_is_recognised(tmp_path: Path, serve: Serve) -> None:
    """As after a kill between the last byte and the new name."""
    publisher = _cut(serve, tmp_path / "x")
    (tmp_path / ".x.part").write_bytes(CONTENT)
    assert _fetch(publisher, tmp_path / "x").read_bytes() == CONTENT
    assert publisher.spans() == [f"bytes={len(CONTENT) - 1}-"]


def test_a_wrong_sum_leaves_nothing(tmp_path: Path, serve: Serve) -> None:
    publisher = serve(Publisher(CONTENT))
    url = f"{publisher.address}/x"
    assert f"its sha256 is {SUM}" in _refused(url, tmp_path / "a" / "x", sha256="0" * 64)
    assert "its git blob id is" in _refused(url, tmp_path / "b" / "x", blob="0" * 40)


def test_a_busy_server_is_asked_again(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = serve(Publisher(CONTENT, answers=[503, 429]))
    assert _fetch(publisher, tmp_path / "x").read_bytes() == CONTENT
    assert len(publisher.asked) == 3
    assert "the server answers 503 Service Unavailable; attempt 2 of 3" in caplog.text


def test_a_file_that_is_not_there_is_asked_for_once(tmp_path: Path, serve: Serve) -> None:
    publisher = serve(Publisher(CONTENT, answers=[404] * 3))
    assert "404 Not Found" in _refused(f"{publisher.address}/x", tmp_path / "new" / "x")
    assert len(publisher.asked) == 1


def test_attempts_count_anew_while_there_is_progress(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_PROGRESS", 2**16)
    publisher = serve(Publisher(CONTENT, cuts=[2**17] * 3))
    monkeypatch.setattr(transfer, "PAUSES", (0.0,))
    assert _fetch(publisher, tmp_path / "x").read_bytes() == CONTENT


def test_two_processes_fetch_a_file_once(tmp_path: Path, serve: Serve) -> None:
    """A lock is of who opened the file, so two threads stand for them."""
    publisher = serve(Publisher(CONTENT, pause=0.05))
    found: list[bytes] = []

    def work() -> None:
        found.append(_fetch(publisher, tmp_path / "new" / "x").read_bytes())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 3
    assert len(publisher.asked) == 1
    assert os.listdir(tmp_path / "new") == ["x"]


def _without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has none."""

    def take(lock: FileLock) -> bool:
        lock.keeps_out = False
        return True

    monkeypatch.setattr(FileLock, "take", take)


def test_without_locks_each_has_a_part_of_its_own(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_locks(monkeypatch)
    publisher = serve(Publisher(CONTENT, pause=0.05))
    seen: set[str] = set()

    def work() -> None:
        _fetch(publisher, tmp_path / "new" / "x")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "new").is_dir():
            names = os.listdir(tmp_path / "new")
            seen.update(n for n in names if n.startswith(".x.") and n.endswith(".tmp"))
    assert len(seen) == 2
    assert (tmp_path / "new" / "x").read_bytes() == CONTENT
    assert os.listdir(tmp_path / "new") == ["x"]


def test_progress_is_told_in_bytes_of_how_many(
    tmp_path: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(long_steps, "_FIRST_SECONDS", 0.1)
    publisher = serve(Publisher(CONTENT, pause=0.1))
    with long_steps.long_step("reading x"):
        _fetch(publisher, tmp_path / "x")
    lines = [record.message for record in caplog.records if record.name == long_steps.__name__]
    told = [line for line in lines if line.startswith("downloading x: ")]
    assert any(" of 512.0 kB (" in line and "kB/s" in line for line in told)
    assert told[-1].startswith("downloading x: done in ")
    # who waits outside says nothing meanwhile
    assert not [line for line in lines[: lines.index(told[-1])] if "reading x" in line]


def test_a_zip_is_unpacked_once_by_whoever_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "raw"

    def exclusive(target: Path) -> AbstractContextManager[bool]:
        folder.mkdir()  # by another process, while this one has waited
        (folder / "a").touch()
        return original(target)

    original = download.exclusive
    monkeypatch.setattr(pyg_ogb, "exclusive", exclusive)
    pyg_ogb._fetch_unpacked("https://127.0.0.1:1/x.zip", folder, None, ("a",))
    assert os.listdir(folder.parent) == ["raw"]


def test_ogb_is_fetched_over_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(part: transfer.Part, limit: int) -> None:
        asked.append(part.url)
        raise OSError("no network")

    monkeypatch.setattr(download, "transfer", offline)
    url = pyg_ogb._ogb_info("ogbn-arxiv")["url"]
    with pytest.raises(UserError, match="no network"):
        pyg_ogb._fetch_unpacked(url, tmp_path / "new" / "ogbn_arxiv", "arxiv", ())
    assert asked == ["https://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"]


def test_nothing_is_kept_where_no_later_attempt_would_find_it(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_locks(monkeypatch)
    publisher = serve(Publisher(CONTENT, cuts=[CUT, 0, 0]))
    line = _refused(f"{publisher.address}/x", tmp_path / "new" / "x")
    assert "after 3 attempts" in line
    assert "are kept" not in line


def test_a_web_page_is_not_the_file(tmp_path: Path, serve: Serve) -> None:
    publisher = serve(Publisher(b"<html>Quota exceeded", kind="text/html; charset=utf-8"))
    line = _refused(f"{publisher.address}/x", tmp_path / "new" / "x")
    assert line.startswith("x is neither in")
    assert "the server answers with a web page in the place of the file" in line
    assert len(publisher.asked) == 1
