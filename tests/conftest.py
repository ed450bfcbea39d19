"""What all tests share: their order, fixed seeds, and the real datasets where they are at hand."""

from __future__ import annotations

import multiprocessing.util
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

_BESIDE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"

# What a folder's tests need, cheapest first: one process; several ranks; whole programs. Files
# beside this one and folders that are not listed come before all of these.
_ONE_PROCESS = ("reading", "urls", "graph", "device", "propagation", "solvers", "models", "nn")
_TIERS = (
    *_ONE_PROCESS,
    "comm",
    "launchers",
    "training",
    "runs",
    "fuzz",
    "parity",
    "api",
    "lab",
    "launch",
    "docs",
    "inputs",
    "package",
    "pseudo_gpu",
    "clusters",
    "faults",
)


def pytest_configure() -> None:
    """What has to be so before the first test."""
    # The folder of multiprocessing's sockets. Ranks are forked from a server that is started once,
    # maybe in a test that moves the temporary folder: its name may be too long for a socket, and
    # it is gone after the test.
    multiprocessing.util.get_temp_dir()
    # Ray's 15 gives its workers what time is left over by the tests beside them.
    os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run cheap tests first, so that a mistake shows early; long ones only if asked to.

    Of the slow ones whole programs come first: what several workers share ends with small pieces.
    """
    items.sort(key=_cost)
    for item in items:
        if _folder(item) in _ONE_PROCESS:
            item.add_marker(pytest.mark.cheap)
    if "IGNN_LONG_TESTS" not in os.environ:
        skip = pytest.mark.skip(reason="takes long; make long, or set IGNN_LONG_TESTS=1")
        for item in items:
            if item.get_closest_marker("long") is not None:
                item.add_marker(skip)


def _cost(item: pytest.Item) -> tuple[bool, int]:
    folder = _folder(item)
    tier = _TIERS.index(folder) if folder in _TIERS else -1
    slow = item.get_closest_marker("slow") is not None
    return slow, -tier if slow else tier


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    """The same random numbers for each test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test use the global generator
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real datasets; the test is skipped where it is absent."""
    override = os.environ.get("IGNN_SHARED_DATA")
    folder = Path(override) if override else _BESIDE_REPOSITORY
    if not folder.is_dir():
        pytest.skip(f"real datasets are not at {folder}; set IGNN_SHARED_DATA to their folder")
    return folder
