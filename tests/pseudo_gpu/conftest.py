"""Skips these tests where no GPU can be emulated; they are a process of their own (Makefile)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pseudo_gpu import preload
from tests.pseudo_gpu.emulator import EmulatedGPU

_HERE = Path(__file__).parent
TABLE = "what an evaluation asks of a GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if preload.OBSTACLE is not None:
        skip = pytest.mark.skip(reason=preload.OBSTACLE)
        for item in items:
            if _HERE in item.path.parents:
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of a test that has recorded one, whichever process it ran in."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", ()):
                if name == TABLE and report.when == "call":
                    terminalreporter.section(TABLE)
                    terminalreporter.write_line(text)


@pytest.fixture
def gpu() -> Iterator[EmulatedGPU]:
    """Two emulated GPUs."""
    with EmulatedGPU(2) as entered:
        yield entered
