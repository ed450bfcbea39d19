"""The limits that any sensible forecast keeps, and the numbers that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distributed_ignn.lab.planning.epoch import EpochModel
from distributed_ignn.lab.planning.equations import Machine
from distributed_ignn.lab.planning.footprint import memory_items
from distributed_ignn.lab.planning.forecast import by_codec, forecast
from distributed_ignn.lab.planning.workload import row_bytes
from tests.lab.planning.small import WORK, machine, part, with_codec


def test_operations_take_what_their_equations_say() -> None:
    model = Machine(machine(), 8)
    assert model.dense(2e11) == pytest.approx(2.0)
    assert model.stream(5e9, 1e6) == pytest.approx(0.5)
    assert model.product(90, 5, 1, 256, 0.0) == pytest.approx(100 * 256 / 4e9)
    assert model.product(90, 5, 1, 256, 1.0) == pytest.approx(100 * 256 / 8e9)
    # of 7 others 3 are in the box; the slow link's 4e7 a box are shared by 4
    near, far = 7e6 * 3 / 7 / 1e9, 7e6 * 4 / 7 / 1e7
    assert model.exchange(7e6, 7) == pytest.approx(max(near, far) + 7 * 1e-5)
    assert model.reduction() == pytest.approx(1e-5 * (2 + 1))
    assert model.overlap(3.0, 2.0) == 3.0
    assert Machine(machine(hidden=0.25), 8).overlap(3.0, 2.0) == pytest.approx(4.5)


def test_one_rank_exchanges_nothing() -> None:
    cost = EpochModel(part(1), WORK, Machine(machine(), 1)).epoch()
    unused = cost.exposed, cost.exchange, cost.sent, cost.boundary, cost.packing, cost.reduction
    assert unused == (0.0,) * 6
    assert cost.product > 0.0


def test_efficiency_is_one_where_nothing_is_sent_and_starting_is_free() -> None:
    free = {"message_seconds": 0.0, "reduction_seconds": 0.0, "rate": {"rank": 1e30}}
    profile = machine(operation_seconds=0.0, inside=free, networks={"slow": free})
    for one in forecast(lambda count: part(count, 0.0), [1, 2, 16, 64], WORK, profile):
        assert one.efficiency == pytest.approx(1.0)


def test_an_infinitely_fast_link_leaves_no_exposed_exchange() -> None:
    free = {"message_seconds": 0.0, "reduction_seconds": 0.0, "rate": {"rank": 1e30}}
    fast = machine(inside=free, networks={"slow": free})
    (found,) = forecast(part, [16], WORK, fast)
    (slow,) = forecast(part, [16], WORK, machine())
    assert found.cost.exposed == pytest.approx(0.0, abs=1e-12)
    assert slow.cost.exposed > 0.1 * slow.seconds
    assert slow.efficiency < found.efficiency < 1.0


@pytest.mark.parametrize(("codec", "bits"), [("bf16", 16), ("int8", 8), ("int4", 4), ("int2", 2)])
def test_bytes_shrink_with_the_bits(codec: str, bits: int) -> None:
    model = Machine(machine(), 8)
    whole = EpochModel(part(8), WORK, model).epoch()
    coded = EpochModel(part(8), with_codec(codec), model).epoch()
    scale = 0 if codec == "bf16" else 1
    # rows of 64 columns and, in the estimator's hops, of 16; each with its scale
    assert row_bytes(codec, 64) == 64 * bits / 8 + scale
    ratio = coded.sent / whole.sent
    assert bits / 32 <= ratio <= bits / 32 + scale / (4 * 16)
    assert coded.exchanges == whole.exchanges


def test_seconds_fall_and_efficiency_falls_with_more_ranks() -> None:
    # a constant share of halo, one box or several
    found = forecast(part, [1, 2, 4, 8, 32, 128], WORK, machine(network="fast"))
    seconds, efficiency = [one.seconds for one in found], [one.efficiency for one in found]
    assert seconds == sorted(seconds, reverse=True)
    assert efficiency == sorted(efficiency, reverse=True)
    held = [one.bytes for one in found[1:]]  # one rank alone has no buffers of a network
    assert held == sorted(held, reverse=True)


def test_more_of_anything_takes_longer() -> None:
    model = Machine(machine(), 8)
    base = EpochModel(part(8), WORK, model).epoch().seconds
    more = [
        replace(WORK, width=128),
        replace(WORK, forward=5),
        replace(WORK, adjoint=5),
        replace(WORK, features=64),
    ]
    for work in more:
        assert EpochModel(part(8), work, model).epoch().seconds > base
    assert EpochModel(part(8), replace(WORK, memory=1), model).epoch().seconds < base
    assert EpochModel(part(8, 0.6), WORK, model).epoch().seconds > base
    assert EpochModel(part(8), replace(WORK, locality=1.0), model).epoch().seconds < base
    assert EpochModel(part(8), replace(WORK, method="anderson"), model).epoch().seconds < base


def test_stale_rows_hide_an_exchange_behind_a_whole_evaluation() -> None:
    model = Machine(machine(), 8)
    fresh = EpochModel(part(8), WORK, model).epoch()
    stale = EpochModel(part(8), replace(WORK, stale=True), model).epoch()
    assert stale.exposed < fresh.exposed
    assert stale.sent == fresh.sent


def test_ranks_that_share_a_core_or_memory_slow_each_other_down() -> None:
    shared = {"rank": 1e11, "box": 2e11}
    two = machine(cores_per_box=2, dense=shared)
    assert Machine(two, 2).dense(1e11) == pytest.approx(1.0)
    assert Machine(two, 4).dense(1e11) == pytest.approx(2.0)
    assert Machine(two, 4).operations(10) == pytest.approx(2 * Machine(two, 2).operations(10))


def test_new_memory_costs_above_its_threshold_only() -> None:
    fresh = {"threshold": 1e6, "rate": {"rank": 1e9}}
    model = Machine(machine(fresh=fresh), 1)
    assert model.fresh(3, 1e6) == pytest.approx(3e-3)
    assert model.fresh(3, 9e5) == 0.0
    assert Machine(machine(), 1).fresh(3, 1e9) == 0.0


def test_memory_adds_up_and_a_longer_history_takes_more() -> None:
    items = {item.name: item.bytes for item in memory_items(part(8), WORK, 1e8)}
    state = part(8).owned * 64 * 4
    assert items["history"] == 2 * 3 * state  # two differences for each of M older iterates
    assert items["process"] >= 1e8
    assert "halo codec state" not in items
    coded = {item.name for item in memory_items(part(8), with_codec("int4"))}
    assert "halo codec state" in coded
    half = memory_items(part(8), replace(WORK, history="bfloat16"))
    assert {item.name: item.bytes for item in half}["history"] == items["history"] / 2
    (found,) = forecast(part, [8], WORK, machine())
    assert found.bytes == pytest.approx(sum(items.values()))
    assert found.fits
    assert not forecast(part, [1], WORK, machine(memory_bytes=1.5e8))[0].fits


def test_every_codec_is_forecast_for_every_number_of_ranks() -> None:
    found = by_codec(part, [2, 8], WORK, machine())
    assert list(found) == ["fp32", "bf16", "int8", "int4", "int3", "int2"]
    sent = {codec: line[1].cost.sent for codec, line in found.items()}
    coded = [sent[codec] for codec in ("fp32", "bf16", "int8", "int4", "int3")]
    assert coded == sorted(coded, reverse=True)
    exchanges = {codec: line[1].cost.exchanges for codec, line in found.items()}
    assert exchanges["int2"] > exchanges["int3"] == exchanges["fp32"]
