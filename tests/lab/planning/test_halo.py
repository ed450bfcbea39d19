"""Laws of the halo: fitted ones go through what they are fitted to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distributed_ignn.config import DataConfig, PartitionConfig, SyntheticConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.partitioning.partition import assign_parts
from distributed_ignn.graph.storage.shard_store import write_shards
from distributed_ignn.lab.planning.halo_growth import (
    Cut,
    PowerGrowth,
    RandomGrowth,
    fit_growth,
    parse_growth,
    typical_part,
)
from distributed_ignn.lab.planning.sizes import read_sizes


def test_a_power_law_is_recovered_and_one_cut_gets_the_assumed_power() -> None:
    law = PowerGrowth(1e-5, 0.7)
    cuts = [law.cut(10**6, 2 * 10**7, parts) for parts in (4, 8, 16)]
    found = fit_growth(10**6, cuts)
    assert (found.factor, found.exponent) == pytest.approx((1e-5, 0.7))
    single = fit_growth(10**6, cuts[:1])
    assert single.cut(10**6, 2 * 10**7, 4).halo == pytest.approx(cuts[0].halo)
    assert "assumed" in single.origin
    with pytest.raises(UserError, match="at least 2 parts"):
        fit_growth(100, [Cut(1, 0.0, 0.0, 0.0)])


def test_the_halo_is_never_more_than_the_rest_of_the_graph() -> None:
    wide = PowerGrowth(50.0, 1.0)
    cut = wide.cut(1000, 10**6, 4)
    assert cut.halo == 750.0
    assert fit_growth(1000, [cut]).cut(1000, 10**6, 4).halo == pytest.approx(750, rel=0.01)
    assert cut.boundary == 250.0
    thin = wide.cut(1000, 400, 4)  # few entries cannot name many rows
    assert thin.halo <= 100 * 0.75


def test_parts_drawn_by_lot_match_a_drawn_graph() -> None:
    n, degree, parts = 2000, 10, 4
    generator = torch.Generator().manual_seed(0)
    part = torch.randint(parts, (n,), generator=generator)
    col = torch.randint(n, (n, degree), generator=generator)
    outside = part[col] != part[:, None]
    halo = sum(int(torch.unique(col[(part[:, None] == p) & outside]).numel()) for p in range(parts))
    found = RandomGrowth().cut(n, n * degree, parts)
    assert found.halo == pytest.approx(halo / parts, rel=0.06)  # in-degrees vary, the law's do not
    assert found.boundary_entries == pytest.approx(float(outside.sum()) / parts, rel=0.03)


def test_growth_is_read_from_text() -> None:
    law = parse_growth("0.5@8:0.9", 8000)
    assert law.cut(8000, 10**6, 8).halo == pytest.approx(500.0)
    assert isinstance(parse_growth("random", 10), RandomGrowth)
    for wrong in ("0.5", "x@8", "0@8", "0.5@1", "0.5@8:2", "1e@8", "8@8"):
        with pytest.raises(UserError, match="halo-growth"):
            parse_growth(wrong, 100)


def test_more_parts_than_nodes_are_refused() -> None:
    with pytest.raises(UserError, match="11 parts for 10 nodes"):
        typical_part(RandomGrowth(), 10, 30, 11)


def test_sizes_read_from_shards_are_those_of_the_partition(tmp_path: Path) -> None:
    config = DataConfig(synthetic=SyntheticConfig(scale=0.001))
    data = load_dataset("synthetic-products", Path(), config)
    cuts = []
    for parts in (2, 4):
        assignment = assign_parts(data.graphs, parts, PartitionConfig())
        folder = tmp_path / str(parts)
        write_shards(folder, data, assignment, PartitionConfig())
        sizes, stats = read_sizes(folder), assignment.stats
        assert (sizes.nodes, sizes.entries) == (stats.nodes, stats.entries)
        assert sizes.cut.halo == pytest.approx(stats.halo_rows / parts)
        assert sizes.largest.halo == stats.halo_rows_largest
        assert sizes.cut.boundary_entries == pytest.approx(stats.cut_entries / parts)
        assert (sizes.features, sizes.classes) == (data.num_features, data.num_classes)
        cuts.append(sizes.cut)
    law = fit_growth(data.num_nodes, cuts)
    for cut in cuts:
        again = law.cut(data.num_nodes, data.graphs[0].num_entries, cut.parts)
        assert again.halo == pytest.approx(cut.halo, rel=1e-6)
