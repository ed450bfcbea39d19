"""Real epochs on this machine against their forecast; bounds are loose where time is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distributed_ignn.lab.planning import calibration, probes, validation
from distributed_ignn.lab.planning.hardware import load_profile, write_profile
from distributed_ignn.lab.planning.validation import Case, Measurement, validate


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_bytes_are_forecast_exactly_and_seconds_and_memory_nearly(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    sizes = ((2_000, 64), (4_000, 64), (8_000, 128))
    profile = calibration.calibrate("here", told.append, sizes=sizes)
    assert "measuring one rank" in told
    path = tmp_path / "here.yaml"
    write_profile(path, profile)
    assert load_profile(str(path)) == profile
    assert yaml.safe_load(path.read_text())["origin"] == "measured"
    case = Case(scale=0.005, width=64, ranks=2, method="neural", steps=3)
    (found,) = validate([case], profile, 2, told.append)
    predicted, measured = found.predicted, found.measured
    assert predicted.bytes == pytest.approx(measured.bytes, rel=0.02)
    assert measured.memory / 1.6 < predicted.memory < measured.memory * 1.6
    # epochs of a tenth of a second wait for whatever else runs, so the bound below is loose
    assert measured.seconds / 20 < predicted.seconds < measured.seconds * 4


def test_measurements_of_ranks_join_as_slowest_sum_and_largest() -> None:
    joined = validation.join([Measurement(1.0, 10.0, 5.0), Measurement(2.0, 10.0, 3.0)])
    assert joined == Measurement(2.0, 10.0, 5.0)


def test_sizes_of_the_probes_ascend_so_that_their_points_do() -> None:
    for width in probes.WIDTHS:
        sizes = [rows * width for rows, _ in probes.SIZES]
        assert sizes == sorted(set(sizes))
    sizes = [rows * width for rows, width in probes.SIZES]
    assert sizes == sorted(set(sizes))
