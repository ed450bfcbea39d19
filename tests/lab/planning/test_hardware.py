"""Profiles: what is shipped can be used, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distributed_ignn.errors import UserError
from distributed_ignn.lab.planning.hardware import (
    FOLDER,
    Curve,
    load_profile,
    shipped,
    write_profile,
)
from tests.lab.planning.small import machine


@pytest.mark.parametrize("name", ["h200", "h100", "a100"])
def test_shipped_profiles_are_marked_as_specifications_below_their_data_sheet(name: str) -> None:
    assert name in shipped()
    profile = load_profile(name)
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert profile.origin == "specification"
    assert profile.date is None
    sheet = raw["memory_bytes"]
    assert profile.memory_bytes == pytest.approx(sheet["spec"] * sheet["derate"])
    assert profile.memory_bytes < sheet["spec"]
    assert set(profile.networks) == {"infiniband", "ethernet100", "ethernet25"}
    fast, slow = profile.outside, profile.with_network("ethernet25").outside
    assert slow.rate.each(8) < fast.rate.each(8) < profile.inside.rate.each(8)


def test_a_written_profile_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.yaml"
    profile = machine(date="2026-01-02")
    write_profile(path, profile)
    assert load_profile(str(path)) == profile


def test_rates_between_points_follow_the_logarithm_of_the_size() -> None:
    points = [{"bytes": 1e3, "rate": {"rank": 4.0}}, {"bytes": 1e5, "rate": {"rank": 1.0}}]
    curve = Curve.model_validate({"points": points})
    assert [curve.each(size, 1) for size in (1.0, 1e3, 1e5, 1e9)] == [4.0, 4.0, 1.0, 1.0]
    assert 1.0 / curve.each(1e4, 1) == pytest.approx((1 / 4 + 1) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 2.0}, "hidden"),
        ({"dense": {"rank": -1}}, "dense.rank"),
        ({"dense": {"rank": {"spec": 5.0, "derate": 2.0, "why": "x"}}}, "derate"),
        ({"speed": 1}, "speed"),
        ({"network": "carrier pigeon"}, "carrier pigeon"),
    ],
)
def test_a_wrong_profile_is_one_line_that_names_the_key(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(machine().model_dump(mode="json") | change))
    with pytest.raises(UserError, match=message) as caught:
        load_profile(str(path))
    assert "\n" not in str(caught.value)


def test_unknown_profiles_and_networks_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'h200'"):
        load_profile("h2000")
    with pytest.raises(UserError, match="did you mean 'infiniband'"):
        load_profile("h200").with_network("infinband")
    with pytest.raises(UserError, match="does not exist"):
        load_profile("nowhere.yaml")
