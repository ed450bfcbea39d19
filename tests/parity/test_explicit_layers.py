"""PyG layers on 1, 2 and 4 ranks against themselves in one process, without this package."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.nn import GATConv

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.explicit.rules import VERIFIED, needs_rehearsal
from tests.jobs import ROOT, Job
from tests.parity.cases import make_data
from tests.parity.explicit_cases import (
    GRAPHS,
    LAYERS,
    OUT,
    WEIGHTED_GRAPHS,
    WIDTH,
    built,
    curvature,
    on_parts,
    on_whole,
    rows,
    train_whole,
    weighted_whole,
    whole_edges,
)
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
_TOLERANCE = 1e-12


# on four ranks kinds are compared with every change (test_explicit_kinds.py)
@pytest.fixture(scope="module", params=[1, 2, pytest.param(4, marks=pytest.mark.long)])
def reports(request: pytest.FixtureRequest) -> list[dict[str, dict[str, Any]]]:
    if request.param == 1:
        return [on_parts(Communicator(), GRAPHS)]
    # of four parts of an awkward graph, one is empty and one an island
    graphs = GRAPHS if request.param == 2 else ("awkward",)
    return run_ranks(on_parts, request.param, graphs, timeout=200)


def _graphs(reports: list[dict[str, dict[str, Any]]]) -> list[str]:
    return [graph for graph in GRAPHS if f"{graph}/training" in reports[0]]


def test_layers_give_what_one_process_gives(reports: Any) -> None:
    """Outputs, losses and gradients of inputs, edge weights and parameters, on every rank."""
    for graph, name in product(_graphs(reports), LAYERS):
        expected = on_whole(graph, name)
        for report in reports:
            found = report[f"{graph}/{name}"]
            assert set(found) - {"exchanges"} == set(expected)
            for key, value in expected.items():
                worst = float((found[key] - value).abs().max())
                scale = max(1.0, float(value.abs().max()))
                assert worst <= _TOLERANCE * scale, (graph, name, key, worst)


def test_a_hop_is_one_exchange_each_way(reports: Any) -> None:
    """Also where a layer propagates several tensors, or scores edges before it propagates."""
    for report, graph in product(reports, _graphs(reports)):
        sent = {name: report[f"{graph}/{name}"]["exchanges"] for name in LAYERS}
        assert sent == {name: 2 * layer.hops for name, layer in LAYERS.items()}


def test_models_train_as_in_one_process(reports: Any) -> None:
    """With batch normalisation, a penalty, and in ``awkward`` a rank without nodes."""
    for graph in _graphs(reports):
        for name, expected in train_whole(graph).items():
            for report in reports:
                assert report[f"{graph}/training"][name] == pytest.approx(expected, abs=1e-10)


def test_gradients_of_gradients_cross_ranks(reports: Any) -> None:
    for graph in _graphs(reports):
        edges = whole_edges(make_data(graph))
        expected = curvature(built(lambda: GATConv(WIDTH, OUT)), rows(1), edges)
        for report in reports:
            found = report[f"{graph}/curvature"]["found"]
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("graph", WEIGHTED_GRAPHS)
def test_weights_of_edges_are_the_graphs(reports: Any, graph: str) -> None:
    """Without a word about edges a layer gets the graph's, with their weights."""
    for report in reports:
        for name, expected in weighted_whole(graph).items():
            torch.testing.assert_close(report[graph][name], expected, rtol=1e-12, atol=1e-12)


def test_dropout_does_not_depend_on_the_ranks(reports: Any) -> None:
    alone = on_parts(Communicator(), ["awkward"])["awkward/training"]
    for report in reports:
        found = report["awkward/training"]
        assert found["Sequential dropout"] == pytest.approx(alone["Sequential dropout"], abs=1e-10)
        assert found["Sequential dropout"][:4] != found["Sequential"][:4]


@pytest.mark.long
def test_the_example_loses_the_same_on_two_ranks(tmp_path: Path) -> None:
    """GAT of two layers and GraphSAGE of three, as a user starts them."""
    script = str(ROOT / "examples" / "exact_layers.py")
    ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    losses = []
    for start in ([], ["-m", *ranks]):
        with closing(Job([sys.executable, *start, script], tmp_path)) as job:
            assert job.wait(120) == 0, job.text
            losses.append([float(loss) for loss in re.findall(r"loss (\S+)", job.text)])
    alone, together = losses
    assert len(alone) == 20
    assert alone[9] < alone[0]
    assert together == pytest.approx(alone, abs=1e-10)


def test_layers_that_need_no_rehearsal_are_compared_here() -> None:
    layers = [built(layer.build) for layer in LAYERS.values()]
    named = {type(layer).__name__ for layer in layers if not needs_rehearsal(layer)}
    assert named == {name.rpartition(".")[2] for name in VERIFIED}
