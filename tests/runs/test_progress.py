"""What rank 0 shows a person on the way and at the end."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from distributed_ignn.cli import hushed, shown_log
from distributed_ignn.runs.memory.budget_check import BudgetReport
from distributed_ignn.runs.output.progress import Progress
from tests.runs.test_records import record_of

_GIB = 2**30


def _progress(stream: io.StringIO, **options: bool) -> Progress:
    console = Console(file=stream, width=80, highlight=False)
    return Progress(40, enabled=True, console=console, **options)


def _report(needed: int) -> BudgetReport:
    return BudgetReport({"history": 3 * _GIB}, needed, needed, needed, 10 * _GIB, 2)


@pytest.mark.parametrize(("needed", "whole"), [(6 * _GIB, False), (8 * _GIB, True)])
def test_memory_is_a_line_unless_it_is_tight(needed: int, whole: bool) -> None:
    stream = io.StringIO()
    _progress(stream).budget(_report(needed))
    text = stream.getvalue()
    assert ("history" in text) == whole
    if not whole:
        assert text == "memory: about 6.00 GiB for 2 ranks, of 10.0 GiB\n"


def test_words_of_epoch_lines_are_explained_once() -> None:
    stream = io.StringIO()
    progress = _progress(stream)
    for epoch in (1, 2, 4):
        progress.epoch(record_of(epoch))
    text = stream.getvalue()
    assert text.count("evals: evaluations of the map") == 1
    assert text.count("epoch ") == 3
    assert max(map(len, text.splitlines())) <= 80


def test_quiet_shows_no_more_than_warnings() -> None:
    stream = io.StringIO()
    progress = _progress(stream, quiet=True)
    progress.status("loading")
    progress.budget(_report(8 * _GIB))
    progress.resumed(3)
    progress.epoch(record_of(1))
    logger = logging.getLogger("distributed_ignn.anything")
    with shown_log(stream), hushed():
        logger.info("a detail")
        logger.warning("a doubt")
    assert stream.getvalue() == "warning: a doubt\n"
