"""A publisher of one file on 127.0.0.1, over https, with the accidents that a test asks for."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Made for these tests and used nowhere else: openssl req -x509 -newkey ec ... -days 36500
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBhzCCAS6gAwIBAgIUfxrgBg3GpG7FUuI62Fmk+OnYB9YwCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFdGVzdHMwIBcNMjYxMTI5MTkzMzExWhgPMjEyNjExMDUxOTMz
MTFaMBAxDjAMBgNVBAMMBXRlc3RzMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
wJL1R3/A1Uvp6X1QKc+v5/M6yh8iuaydkmRddYjIYaBl84dpPsV18wXKRBchHRRU
jXiNM80LfJkwMWwb6Yp4QaNkMGIwHQYDVR0OBBYEFCgl0am4DV+hCvrmRCFE76lJ
H37cMB8GA1UdIwQYMBaAFCgl0am4DV+hCvrmRCFE76lJH37cMA8GA1UdEwEB/wQF
MAMBAf8wDwYDVR0RBAgwBocEfwAAATAKBggqhkjOPQQDAgNHADBEAiBeYEtcGfp5
OAqP67oxdUAdEsPQd1PuO2GXnHRbqGDtNQIgBEcJatJ9UzmTmUzY7GEyozmPjgsR
hiyyuX8521DtzRw=
-----END CERTIFICATE-----
"""
_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgoFPUiiB8WqZ8X+Uo
6N53EDfjbIPTf/MoGh4qSe94XdGhRANCAATAkvVHf8DVS+npfVApz6/n8zrKHyK5
rJ2SZF11iMhhoGXzh2k+xXXzBcpEFyEdFFSNeI0zzQt8mTAxbBvpinhB
-----END PRIVATE KEY-----
"""


@dataclass(slots=True)
class Publisher:
    """What is published and how.

    Args:
        content: of the file.
        etag, modified, kind: headers; empty for none.
        ranges: whether parts are served.
        cuts: bytes after which a connection ends, by request; None, or no entry, for never.
        answers: other status codes, by request; 200 for the file.
        redirect: where /to leads.
        pause: seconds before each 64 KiB.
        address: where it is, once it runs.
        asked: headers of the requests so far.
    """

    content: bytes
    etag: str = '"first"'
    modified: str = ""
    kind: str = ""
    ranges: bool = True
    cuts: list[int | None] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    redirect: str = ""
    pause: float = 0.0
    address: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    def spans(self) -> list[str | None]:
        """The parts that were asked for."""
        return [headers.get("Range") for headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    """Answers for the publisher of its server."""

    server: _Server

    def do_GET(self) -> None:
        publisher = self.server.publisher
        if self.path == "/to":
            self.send_response(302)
            self.send_header("Location", publisher.redirect)
            self.end_headers()
            return
        publisher.asked.append(dict(self.headers))
        status = publisher.answers.pop(0) if publisher.answers else 200
        cut = publisher.cuts.pop(0) if publisher.cuts else None
        if status != 200:
            self.send_error(status)
            return
        self._send(self._start(publisher), cut, publisher)

    def _start(self, publisher: Publisher) -> int:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (publisher.etag, publisher.modified)
        return int(wanted[1]) if wanted and same and publisher.ranges else 0

    def _send(self, start: int, cut: int | None, publisher: Publisher) -> None:
        content = publisher.content
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        headers = ("ETag", "Last-Modified", "Content-Type")
        values = (publisher.etag, publisher.modified, publisher.kind)
        for name, value in zip(headers, values, strict=True):
            if value:
                self.send_header(name, value)
        self.end_headers()
        end = len(content) if cut is None else start + cut
        for at in range(start, end, 2**16):
            self.server.stopping.wait(publisher.pause)
            self.wfile.write(content[at : min(at + 2**16, end)])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


class _Server(ThreadingHTTPServer):
    publisher: Publisher
    stopping: threading.Event

    def handle_error(self, *_: object) -> None:
        """Nothing on the terminal where a client leaves."""


@contextmanager
def published(publisher: Publisher, folder: Path, *, tls: bool = True) -> Iterator[Publisher]:
    """Serve it inside; ``folder`` receives certificate and key, CERTIFICATE as cert.pem."""
    running = _Server(("127.0.0.1", 0), _Handler)
    running.publisher, running.stopping = publisher, threading.Event()
    if tls:
        (folder / "cert.pem").write_text(CERTIFICATE)
        (folder / "key.pem").write_text(_KEY)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        running.socket = context.wrap_socket(running.socket, server_side=True)
    publisher.address = f"http{'s' * tls}://127.0.0.1:{running.server_address[1]}"
    thread = threading.Thread(target=running.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield publisher
    finally:
        running.stopping.set()
        running.shutdown()
        thread.join()
        running.server_close()
