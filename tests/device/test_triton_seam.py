"""Where kernels run and how large blocks are: what is asked in one place, without a GPU."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from distributed_ignn.device import block_size, triton_seam
from distributed_ignn.device.block_size import block_entries
from distributed_ignn.device.triton_seam import (
    SWITCH,
    kernels_obstacle,
    leave_to_torch,
    triton_kernels_for,
    triton_obstacle,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Properties of a GPU, whose memory may be changed."""
    properties = SimpleNamespace(total_memory=141 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    block_size._on_gpu.cache_clear()
    yield properties
    block_size._on_gpu.cache_clear()


def test_a_gpu_takes_arrays_whole_as_far_as_its_memory_allows(memory: SimpleNamespace) -> None:
    assert block_entries(CPU, 1 << 17) == 1 << 17
    # the state of ogbn-arxiv with 256 columns is one block, that of ogbn-products with 128 three
    assert block_entries(GPU, 1 << 17) > 169_343 * 256
    assert -(-2_449_029 * 128 // block_entries(GPU, 1 << 17)) == 3
    block_size._on_gpu.cache_clear()
    memory.total_memory //= 10
    assert block_entries(GPU, 1 << 17) * 8 * 128 <= memory.total_memory


def test_a_cpu_never_asks_for_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv(SWITCH, raising=False)
    assert triton_kernels_for("triton_history", torch.zeros(1), torch.float32) is None
    obstacle = triton_obstacle(CPU)
    assert obstacle is not None
    assert "this is a CPU" in obstacle


def test_kernels_can_be_switched_off_and_know_their_formats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_seam.importlib, "import_module", lambda name: name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv(SWITCH, raising=False)
    found: object = triton_kernels_for("triton_history", torch.zeros(1), torch.float32)
    assert found == "distributed_ignn.device.triton_history"
    assert triton_kernels_for("triton_codecs", torch.zeros(1), torch.float64) is None
    monkeypatch.setenv(SWITCH, "0")
    assert triton_kernels_for("triton_history", torch.zeros(1), torch.float32) is None


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Triton's driver of a machine that seems to have a GPU; ``active`` may be changed."""
    found = SimpleNamespace(active=SimpleNamespace(utils=object()))
    runtime = SimpleNamespace(driver=found)
    monkeypatch.setitem(sys.modules, "triton.runtime", cast(ModuleType, runtime))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(triton_seam.shutil, "which", lambda name: name)
    monkeypatch.setattr(triton_seam.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv(SWITCH, raising=False)
    triton_seam._against_compiling.cache_clear()
    yield found
    triton_seam._against_compiling.cache_clear()


def test_where_the_driver_is_there_kernels_run(driver: SimpleNamespace) -> None:
    assert triton_obstacle(GPU) is None
    assert kernels_obstacle(GPU) is None


def test_a_driver_that_does_not_build_is_said_once_and_left(
    driver: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """As with gcc, and without Python's headers."""

    class Unbuilt:
        @property
        def utils(self) -> object:
            raise subprocess.CalledProcessError(1, ["gcc", "driver.c"])

    driver.active = Unbuilt()
    rows = cast(Tensor, SimpleNamespace(dtype=torch.float32, device=GPU))
    for _ in range(2):
        assert triton_kernels_for("triton_history", rows, torch.float32) is None
        assert "CalledProcessError: Command '['gcc', 'driver.c']'" in str(triton_obstacle(GPU))
    [line] = caplog.messages
    assert "Python's headers" in line
    assert line.endswith("; torch's operations are used instead")


def test_ranks_that_agreed_to_do_without_do_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_seam.importlib, "import_module", lambda name: name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv(SWITCH, raising=False)
    leave_to_torch(True)
    try:
        assert triton_kernels_for("triton_history", torch.zeros(1), torch.float32) is None
        assert triton_obstacle(CPU) is None  # a product kernel that was asked for is apart
    finally:
        leave_to_torch(False)
    assert triton_kernels_for("triton_history", torch.zeros(1), torch.float32) is not None


def test_triton_is_asked_for_by_developers_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asking = [name for name, wanted in extras.items() if any("triton" in each for each in wanted)]
    assert asking == ["dev"]
    assert not any("triton" in each for each in project["dependencies"])
