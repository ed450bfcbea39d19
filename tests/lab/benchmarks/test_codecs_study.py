"""The study of halo codecs on a trained run: one fixed point, fewer bytes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.lab.benchmarks.codec_study import BASELINE, CodecOptions, run
from distributed_ignn.runs.run import run_training
from tests.ranks import run_ranks

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(200)]


def _train_and_study(comm: Communicator, folder: str) -> None:
    config = RunConfig.model_validate(
        {
            "dataset": "chains",
            "data": {"chains": {"length": 6, "chains_per_class": 8}},
            "model": {"hidden": 32},
            "forward": {"method": "neural"},
            "partition": {"method": "random"},  # METIS would cut no chain
            "schedule": {"warmup_epochs": 2},
            "train": {"epochs": 4},
            "output": Path(folder) / "run",
        }
    )
    run_training(config, comm)
    options = CodecOptions(Path(folder) / "run", rounds=1, codecs=("int8", "int4"))
    study = run(options, comm)
    if comm.is_main:
        study.report.write(Path(folder) / "study.json")
        study.write_csv(Path(folder) / "study.csv")
        study.write_plot(Path(folder) / "study.png")


def test_codecs_end_at_the_same_point_with_fewer_bytes(tmp_path: Path) -> None:
    run_ranks(_train_and_study, 2, str(tmp_path), timeout=150)
    figures = json.loads((tmp_path / "study.json").read_text())["figures"]
    assert {f["section"] for f in figures} == {"picard", "anderson", "learned"}
    assert {f["baseline"] for f in figures} == {BASELINE}
    ratios = {
        (f["section"], f["name"]): f["ratio"]
        for f in figures
        if f["unit"] == "bytes per evaluation"
    }
    for method in ("picard", "anderson"):
        # 32 columns: 128 bytes against 33 and 17
        assert ratios[method, "int8"] == pytest.approx(128 / 33)
        assert ratios[method, "int4"] == pytest.approx(128 / 17)
    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 5
    exact = {row["method"]: float(row["distance"]) for row in rows if row["codec"] == BASELINE}
    for row in rows:
        assert float(row["distance"]) < 2 * exact[row["method"]] + 1e-5
        assert float(row["exact residual"]) < 1.1 * float(row["residual"])
    assert (tmp_path / "study.png").stat().st_size > 0
