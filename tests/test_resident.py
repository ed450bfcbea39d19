"""The peak of a step is that of the step, not of what came before it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distributed_ignn.resident import read_peak, reset_peak

_MB = 2**20


def _resident(size: int) -> int:
    """Bytes of an array that is written to, so that it is there."""
    return int(np.ones(size, np.uint8).sum(dtype=np.int64))


def test_each_step_has_its_own_peak() -> None:
    start = reset_peak()
    _resident(200 * _MB)
    large = read_peak(start).process
    start = reset_peak()
    small = read_peak(start).process
    if large == small:
        pytest.skip("the kernel does not let its mark be reset")
    assert 150 * _MB < large - small < 260 * _MB


def test_a_larger_child_is_seen_and_a_smaller_one_is_not() -> None:
    start = reset_peak()
    own = read_peak(start).process
    program = f"import numpy; numpy.ones({own + 300 * _MB}, numpy.uint8)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert own + 300 * _MB < read_peak(start).child < own + 500 * _MB
    start = reset_peak()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    assert read_peak(start).child == 0


_ALLOCATE = """
from importlib import import_module
from pathlib import Path
from distributed_ignn.cli import run_main
from distributed_ignn.commands.table import COMMANDS
for module, _ in COMMANDS.values():  # no import may make a tensor, after which torch has decided
    import_module(f"distributed_ignn.commands.{module}")
def allocate():
    import torch
    block = torch.ones(2**24)
    rollup = Path("/proc/self/smaps_rollup").read_text().split()
    print(1024 * int(rollup[rollup.index("AnonHugePages:") + 1]))
"""


@pytest.mark.parametrize(("start", "huge"), [("run_main(allocate)", True), ("allocate()", False)])
def test_commands_get_huge_pages_and_other_programs_do_not(start: str, huge: bool) -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[madvise]" not in setting.read_text():
        pytest.skip("this kernel does not give huge pages to those that ask for them alone")
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", _ALLOCATE + start]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (int(done.stdout) > 32 * _MB) is huge  # of a block of 64 MB
