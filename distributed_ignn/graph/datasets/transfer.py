"""One file from one address onto the disk: resumed where it was cut, tried again where that helps.

What has arrived of a file lies beside it as ``.NAME.part``, with what the server said of the whole
in ``.NAME.part.json``. A later attempt asks for the rest (HTTP ``Range``) on the condition that the
file is still that one (``If-Range``, by a strong ETag or the time of the last change); a server
that answers with the whole file, or with another one, is followed from byte 0. Nothing is kept of a
file that has neither.

requests does the transport: proxies, TLS, redirections. The attempts are counted here and not by
urllib3's ``Retry``, which knows nothing of a body that ends early, the usual accident of a large
file, and says nothing while it waits. pooch (1.9) begins every attempt at byte 0, follows
redirections to http and knows no limit of size.
"""

from __future__ import annotations

import http.client
import logging
import re
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
import urllib3.exceptions
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.filesize import decimal

from distributed_ignn.files import atomic_write_text
from distributed_ignn.long_steps import LongStep, long_step
from distributed_ignn.reading.plain_files import in_one_line, read_plain

logger = logging.getLogger(__name__)

SCHEMES = ("https", "file")
PAUSES = (1.0, 4.0, 15.0, 60.0)
"""Seconds before each further attempt; they count anew once ``_PROGRESS`` bytes have arrived."""

_PROGRESS = 2**20
_CONNECT_SECONDS, _SILENCE_SECONDS = 30.0, 60.0
_PIECE = 2**16
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_FINAL = requests.exceptions.SSLError, requests.exceptions.ProxyError
_STATE_LIMIT = 2**16


class CutShortError(OSError):
    """The last attempt failed, too; what has arrived may be kept.

    Args:
        message: the reason.
    """


class _BusyError(OSError):
    """The server, or the way to it, may do better in a moment."""


class _State(BaseModel):
    """What is known of a file of which a part has arrived.

    Args:
        url: its address.
        length: bytes of the whole; None where the server does not say.
        etag, modified: as the server names its content; empty where it does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: str
    length: int | None = Field(default=None, ge=0)
    etag: str = ""
    modified: str = ""

    @property
    def condition(self) -> str:
        """For ``If-Range``, which wants a strong ETag; empty where nothing identifies the file."""
        strong = self.etag.startswith('"') and self.etag.isprintable()
        return self.etag if strong else self.modified if self.modified.isprintable() else ""


class _HttpsOnly(requests.Session):
    """A session that leaves https nowhere and shows nobody a password of the user.

    Certificates are checked against those that Python itself trusts, which a site may have added
    to, or ``REQUESTS_CA_BUNDLE``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.verify = _trusted()
        self.auth = lambda request: request  # else that of .netrc
        # the bytes themselves are checked, not what they unpack to
        self.headers["Accept-Encoding"] = "identity"

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """As in requests; a redirection must not lead to where anybody can change the file."""
        target = super().get_redirect_target(resp)
        if target is not None:
            absolute = urllib.parse.urljoin(resp.url, target)
            if urllib.parse.urlsplit(absolute).scheme != "https":
                resp.close()
                raise PermissionError(f"redirected to {in_one_line(absolute)}, no https")
        return target

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """No password for where a redirection leads either; requests would look into .netrc."""
        prepared_request.headers.pop("Authorization", None)


def _trusted() -> str | bool:
    """Python's own certificates, in a file or a folder; those of requests where it has none."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return paths.cafile
    return paths.capath if paths.capath and any(Path(paths.capath).iterdir()) else True


class Part:
    """The bytes that have arrived of a file, and what they are bytes of.

    Args:
        path: where they are written to.
        url: of the file.
        name: of the file, for messages.

    Attributes:
        resumed: whether the bytes come from several attempts.
    """

    def __init__(self, path: Path, url: str, name: str) -> None:
        self.path, self.url, self.name = path, url, name
        self._note = path.with_name(f"{path.name}.json")
        self.resumed = False

    def state(self) -> tuple[int, _State] | None:
        """Where to go on and on which condition; None where only byte 0 is right."""
        try:
            known = _State.model_validate_json(read_plain(self._note, _STATE_LIMIT))
            size = self.path.stat().st_size
        except (OSError, ValidationError):
            return None
        if known.url != self.url or not known.condition:
            return None
        if known.length is not None:
            size = min(size, known.length - 1)  # a server has no answer to a question for nothing
        return (size, known) if size > 0 else None

    def begin(self, state: _State) -> None:
        """Drop what is there and remember what is going to be."""
        self.drop()
        if state.condition:
            atomic_write_text(self._note, state.model_dump_json())

    def kept(self) -> int:
        """Bytes that a later attempt goes on from; what cannot be resumed is dropped."""
        found = self.state()
        if found is None:
            self.drop()
        return 0 if found is None else found[0]

    def drop(self) -> None:
        """Remove all of it."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def become(self, target: Path) -> None:
        """Take the place of ``target``."""
        self.path.replace(target)
        self._note.unlink(missing_ok=True)


def transfer(part: Part, limit: int) -> None:
    """Bring the whole file into ``part``, which may hold its beginning already.

    Args:
        part: of an address that is https, or file.
        limit: bytes at most.

    Raises:
        CutShortError: it could not be fetched in several attempts.
        OSError: it cannot be fetched or written.
        ValueError: the address is of another kind, or the file is larger than ``limit``.
    """
    scheme = urllib.parse.urlsplit(part.url).scheme
    if scheme not in SCHEMES:
        raise ValueError(f"{in_one_line(part.url)} is not https")
    with long_step(f"downloading {part.name}") as told:
        if scheme == "file":
            _copy(part, limit, told)
            return
        failures, reached = 0, False
        with _HttpsOnly() as session:
            while True:
                before = told.done
                try:
                    with _network_errors(reached):
                        _attempt(session, part, limit, told)
                    return
                except _BusyError as error:
                    reached = True
                    failures = 1 if told.done - before >= _PROGRESS else failures + 1
                    _pause(failures, part.name, error)


def _pause(failures: int, name: str, error: OSError) -> None:
    """Wait before the next attempt, and say why.

    Raises:
        CutShortError: there is none.
    """
    if failures > len(PAUSES):
        raise CutShortError(f"{error}, after {failures} attempts") from error
    pause = PAUSES[failures - 1]
    line = "downloading %s: %s; attempt %d of %d follows in %g s"
    logger.warning(line, name, error, failures + 1, len(PAUSES) + 1, pause)
    time.sleep(pause)


@contextmanager
def _network_errors(reached: bool) -> Iterator[None]:
    """What the network may do better next time, as one kind of error.

    Args:
        reached: whether the server has answered before, so that it is no wrong address.
    """
    try:
        yield
    except requests.ConnectionError as error:
        cause = _cause(error)
        # no network, no such host, or nobody listens there
        absent = isinstance(cause, urllib3.exceptions.NewConnectionError) and not reached
        if absent or isinstance(error, _FINAL):
            raise OSError(_brief(cause)) from error
        raise _BusyError(_brief(cause)) from error
    except (requests.Timeout, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
        raise _BusyError(_brief(_cause(error))) from error


def _cause(error: BaseException) -> BaseException:
    """What requests and urllib3 have wrapped, several times over."""
    inner = getattr(error, "reason", None) or (error.args[-1] if error.args else None)
    return _cause(inner) if isinstance(inner, BaseException) else error


def _brief(error: BaseException) -> str:
    """The reason alone, without the connection that urllib3 names before it."""
    return re.sub(r"^\w+\([^()]*\): ", "", in_one_line(str(error) or type(error).__name__))


def _attempt(session: _HttpsOnly, part: Part, limit: int, told: LongStep) -> None:
    """Ask for the file, or for the rest of it, and write what comes.

    Raises:
        _BusyError: the server has no time, or it ended early.
    """
    found = part.state()
    headers = {}
    if found is not None:
        headers = {"Range": f"bytes={found[0]}-", "If-Range": found[1].condition}
    timeout = _CONNECT_SECONDS, _SILENCE_SECONDS
    with session.get(part.url, headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code in _BUSY:
            raise _BusyError(f"the server answers {_status(response)}")
        start = 0 if found is None else _resumed_at(response, *found)
        if found is not None and response.status_code in (206, 416) and not start:
            part.drop()  # an answer to another question: ask for the whole
            raise _BusyError("the server has another file than the one that was cut")
        if response.status_code != (206 if start else 200):
            raise OSError(f"the server answers {_status(response)}")
        if response.headers.get("Content-Type", "").strip().lower().startswith("text/html"):
            # of a quota, or of a network that wants a password first
            raise OSError("the server answers with a web page in the place of the file")
        length = _length(response, start)
        if length is not None and length > limit:
            raise ValueError(f"it has {length:,} bytes, more than the {limit:,} bytes allowed")
        if start:
            part.resumed = True
            logger.info("going on with %s at %s", part.name, decimal(start))
        else:
            if found is not None:
                logger.info("beginning %s anew: it has changed, or cannot be resumed", part.name)
            names = {"etag": "ETag", "modified": "Last-Modified"}
            said = {key: response.headers.get(name, "") for key, name in names.items()}
            part.begin(_State(url=part.url, length=length, **said))
        told.total = length
        told.begin_at(start)
        _write(response, part, limit, told)
    if length is not None and told.done != length:
        raise _BusyError(f"{told.done:,} bytes came where {length:,} were announced")


def _status(response: requests.Response) -> str:
    return f"{response.status_code} {in_one_line(response.reason or '')}".strip()


def _resumed_at(response: requests.Response, size: int, known: _State) -> int:
    """The byte at which the answer goes on with the same file; 0 where it does not."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    place, _, whole = span.partition("/")
    same = response.headers.get("ETag", known.etag) == known.etag
    lengths = {whole, "*" if known.length is None else str(known.length)} - {"*"}
    fits = unit == "bytes" and place.startswith(f"{size}-") and len(lengths) <= 1
    return size if response.status_code == 206 and fits and same else 0


def _length(response: requests.Response, start: int) -> int | None:
    text = response.headers.get("Content-Length", "")
    return start + int(text) if text.isascii() and text.isdigit() else None


def _write(response: requests.Response, part: Part, limit: int, told: LongStep) -> None:
    mode = "r+b" if told.done else "xb"
    with part.path.open(mode) as stream:
        stream.seek(told.done)
        stream.truncate()
        while piece := response.raw.read(_PIECE, decode_content=False):
            _check_size(told.done + len(piece), limit)
            stream.write(piece)
            told.advance(len(piece))


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"it has more than the {limit:,} bytes allowed")


def _copy(part: Part, limit: int, told: LongStep) -> None:
    """The same for a file of this machine."""
    address = urllib.parse.urlsplit(part.url)
    if address.netloc not in ("", "localhost"):
        raise ValueError(f"{in_one_line(part.url)} is on another machine")
    part.drop()
    with (
        Path(urllib.request.url2pathname(address.path)).open("rb") as source,
        part.path.open("xb") as stream,
    ):
        told.total = source.seek(0, 2)
        source.seek(0)
        while piece := source.read(_PIECE):
            _check_size(told.done + len(piece), limit)
            stream.write(piece)
            told.advance(len(piece))
