"""PyG layers on 1, 2 and 4 ranks against themselves in one process, without this package."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.explicit.rules import needs_rehearsal
from tests.parity.layers import GRAPHS, LAYERS, built, on_parts, on_whole, train_whole
from tests.ranks import run_ranks

_TOLERANCE = 1e-12


@pytest.fixture(scope="module", params=[1, 2, 4])
def reports(request: pytest.FixtureRequest) -> tuple[int, list[dict[str, dict[str, Any]]]]:
    if request.param == 1:
        return 1, [on_parts(Communicator(), GRAPHS)]
    return request.param, run_ranks(on_parts, request.param, GRAPHS, timeout=110)


@pytest.mark.parametrize("graph", GRAPHS)
def test_layers_give_what_one_process_gives(reports: Any, graph: str) -> None:
    """Outputs, losses and gradients of inputs, edge weights and parameters, on every rank."""
    _, ranks = reports
    for name in LAYERS:
        expected = on_whole(graph, name)
        for report in ranks:
            found = report[f"{graph}/{name}"]
            assert set(found) - {"exchanges"} == set(expected)
            for key, value in expected.items():
                scale = float(value.abs().max()) if value.numel() else 0.0
                worst = float((found[key] - value).abs().max())
                assert worst <= _TOLERANCE * max(1.0, scale), (name, key, worst)


def test_a_hop_is_one_exchange_each_way(reports: Any) -> None:
    """Also where a layer propagates several tensors, or scores edges before it propagates."""
    _, ranks = reports
    for report in ranks:
        sent = {name: report[f"plain/{name}"]["exchanges"] for name in LAYERS}
        assert sent == {name: 2 * layer.hops for name, layer in LAYERS.items()}


@pytest.mark.parametrize("graph", GRAPHS)
def test_models_train_as_in_one_process(reports: Any, graph: str) -> None:
    """With batch normalisation, a penalty, and in ``awkward`` a rank without nodes."""
    _, ranks = reports
    for name, expected in train_whole(graph).items():
        for report in ranks:
            assert report[f"{graph}/training"][name] == pytest.approx(expected, abs=1e-10)


def test_dropout_does_not_depend_on_the_ranks(reports: Any) -> None:
    _, ranks = reports
    alone = on_parts(Communicator(), ["plain"])["plain/training"]
    for report in ranks:
        found = report["plain/training"]
        assert found["Sequential dropout"] == pytest.approx(alone["Sequential dropout"], abs=1e-10)
        assert found["Sequential dropout"][:4] != found["Sequential"][:4]


def test_layers_that_need_no_rehearsal_are_compared_here() -> None:
    classes = {type(built(layer.build)) for layer in LAYERS.values()}
    named = {cls.__name__ for cls in classes if not needs_rehearsal(built_of(cls))}
    from distributed_ignn.models.explicit.rules import VERIFIED

    assert named == {name.rpartition(".")[2] for name in VERIFIED}


def built_of(cls: type) -> Any:
    return next(m for m in (built(layer.build) for layer in LAYERS.values()) if type(m) is cls)
