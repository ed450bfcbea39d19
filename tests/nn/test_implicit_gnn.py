"""ImplicitGNN against the model that a run trains, and in the loops that users write."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.models.cells import IgnnWeights
from distributed_ignn.models.implicit import Cell, SolvePlan
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.models.shard_model import ShardModel
from distributed_ignn.nn import ImplicitGNN, NotConvergedWarning
from distributed_ignn.nn import implicit_gnn as module
from distributed_ignn.solvers.anderson import Anderson
from tests.nn.small_maps import both_ways, edges
from tests.parity.cases import CLASSES, FEATURES, NODES, make_data

DOUBLE = torch.float64
TIGHT: dict[str, Any] = {"tolerance": 1e-13, "max_steps": 500, "on_failure": "raise"}
RICH = {
    "dropout": 0.4,
    "input_dropout": 0.2,
    "node_dropout": 0.1,
    "injection_layers": 2,
    "injection_norm": "layer",
    "residual": 0.2,
    "learn_kappa": True,
}


def _edge_index(graph: CSRMatrix) -> Tensor:
    return torch.stack([graph.col.long(), graph.rows()])


def _inputs(data: GraphData) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    x = data.features
    if isinstance(x, CSRMatrix):
        entries = torch.stack([x.rows(), x.col.long()])
        assert x.value is not None
        size = (NODES, FEATURES)
        x = torch.sparse_coo_tensor(entries, x.value, size, check_invariants=True)
    assert x is not None
    return x, [_edge_index(g) for g in data.graphs], [g.value for g in data.graphs]


def _plan(relu: bool = True) -> SolvePlan:
    def start(cell: Cell, driver: Tensor) -> Tensor:
        return torch.relu(driver) if relu and isinstance(cell, EquilibriumCell) else driver

    return SolvePlan(Anderson(), start, 1e-13, 500, lambda solution: None)


UNDIRECTED = ("plain", "awkward", "channels", "dense", "weights")
DIRECTED = ("directed", "lopsided", "both")
PAIRS = [
    *((case, cell) for case in UNDIRECTED for cell in ("ignn", "eignn", "mignn")),
    *((case, cell) for case in DIRECTED for cell in ("ignn", "eignn")),
]


@pytest.mark.parametrize("settings", [{}, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize(("case", "cell"), PAIRS)
def test_the_model_of_a_run_gives_the_same_numbers_and_gradients(
    case: str, settings: dict[str, Any], cell: str
) -> None:
    data = make_data(case)
    if case == "both":  # what auto is for a shard with both directions
        settings = settings | {"normalisation": "row"}
    config = ModelConfig(hidden=6, cell=cell, **settings)
    (shard,) = build_shards(data, torch.zeros(NODES, dtype=torch.int64), 1)
    trained = ShardModel(shard, Communicator(), config, DOUBLE, 0)
    layer = ImplicitGNN(
        FEATURES, 6, CLASSES, cell=cell, channels=len(data.graphs), **TIGHT, **settings
    ).double()
    layer.load_state_dict(trained.state_dict())
    x, pairs, weights = _inputs(data)
    torch.manual_seed(5)
    out = layer(x, pairs, weights)
    torch.manual_seed(5)
    step = int(torch.randint(2**31 - 1, ()))
    plan = _plan(cell != "eignn")
    state = trained.equilibrium(step, plan, plan)
    logits = trained.read_out(state, step)
    assert torch.allclose(out.z, state, rtol=0, atol=1e-11)
    assert torch.allclose(out.logits, logits, rtol=0, atol=1e-11)
    assert float(out.z.detach().abs().max()) > 0.1
    out.logits.square().sum().backward()
    logits.square().sum().backward()
    for (name, mine), theirs in zip(layer.named_parameters(), trained.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9), name
    layer.eval()
    with torch.no_grad():
        plain = layer(x, pairs, weights)
    assert torch.allclose(plain.z, trained.solve(plan).image, rtol=0, atol=1e-11)
    assert torch.equal(layer(x, pairs, weights).logits, plain.logits)


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_features_and_parameters_get_the_gradient_of_finite_differences(solver: str) -> None:
    pairs = both_ways(edges(8, 20))
    layer = ImplicitGNN(3, 4, 2, solver=solver, dropout=0.0, **TIGHT).double()
    x = torch.randn(8, 3, dtype=DOUBLE, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def logits(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        out = torch.func.functional_call(layer, given, (x, pairs))
        assert isinstance(out, module.ImplicitOutput)
        return out.logits

    # inside the bound, where projection is not felt
    values = [p.detach() / 2 for p in layer.parameters()]
    inputs = [x, *(value.requires_grad_() for value in values)]
    assert torch.autograd.gradcheck(logits, inputs, atol=1e-6)


def test_a_hat_is_that_of_pyg() -> None:
    """Directed edges with weights: messages go from row 0 of edge_index to row 1."""
    pairs = edges()
    weight = torch.rand(pairs.shape[1], dtype=DOUBLE)
    layer = ImplicitGNN(FEATURES, 5, 2, cell="eignn", dropout=0.0, **TIGHT).double()
    x = torch.rand(30, FEATURES, dtype=DOUBLE)
    found = layer(x, pairs, weight)
    index, value = gcn_norm(pairs, weight, 30, add_self_loops=True, dtype=DOUBLE)
    a_hat = torch.zeros(30, 30, dtype=DOUBLE).index_put((index[1], index[0]), value)
    own, spread = layer.encoder.own, layer.encoder.spread[0]
    assert own is not None
    assert layer.encoder.bias is not None
    b = x @ own + a_hat @ x @ spread + layer.encoder.bias
    (w,) = layer.cell_weights()
    system = torch.eye(150, dtype=DOUBLE) - torch.kron(a_hat, w.T.contiguous())
    expected = torch.linalg.solve(system, b.flatten()).view(30, 5)
    assert torch.allclose(found.z, expected, rtol=0, atol=1e-11)


def _model(**settings: Any) -> ImplicitGNN:
    return ImplicitGNN(4, 6, 2, **({"dropout": 0.0} | settings))


@pytest.mark.parametrize("channels", [1, 2])
def test_the_bound_holds_in_a_plain_loop_with_any_optimiser(channels: int) -> None:
    pairs = [edges() for _ in range(channels)]
    x, y = torch.randn(30, 4), torch.randint(2, (30,))
    model = _model(kappa=0.6, tolerance=1e-6, channels=channels)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    left = 0
    for _ in range(8):
        out = model(x, pairs)
        bound = float(model.cell_weights.present_contraction())
        assert bound <= 0.6 * (1 + 1e-5)
        assert out.info.converged
        optimizer.zero_grad()
        functional.cross_entropy(out.logits, y).backward()
        optimizer.step()
        left += not model.cell_weights.is_inside()
    assert left > 0  # so there was something to bring back
    assert (model.cell_weights.growth > 1.01) is (channels == 2)


def test_without_a_bound_divergence_is_reported() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    model = _model(constraint="none", max_steps=15, solver="picard")
    assert isinstance(model.cell_weights, IgnnWeights)
    with torch.no_grad():
        model.cell_weights.weight.copy_(2.0 * torch.eye(6)[None])
    with pytest.warns(NotConvergedWarning, match=r"forward solve stops .* or lower kappa"):
        out = model(x, pairs)
    assert not out.info.converged


def test_a_projection_between_forward_and_backward_is_not_silent() -> None:
    """A graph that asks for smaller weights comes in between: autograd must notice."""
    pairs = edges()
    first, second = [pairs, pairs], [pairs, pairs.flip(0)]
    x = torch.randn(30, 4)
    model = _model(init="identity", channels=2)
    out = model(x, first)
    model(x, second)
    with pytest.raises(RuntimeError, match="has been modified inplace"):
        out.logits.sum().backward()


def test_graphs_are_made_once_for_the_same_unchanged_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    build = module.LocalGraph.build

    def counted(*args: Any) -> Any:
        made.append(1)
        return build(*args)

    monkeypatch.setattr(module.LocalGraph, "build", counted)
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    model = _model()
    for _ in range(3):
        model(x, pairs)
    assert len(made) == 1
    before = model(x, pairs).z
    pairs[:, 0] = torch.tensor([3, 4])
    assert not torch.equal(model(x, pairs).z, before)
    assert len(made) == 2
    model(x, pairs.clone())
    model.double()(x.double(), pairs)
    assert len(made) == 4
    model(x.double(), pairs, torch.rand(pairs.shape[1]))
    assert len(made) == 5


def test_features_that_ask_for_a_gradient_later_get_one() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    model = _model().eval()
    model(x, pairs)
    x.requires_grad_()
    model(x, pairs).logits.sum().backward()
    fresh = x.detach().clone().requires_grad_()
    model(fresh, pairs).logits.sum().backward()
    assert fresh.grad is not None
    assert float(fresh.grad.abs().max()) > 0.0
    assert x.grad is not None
    assert torch.equal(x.grad, fresh.grad)


def test_a_gradient_of_the_gradient_is_refused() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4, requires_grad=True)
    model = _model().eval()
    (slope,) = torch.autograd.grad(model(x, pairs).logits.sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_a_model_in_float16_is_refused() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    with pytest.raises(UserError, match=r"the model is float16, .* use model\.float\(\) or model"):
        _model().half()(x.half(), pairs)
    with pytest.warns(NotConvergedWarning, match="bfloat16 cannot reach the tolerance"):
        assert bool(_model().bfloat16()(x.bfloat16(), pairs).z.isfinite().all())


def test_features_that_change_in_place_are_seen() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    model = _model()
    before = model(x, pairs).z
    x.mul_(2.0)
    assert not torch.allclose(model(x, pairs).z, before)


def test_no_graph_outlives_the_tensor_it_was_made_of() -> None:
    model, x = _model(), torch.randn(30, 4)
    pairs = both_ways(edges())
    model(x, pairs)
    graph = weakref.ref(model._graphs._entries[0].made)
    del pairs
    model(x, both_ways(edges()))
    gc.collect()
    assert graph() is None


def test_copies_pickles_and_states() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    model = _model(warm_start=True, tolerance=1e-6).eval()
    logits = model(x, pairs).logits
    other = _model(tolerance=1e-6).eval()
    other.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        assert torch.allclose(twin(x, pairs).logits, logits, atol=1e-5)
    # whatever is kept of a solve
    again = model(x, pairs)
    assert again.info.evaluations == 1


def test_adjacencies_in_other_forms() -> None:
    pairs, x = edges(), torch.randn(30, 4)
    weight = 0.5 + torch.rand(pairs.shape[1])
    model = _model(tolerance=1e-6).eval()
    expected = model(x, pairs, weight).logits
    back = pairs.flip(0)
    coo = torch.sparse_coo_tensor(back, weight, (30, 30), check_invariants=True)
    assert torch.allclose(model(x, coo).logits, expected, atol=1e-5)
    assert torch.allclose(model(x, _SparseTensor(coo)).logits, expected, atol=1e-5)
    ones = torch.sparse_coo_tensor(back, torch.ones(back.shape[1]), (30, 30), check_invariants=True)
    plain = model(x, pairs).logits
    assert torch.equal(model(x, ones).logits, plain)
    assert not torch.allclose(plain, expected, atol=1e-3)
    loops = torch.arange(30).repeat(2, 1)
    assert torch.equal(model(x, torch.cat([pairs, pairs, loops], dim=1)).logits, plain)
    sparse_x = (x * (x > 0)).to_sparse_coo()
    dense = model(sparse_x.to_dense(), pairs).logits
    assert torch.allclose(model(sparse_x, pairs).logits, dense, atol=1e-5)


class _SparseTensor:
    """What torch_sparse's class has that is used here; the library is optional."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix.coalesce()

    def sparse_sizes(self) -> tuple[int, ...]:
        return tuple(self._matrix.shape)

    def coo(self) -> tuple[Tensor, Tensor, Tensor]:
        row, col = self._matrix.indices()
        return row, col, self._matrix.values()


def test_masks_follow_torchs_seed_and_the_mode() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    model = _model(dropout=0.5, node_dropout=0.5)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model(x, pairs).logits)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    model.eval()
    assert torch.equal(model(x, pairs).logits, model(x, pairs).logits)


def test_inference_mode_leaves_nothing_that_training_cannot_use() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    model = _model(warm_start=True)
    with torch.inference_mode():
        model(x, pairs)
    model(x, pairs).logits.sum().backward()
    with torch.inference_mode():
        inside = x + 0.0
        assert torch.allclose(model(inside, pairs).logits, model(x, pairs).logits, atol=1e-3)
    model.eval()(x, pairs).logits.sum().backward()


def test_several_calls_in_one_step_add_up() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4, dtype=DOUBLE)
    model = _model(**TIGHT).double()
    single = torch.autograd.grad(model(x, pairs).logits.sum(), list(model.parameters()))
    outputs = [model(x, pairs), model(x, pairs)]
    torch.stack([out.logits.sum() for out in outputs]).sum().backward()
    for parameter, once in zip(model.parameters(), single, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, 2 * once, rtol=0, atol=1e-10)
    assert all(out.info.adjoint_evaluations > 1 for out in outputs)


def test_it_computes_in_its_own_format_under_autocast() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    model = _model().eval()
    expected = model(x, pairs).logits
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x, pairs).logits
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)


def test_compiling_the_whole_model_changes_nothing() -> None:
    pairs, x = both_ways(edges()), torch.randn(30, 4)
    model = _model().eval()
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.equal(compiled(x, pairs).logits, model(x, pairs).logits)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"kappa": 1.0}, r"^kappa = 1\.0 must be below 1"),
        ({"cell": "gnn"}, r"^cell = 'gnn' must be 'ignn', 'eignn' or 'mignn'"),
        ({"skew": 5.0}, r"^skew = 5\.0 has no effect with cell = ignn; drop it$"),
        (
            {"constraint": "none", "kappa": 0.3},
            r"^kappa = 0\.3 has no effect with constraint = none; drop it$",
        ),
        ({"solver": "picard", "memory": 9}, r"^memory = 9 makes no difference to picard; leave it"),
        ({"kapa": 0.5}, r"^unknown key 'kapa'.*kappa"),
        ({"tolerance": 0.0}, r"^tolerance = 0\.0 must be above 0"),
        ({"channels": 0}, "channels = 0 must be at least 1"),
        ({"injection_channels": "knn"}, "needs the neighbour graph"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        _model(**settings)
    assert "\n" not in str(caught.value)


def test_bad_inputs_are_one_line() -> None:
    pairs, x, model = both_ways(edges()), torch.randn(30, 4), _model()
    count = pairs.shape[1]
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((x, pairs.float()), r"edge_index is torch\.float32 .*must be int64 \[2, E\]"),
        ((x, pairs.T), r"must be int64 \[2, E\]"),
        ((x, "edges"), "edge_index is a str"),
        ((x[:5], pairs), r"edge_index: id \d+ is outside 0\.\.4"),
        ((x[:, :3], pairs), r"x is float32 \[30, 3\]; the model was made for floating \[n, 4\]"),
        ((x.long(), pairs), r"x is int64 \[30, 4\]"),
        ((x, [pairs, pairs]), "2 edge_index and 2 edge_weight for 1 channels"),
        ((x, pairs, torch.ones(3)), f"edge_weight holds 3 weights for {count} edges"),
        ((x, pairs, -torch.ones(count)), "edge 0 has weight -1"),
        ((x, pairs, torch.ones(count, requires_grad=True)), "asks for a gradient and gets none"),
        ((x.to_sparse_coo().requires_grad_(), pairs), "a sparse x gets no gradient"),
    ]
    for inputs, line in wrong:
        with pytest.raises(UserError, match=line) as caught:
            model(*inputs)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="mignn needs undirected graphs"):
        _model(cell="mignn")(x, edges())


def test_every_setting_of_the_section_is_named_in_the_docstring() -> None:
    text = ImplicitGNN.__doc__ or ""
    assert all(f"``{name}``" in text or f"{name}:" in text for name in ModelConfig.model_fields)
