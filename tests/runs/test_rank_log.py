"""Each rank's log: JSON lines with rank, epoch and phase, at the level that was asked for."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from distributed_ignn.cli import LOG_ONLY, shown_log
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.runs.output.rank_log import log_path, rank_log

logger = logging.getLogger("distributed_ignn.some.part")


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_path(output, 0).read_text().splitlines()]


def _say_something(comm: Communicator) -> None:
    comm.activity.epoch = 4
    with comm.activity.phase("forward solve"):
        logger.info("for %s", "all")
        logger.info("for the file", extra=LOG_ONLY)
        logger.warning("careful")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed")


@pytest.mark.parametrize(
    ("level", "messages"),
    [
        ("debug", ["begins", "for all", "for the file", "careful", "failed"]),
        ("info", ["for all", "for the file", "careful", "failed"]),
        ("error", ["failed"]),
    ],
)
def test_lines_are_objects_from_the_level_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str, messages: list[str]
) -> None:
    comm = Communicator()
    with shown_log(), rank_log(tmp_path, comm, level):
        _say_something(comm)
    found = _lines(tmp_path)
    assert [line["message"] for line in found] == messages
    for line in found:
        assert line.keys() >= {"time", "level", "rank", "pid", "epoch", "phase", "origin"}
        assert (line["rank"], line["epoch"]) == (0, 4)
    assert "ValueError: two" in found[-1]["exception"]
    if level == "debug":
        assert found[0]["phase"] == "forward solve"
        assert found[-1]["phase"] == "starting"
    # whatever the file holds, the screen shows what it always shows
    shown = capsys.readouterr().err
    assert "for all\nwarning: careful\n" in shown
    assert "for the file" not in shown
    assert "begins" not in shown


def test_a_second_attempt_appends_and_the_level_is_put_back(tmp_path: Path) -> None:
    before = logging.getLogger("distributed_ignn").level
    for _ in range(2):
        with rank_log(tmp_path, Communicator(), "debug"):
            logger.debug("here")
    assert [line["message"] for line in _lines(tmp_path)] == ["here", "here"]
    assert logging.getLogger("distributed_ignn").level == before


def test_a_full_disk_does_not_disturb(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = log_path(tmp_path, 0)
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    with rank_log(tmp_path, Communicator(), "info"):
        logger.info("lost")
    assert capsys.readouterr().err == ""
