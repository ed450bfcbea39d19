"""What a command shows of the library's log, and what it leaves behind."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_ignn.cli import leave, run_main, shown_log
from distributed_ignn.errors import Teller, UserError

LOGGER = logging.getLogger("distributed_ignn.graph.anything")


def _speak() -> None:
    LOGGER.info("downloading %s", "a.zip")
    LOGGER.debug("a detail")
    LOGGER.warning("not the published file")
    logging.getLogger("another_library").info("noise")


def test_the_log_is_shown_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("distributed_ignn")
    before = logger.level, logger.propagate, list(logger.handlers), list(logging.root.handlers)
    for _ in range(2):  # once for each command, however often
        assert run_main(_speak) == 0
        captured = capsys.readouterr()
        assert captured.err == "downloading a.zip\nwarning: not the published file\n"
        assert captured.out == ""
    after = logger.level, logger.propagate, list(logger.handlers), list(logging.root.handlers)
    assert after == before


def test_other_ranks_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, shown in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        run_main(_speak)
        assert ("downloading" in capsys.readouterr().err) == shown


def test_a_stream_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """As a worker of Ray shows it on the driver's screen."""
    stream = io.StringIO()
    with shown_log(stream):
        _speak()
    assert stream.getvalue().startswith("downloading a.zip\n")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("teller", "local_rank", "printed"),
    [
        ("machine", "0", True),  # of another machine, where nobody else can tell
        ("machine", "1", False),
        ("job", "0", False),
        ("rank", "1", True),
    ],
)
def test_who_tells_of_a_mistake(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    teller: Teller,
    local_rank: str,
    printed: bool,
) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)

    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)

    def fail() -> None:
        error = UserError("no such file")
        error.teller = teller
        raise error

    assert run_main(fail) == 2
    assert capsys.readouterr().err == ("error: no such file\n" if printed else "")
    assert len(waited) == (not printed)  # the one that tells is ended if another is sooner


_A_RANK = """
import atexit, threading, torch.distributed as dist
from distributed_ignn.cli import leave
atexit.register(print, "last word")
wait = dist.FileStore({store!r}, -1).get
threading.Thread(target=wait, args=("never",), daemon=True).start()
atexit.register(__import__("time").sleep, 0.2)
print("first", end=" ")
leave(75)
"""


def test_a_rank_leaves_with_its_own_code_while_a_thread_waits_in_a_store(tmp_path: Path) -> None:
    code = _A_RANK.format(store=str(tmp_path / "store"))
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (75, "first last word\n", "")


def test_a_process_of_its_own_leaves_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as left:
        leave(3)
    assert left.value.code == 3
