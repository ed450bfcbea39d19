"""Downloads: limited, whole, and over https whatever a server answers."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import download, pyg_ogb


class _Server(BaseHTTPRequestHandler):
    """/to/SCHEME redirects there; /short announces more than it sends; others send ten bytes."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", f"{self.path[4:]}://127.0.0.1:1/file")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", "20" if self.path == "/short" else "10")
        self.end_headers()
        self.wfile.write(b"0123456789")

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    thread.join()
    running.server_close()


def _refused(url: str, target: Path, **settings: int) -> str:
    with pytest.raises(UserError) as caught:
        download.fetch(url, target, source="here", **settings)  # type: ignore[arg-type]
    assert str(caught.value).isprintable()
    assert os.listdir(target.parent) == []
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "ftp", "data", "HTTP"])
def test_only_https(tmp_path: Path, scheme: str) -> None:
    assert "is not https" in _refused(f"{scheme}://127.0.0.1:1/x", tmp_path / "new" / "x")


def test_a_redirection_must_stay_https(server: str) -> None:
    opener = urllib.request.build_opener(download._HttpsOnly)
    for scheme in ("http", "ftp", "file"):
        # urllib itself refuses files, as an HTTPError
        with pytest.raises(urllib.error.URLError) as caught:
            opener.open(f"{server}/to/{scheme}", timeout=10)
        if isinstance(caught.value, urllib.error.HTTPError):
            caught.value.close()
        else:
            assert "no https" in str(caught.value)
    with pytest.raises(urllib.error.URLError, match="refused"):  # followed: nobody listens there
        opener.open(f"{server}/to/https", timeout=10)


def test_a_file_over_the_limit(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.write_bytes(bytes(1_000))
    download.fetch(origin.as_uri(), tmp_path / "a" / "x", source="here", limit=1_000)
    message = _refused(origin.as_uri(), tmp_path / "b" / "x", limit=999)
    assert "more than the 999 bytes allowed" in message


def test_a_download_that_ends_early(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_SCHEMES", ("http",))  # the server has no certificate
    assert "20 were announced" in _refused(f"{server}/short", tmp_path / "new" / "x")
    download.fetch(f"{server}/whole", tmp_path / "new" / "x", source="here")
    assert (tmp_path / "new" / "x").read_bytes() == b"0123456789"


def test_ogb_is_fetched_over_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(url: str, *_: object) -> str:
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr(download, "_download", offline)
    url = pyg_ogb._ogb_info("ogbn-arxiv")["url"]
    with pytest.raises(UserError, match="no network"):
        pyg_ogb._fetch_unpacked(url, tmp_path / "new" / "ogbn_arxiv", inner="arxiv")
    assert asked == ["https://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"]
