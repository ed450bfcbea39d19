"""The benchmarks of a graph: what they compare is equal, and what they count is true."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.storage.shard_store import MANIFEST, read_manifest
from distributed_ignn.lab.benchmarks import (
    epoch_stages,
    exchange,
    iteration,
    local_product,
    memory,
    products,
    stage_clock,
)
from distributed_ignn.lab.benchmarks.bandwidth import ProductSize
from distributed_ignn.lab.benchmarks.benchmark_graph import open_workload, prepare
from distributed_ignn.lab.benchmarks.interleaving import Report
from distributed_ignn.lab.benchmarks.silence import SilentCommunicator
from distributed_ignn.lab.benchmarks.suite import SUITE
from distributed_ignn.lab.benchmarks.yardstick import PlainExchange, PlainLayout, Yardstick
from tests.ranks import run_ranks

_CONFIG = RunConfig.model_validate(
    {
        "dataset": "synthetic-products",
        "device": "cpu",
        "data": {"synthetic": {"scale": 0.0005, "features": 8}},
        "model": {"hidden": 8},
    }
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph in one part and in two, made once: a process is started for it."""
    folder = tmp_path_factory.mktemp("shards")
    prepare(_CONFIG.model_copy(update={"data_root": Path("data").absolute()}), folder, (1, 2))
    return folder


def test_each_benchmark_runs_in_one_process(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_copies(monkeypatch)
    with open_workload(_CONFIG, Communicator(), rounds=1, shards=shards) as workload:
        for name in ("propagate", "exchange", "iteration"):
            report = SUITE[name](workload)
            assert report.benchmark == name
            assert report.settings["ranks"] == 1
            assert all(math.isfinite(figure.value) for figure in report.figures)


def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed_ignn.lab.benchmarks.bandwidth._COPY_BYTES", {"cpu": 2**16})


def test_two_ranks_compare_equal_results_and_count_bytes(shards: Path) -> None:
    first, other = run_ranks(_on_two_ranks, 2, shards, timeout=100)
    assert first == other  # every rank reports the same


def _on_two_ranks(comm: Communicator, shards: Path) -> list[list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        _small_copies(patch)
        with open_workload(_CONFIG, comm, rounds=1, shards=shards) as workload:
            return _check_reports(workload.stats.halo_rows, [r(workload) for r in SUITE.values()])


def _check_reports(halo_rows: int, reports: list[Report]) -> list[list[str]]:
    by_name = {report.benchmark: report for report in reports}
    bytes_sent = halo_rows * 8 * 4
    assert by_name["iteration"].settings["bytes_per_exchange"] == bytes_sent
    sections = {figure.section: set[str]() for figure in by_name["iteration"].figures}
    for figure in by_name["iteration"].figures:
        sections[figure.section].add(figure.name)
    assert {iteration.YARDSTICK, iteration.OURS} <= sections[""]
    assert "what the exchange adds" in sections["profile"]
    assert set(iteration.WAYS) == sections["seconds packing"]
    assert iteration.ALONE in sections["parallel efficiency"]
    sizes = {f.name: f.value for f in by_name["exchange"].figures if f.unit == "bytes"}
    assert sizes[exchange.FP32] == sizes[exchange.WIRE] == bytes_sent
    assert sizes["int4"] == halo_rows * (8 // 2 + 1)  # half a byte an entry, and the scale
    return [[f"{f.section} {f.name} {f.unit}" for f in report.figures] for report in reports]


def test_plain_rows_lie_in_ascending_order_on_both_sides(shards: Path) -> None:
    found = run_ranks(_plain_exchange, 2, shards, timeout=60)
    assert found == [True, True]


def _plain_exchange(comm: Communicator, shards: Path) -> bool:
    """Each node sends its global id; what arrives must be the halo's, ascending in each group."""
    with open_workload(_CONFIG, comm, rounds=1, shards=shards, single=False) as workload:
        shard = workload.shard
    layout = PlainLayout.ascending(shard)
    ids = shard.owned_nodes[layout.rows]
    assert torch.equal(ids, ids.sort().values)
    arrived = PlainExchange(shard, comm, layout)(ids[:, None].double())[:, 0].long()
    assert torch.equal(arrived, shard.halo_nodes[layout.halo])
    assert torch.equal(arrived, arrived.sort().values)  # the only other rank is one group
    assert not torch.equal(ids, shard.owned_nodes)  # so that the order is put to a test
    return True


def test_a_yardstick_with_a_wrong_order_is_noticed(shards: Path) -> None:
    with open_workload(_CONFIG, Communicator(), rounds=1, shards=shards) as workload:
        shard = workload.shard
        shifted = PlainLayout(
            torch.arange(shard.num_owned).roll(1), torch.arange(0), torch.arange(0)
        )
        weights, bias = [torch.eye(2)], torch.rand(shard.num_owned, 2)
        right, wrong = (
            Yardstick(shard, workload.comm, weights, bias, layout)
            for layout in (PlainLayout.ours(shard), shifted)
        )
        z = torch.rand(shard.num_owned, 2)
        assert torch.allclose(right(z), wrong(z[wrong.rows])[wrong.rows.argsort()])
        assert not torch.allclose(right(z), wrong(z[wrong.rows]))


def test_bytes_of_a_product_are_counted_from_its_shape() -> None:
    size = ProductSize(rows=3, cols=5, entries=7, width=2, item=4)
    indices = 4 * (3 + 1) + 4 * 7
    assert size.index_bytes == indices
    assert size.ideal_bytes == (3 + 5) * 2 * 4 + indices
    assert size.gathered_bytes == (3 + 7) * 2 * 4 + indices


def test_a_silent_communicator_waits_for_nobody() -> None:
    silent = SilentCommunicator(Communicator(rank=1, world_size=2))
    arrived = silent.start_exchange(torch.ones(3, 2), [3, 0], [4, 0]).wait()
    assert torch.equal(arrived, torch.zeros(4, 2))
    assert silent.sum(torch.ones(1)).item() == 1.0


def test_shards_are_kept_where_they_are_wanted(tmp_path: Path) -> None:
    for _ in range(2):  # the second time they are read
        with open_workload(_CONFIG, Communicator(), rounds=1, shards=tmp_path) as workload:
            assert workload.root == tmp_path
            manifest = tmp_path / "1" / MANIFEST
            written = manifest.stat().st_mtime_ns
    assert manifest.stat().st_mtime_ns == written
    assert read_manifest(tmp_path / "1", parts=1).statistics.nodes == workload.stats.nodes


def test_other_shards_are_refused(shards: Path) -> None:
    data = _CONFIG.data.model_copy(
        update={"synthetic": _CONFIG.data.synthetic.model_copy(update={"seed": 1})}
    )
    other = _CONFIG.model_copy(update={"data": data})
    with (
        pytest.raises(UserError, match=r"data\.synthetic\.seed = 0, not 1"),
        open_workload(other, Communicator(), rounds=1, shards=shards),
    ):
        pass
    with (
        pytest.raises(UserError, match="the folder above"),
        open_workload(_CONFIG, Communicator(), rounds=1, shards=shards / "1"),
    ):
        pass


def test_a_product_that_differs_is_not_timed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_copies(monkeypatch)
    name = "blocks, csr"  # which runs everywhere
    build = products.PRODUCTS[name]

    def broken(*arguments: object) -> object:
        product = build(*arguments)  # type: ignore[arg-type]
        return type(product)(lambda x: 1.01 * product.forward(x), product.transpose, product.layout)

    monkeypatch.setitem(products.PRODUCTS, name, broken)
    with (
        open_workload(_CONFIG, Communicator(), rounds=1, shards=shards) as workload,
        pytest.raises(RuntimeError, match=f"{name} differs"),
    ):
        local_product.run(workload)


def test_every_second_of_an_epoch_belongs_to_a_stage(shards: Path) -> None:
    config = RunConfig.model_validate(
        {
            **_CONFIG.model_dump(),
            "forward": {"method": "neural"},
            "schedule": {"warmup_epochs": 1, "model_steps": 2},
            "model": {"hidden": 8, "dropout": 0.5},
        }
    )
    with open_workload(config, Communicator(), rounds=1, shards=shards) as workload:
        report = epoch_stages.run(workload)
    figures = report.figures
    assert {f.name for f in figures if f.section == ""} == {"neural", "anderson", "picard"}
    for name in ("neural", "anderson", "picard"):
        stages = {f.name: f.value for f in figures if f.section == f"stages with {name}"}
        assert stages.pop("solver phase, when due", 0.0) > 0.0 or name != "neural"
        confirmation = stages.pop("confirmation")  # where an epoch is not better than the last
        whole = stages.pop(epoch_stages.EPOCH)
        assert set(stages) == set(stage_clock.STAGES[1:]) - {"confirmation"}
        assert all(seconds > 0.0 for seconds in stages.values())
        # the epoch has no solver phase, so the other stages are all of it
        assert 0.5 * whole < sum(stages.values()) + confirmation <= 1.001 * whole
    steps = {
        f.name: f.value
        for f in figures
        if f.section == epoch_stages.SOLVE and f.unit == "evaluations"
    }
    assert 1 < steps["anderson"] <= steps["picard"]


def test_methods_can_be_chosen(shards: Path) -> None:
    with open_workload(
        _CONFIG, Communicator(), rounds=1, shards=shards, methods=["picard"]
    ) as workload:
        assert {f.name for f in epoch_stages.run(workload).figures if f.section == ""} == {"picard"}


def test_the_budget_stands_beside_what_was_measured(shards: Path) -> None:
    with open_workload(_CONFIG, Communicator(), rounds=1, shards=shards) as workload:
        report = memory.run(workload)
        started = workload.process_bytes
    beside = {(f.name, f.unit): f for f in report.figures if not f.section}
    for name in ("process", "shard read", "run built", memory.PEAK):
        assert beside[name, "budget"].ratio == pytest.approx(
            beside[name, "measured"].value / beside[name, "budget"].value
        )
    assert beside["process", "measured"].value == started
    assert beside[memory.PEAK, "measured"].value >= beside["run built", "measured"].value > 0
    items = {f.name: f.value for f in report.figures if f.section == "items of the budget"}
    whole = items.pop(memory.PEAK)
    assert whole == beside[memory.PEAK, "measured"].value
    assert sum(items.values()) == beside[memory.PEAK, "budget"].value
    totals = {f.name: f.value for f in report.figures if f.section == "whole"}
    # a history that need not be full takes no more than a full one
    assert totals[memory.KNOWN] <= totals[memory.FULL]
