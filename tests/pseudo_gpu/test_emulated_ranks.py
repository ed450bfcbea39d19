"""Training, runs, prediction and DeepSpeed on two emulated ranks, beside the same on CPUs.

All that needs ranks shares two starts.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.runs.predict import PredictOptions, predict
from tests.parity.cases import sum_reports
from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu.emulated import largest_difference, run_emulated
from tests.pseudo_gpu.entered import emulator
from tests.pseudo_gpu.scenarios import EPOCHS, of_any_cut, of_this_cut, whole_run
from tests.ranks import run_ranks
from tests.training import test_deepspeed

pytestmark = pytest.mark.timeout(300)

EXACT = 1e-12


def _everything(comm: Communicator, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"any cut": of_any_cut(comm), "this cut": of_this_cut(comm)}
    assert comm.backend == "nccl"
    found["run"] = whole_run(comm, folder)
    assert emulator().counts.total(kinds.NCCL) > 1000
    assert emulator().counts.total(kinds.CAPTURED) > 100, "no solve was recorded"
    assert emulator().most_events < 100, "timing events pile up"
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulated")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return run_emulated(_everything, 2, folder)


def test_epochs_local_steps_and_explicit_kinds_agree_with_one_cpu_process(
    ranks: list[dict[str, Any]],
) -> None:
    whole = of_any_cut(Communicator())
    found = sum_reports([rank["any cut"] for rank in ranks])
    assert found.keys() == whole.keys()
    assert found["anderson"]["losses"].numel() == EPOCHS
    for name, numbers in whole.items():
        worst, what = largest_difference(found[name], numbers)
        assert worst <= EXACT, (name, what, worst)


def test_rounded_and_old_halo_rows_agree_with_two_cpu_ranks(ranks: list[dict[str, Any]]) -> None:
    on_cpu = sum_reports(run_ranks(of_this_cut, 2))
    found = sum_reports([rank["this cut"] for rank in ranks])
    for name, numbers in on_cpu.items():
        worst, what = largest_difference(found[name], numbers)
        assert worst <= EXACT, (name, what, worst)


def test_a_run_resumes_is_tuned_and_predicts(ranks: list[dict[str, Any]], folder: Path) -> None:
    """And a CPU predicts the same from its folder."""
    for rank in ranks:
        straight, resumed, tuned, quality = rank["run"]
        assert straight == resumed
        assert tuned
        assert quality["converged"]
    lines = {}
    for name in ("straight", "broken"):
        records = (folder / name / "metrics.jsonl").read_text().splitlines()
        lines[name] = [json.loads(line)["loss"] for line in records]
    assert lines["straight"] == lines["broken"]
    assert len(lines["straight"]) == 4
    with np.load(folder / "predictions.npz") as emulated:
        found = {key: emulated[key] for key in emulated.files}
    predict(PredictOptions(folder / "broken", folder / "cpu.npz"), Communicator())
    with np.load(folder / "cpu.npz") as expected:
        assert set(expected.files) == set(found)
        numeric = [key for key in expected.files if expected[key].dtype.kind in "fi"]
        assert len(numeric) > 1
        for key in numeric:
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
def test_deepspeed_steps_as_plain_torch_does() -> None:
    run_emulated(_deepspeed, 2)


def _deepspeed(comm: Communicator) -> None:
    test_deepspeed.check_same_weights(comm, test_deepspeed.run_config())
    test_deepspeed.check_infinite_gradient_on_one_rank(comm)
