"""FixedPoint against finite differences, plain loops and what users do with modules."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from distributed_ignn.errors import UserError
from distributed_ignn.nn import FixedPoint, NotConvergedWarning
from distributed_ignn.nn.bounding import linear_weights
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.methods import METHODS
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.predictors import NETWORKS, NeuralShape, build_predictor
from distributed_ignn.solvers.reduced import BasisCache
from tests.nn.small_maps import NODES, WIDTH, Mixed, edges, unrolled

SOLVERS = tuple(name for name, method in METHODS.items() if not method.learned)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _tight(f: Callable[..., Tensor], solver: str = "anderson", **settings: Any) -> FixedPoint:
    given: dict[str, Any] = {"tolerance": 1e-13, "max_steps": 400, "on_failure": "raise"} | settings
    return FixedPoint(f, solver, **given)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_of_everything_that_f_reads_agree_with_finite_differences(solver: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Mixed(3)

        def forward(self, z: Tensor, x: Tensor, scale: Tensor, *, shift: Tensor) -> Tensor:
            out: Tensor = self.inner(z, x) * scale + shift
            return out

    f = Scaled()
    layer = _tight(f, solver)
    x, scale, shift = torch.randn(5, 3), torch.rand(5, 1), torch.randn(3)

    def solved(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
        given = {"f.inner.weight": weight}
        z = torch.func.functional_call(layer, given, (x, scale), {"shift": shift})
        assert isinstance(z, Tensor)
        return z

    inputs = (x, scale, shift, f.inner.weight.detach().clone())
    assert torch.autograd.gradcheck(solved, [each.requires_grad_() for each in inputs], atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("inject", ["auto", "pair"])
def test_sage_has_the_gradient_of_two_hundred_unrolled_steps(solver: str, inject: str) -> None:
    conv, pairs = SAGEConv(WIDTH, WIDTH), edges()
    layer = _tight(conv, solver, inject=inject, bound=0.9)
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    probe = torch.randn(NODES, WIDTH)
    z = layer(x, pairs)
    asked = [x, *conv.parameters()]
    found = torch.autograd.grad((z * probe).sum(), asked)

    def step(z: Tensor) -> Tensor:
        out: Tensor = conv(z, pairs) + x if inject == "auto" else conv((z, x), pairs)
        return out

    loop = unrolled(step, torch.zeros_like(x), 200)
    expected = torch.autograd.grad((loop * probe).sum(), asked)
    assert torch.allclose(z, loop, rtol=0, atol=1e-10)
    for mine, theirs in zip(found, expected, strict=True):
        assert float(theirs.abs().max()) > 1e-2
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-8)


def test_edge_weights_and_attention_get_gradients() -> None:
    pairs = edges()
    weight = torch.rand(pairs.shape[1], requires_grad=True)
    x = torch.randn(NODES, WIDTH) / 4
    gcn = _tight(GCNConv(WIDTH, WIDTH), bound=0.5)
    (found,) = torch.autograd.grad(gcn(x, pairs, weight).square().sum(), [weight])
    loop = unrolled(lambda z: gcn.f(z, pairs, weight) + x, torch.zeros_like(x), 200)
    (expected,) = torch.autograd.grad(loop.square().sum(), [weight])
    assert torch.allclose(found, expected, rtol=0, atol=1e-8)
    gat = GATConv(WIDTH, WIDTH)
    with torch.no_grad():
        gat.lin.weight.mul_(0.2)
    layer = _tight(gat)
    (found,) = torch.autograd.grad(layer(x, pairs).square().sum(), [gat.att_src])
    loop = unrolled(lambda z: gat(z, pairs) + x, torch.zeros_like(x), 200)
    (expected,) = torch.autograd.grad(loop.square().sum(), [gat.att_src])
    assert float(expected.abs().max()) > 1e-4
    assert torch.allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(), (4,), (4, 3), (2, 3, 4), (0, 3)])
def test_any_shape_of_z(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    layer = _tight(lambda z, x: torch.sin(z) / 3 + x)
    z = layer(x)
    assert z.shape == shape
    (found,) = torch.autograd.grad(z.sum(), [x])
    assert torch.allclose(z, torch.sin(z) / 3 + x, rtol=0, atol=1e-12)
    assert torch.allclose(found, 1 / (1 - torch.cos(z) / 3), rtol=0, atol=1e-10)


def test_z_may_have_another_shape_than_x() -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 5)

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(z.mean(1, keepdim=True)) / 2 + self.inner(x)

    layer, x = _tight(Wider()), torch.randn(7, 2)
    assert layer(x, z0=torch.ones(7, 5)).shape == (7, 5)
    with pytest.raises(UserError, match=r"f makes \[7, 5\] of a z of shape \[7, 2\]; .*give a z0"):
        layer(x)
    with pytest.raises(UserError, match=r"x is a torch\.int64 tensor, .*give z0"):
        layer(x.long())


def test_without_gradient_nothing_is_recorded_and_values_are_the_same() -> None:
    layer, x = _tight(Mixed()), torch.randn(NODES, WIDTH)
    recorded = layer(x)
    assert recorded.requires_grad
    evaluations = layer.info.evaluations
    with torch.no_grad():
        plain = layer(x)
    assert not plain.requires_grad
    assert torch.equal(plain, recorded)
    assert layer.info.evaluations == evaluations
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    assert layer(x.requires_grad_()).requires_grad


def test_a_tensor_that_f_only_closes_over_gets_its_gradient() -> None:
    shift = torch.randn(WIDTH, requires_grad=True)
    layer = _tight(lambda z, x: z / 4 + x + shift)
    z = layer(torch.randn(3, WIDTH))
    (found,) = torch.autograd.grad(z.sum(), [shift])
    assert torch.allclose(found, torch.full_like(found, 3 / 0.75))


def test_several_calls_in_one_step_add_up() -> None:
    f = Mixed()
    layer = _tight(f)
    xs = [torch.randn(n, WIDTH) for n in (4, 9)]
    separate = [torch.autograd.grad(layer(x).square().sum(), [f.weight])[0] for x in xs]
    first, second = layer(xs[0]), None
    first_info = layer.info
    second = layer(xs[1])
    (first.square().sum() + second.square().sum()).backward()
    assert f.weight.grad is not None
    assert torch.allclose(f.weight.grad, separate[0] + separate[1], rtol=0, atol=1e-11)
    assert first_info is not layer.info
    assert first_info.adjoint_evaluations > 0
    assert layer.info.adjoint_evaluations > 0


def test_a_layer_inside_a_layer_and_a_graph_that_is_kept() -> None:
    f = Mixed(3)
    inner = _tight(f)
    outer = _tight(lambda z, x: inner(z / 3) / 3 + x)
    x = torch.randn(4, 3, requires_grad=True)

    def solved(x: Tensor) -> Tensor:
        z: Tensor = outer(x)
        return z

    assert torch.autograd.gradcheck(solved, (x,), atol=1e-7)
    z = inner(x)
    once = torch.autograd.grad(z.sum(), [x], retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(z.sum(), [x])[0], once)


def test_copies_states_and_number_formats() -> None:
    layer = _tight(SAGEConv(WIDTH, WIDTH), bound=0.9, warm_start=True)
    x, pairs = torch.randn(NODES, WIDTH), edges()
    z = layer(x, pairs)
    twin = copy.deepcopy(layer)
    assert list(twin.state_dict()) == ["f.lin_l.weight", "f.lin_l.bias", "f.lin_r.weight"]
    assert torch.allclose(twin(x, pairs), z, rtol=0, atol=1e-11)
    other = _tight(SAGEConv(WIDTH, WIDTH), bound=0.9)
    other.load_state_dict(layer.state_dict())
    assert torch.allclose(other(x, pairs), z, rtol=0, atol=1e-11)
    single = FixedPoint(SAGEConv(WIDTH, WIDTH)).to(torch.float32)
    assert single(x.float(), pairs).dtype is torch.float32


def test_the_output_may_be_written_into() -> None:
    f = Mixed()
    layer, x = _tight(f, warm_start=True), torch.randn(NODES, WIDTH)
    expected = torch.autograd.grad(torch.relu(layer(x)).sum(), [f.weight])[0]
    found = torch.autograd.grad(torch.relu_(layer(x)).sum(), [f.weight])[0]
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        layer(x).zero_()
        layer(x)
    assert layer.info.evaluations == 1


def test_a_map_that_writes_into_z_is_found_out() -> None:
    f = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH))
    layer = FixedPoint(f, inject="add", bound=0.9)
    with pytest.raises(UserError, match="f writes into the z that it is given"), torch.no_grad():
        layer(torch.randn(NODES, WIDTH), z0=-torch.ones(NODES, WIDTH))


def test_a_map_that_writes_into_z_is_right_in_inference_mode() -> None:
    """There torch does not count what is written, so the map is given a copy."""
    layer = FixedPoint(lambda z, x: z.mul_(0.5).add_(x), on_failure="raise")
    with torch.inference_mode():
        z = layer(torch.ones(NODES, WIDTH))
    assert torch.allclose(z, torch.full_like(z, 2.0), atol=1e-4)


def test_a_result_without_gradients_is_not_the_users_own_tensor() -> None:
    x = torch.randn(NODES, WIDTH)
    with torch.no_grad():
        FixedPoint(lambda z, x: x)(x).zero_()
    assert bool((x != 0.0).all())


def test_float16_is_refused_and_f_may_compute_in_it() -> None:
    x = torch.randn(NODES, WIDTH).half()
    layer = FixedPoint(lambda z, x: 0.5 * torch.tanh(z.half()) + x, on_failure="raise")
    for z0 in (None, torch.zeros_like(x)):
        with pytest.raises(UserError, match=r"(x|z0) is float16, .* give z0 in float32 or bfloat"):
            layer(x, z0=z0)
    layer = FixedPoint(layer.f, tolerance=1e-2, on_failure="raise")
    assert layer(x, z0=torch.zeros(NODES, WIDTH, dtype=torch.float32)).dtype is torch.float32


def test_inference_mode_and_checkpointing() -> None:
    f, x = Mixed(), torch.randn(NODES, WIDTH)
    layer = _tight(f, warm_start=True)
    with torch.inference_mode():
        layer(x)
    expected = torch.autograd.grad(layer(x).square().sum(), [f.weight])[0]
    z = checkpoint(layer, x, use_reentrant=False)
    assert isinstance(z, Tensor)
    found = torch.autograd.grad(z.square().sum(), [f.weight])[0]
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_warm_start_saves_evaluations_and_follows_shape_and_format() -> None:
    f = Mixed()
    layer, cold = _tight(f, warm_start=True), _tight(f)
    x = torch.randn(NODES, WIDTH)
    for _ in range(2):
        layer(x).sum().backward()
        cold(x).sum().backward()
    assert layer.info.evaluations == layer.info.adjoint_evaluations == 1
    assert cold.info.evaluations > 5
    assert cold.info.adjoint_evaluations > 5
    assert layer(x[:4]).shape == (4, WIDTH)
    assert layer.info.evaluations > 5
    layer(x[:4], z0=torch.ones(4, WIDTH))  # what is given counts
    assert layer.info.evaluations > 5


def test_compiled_maps_give_the_same_gradient() -> None:
    conv, pairs = SAGEConv(WIDTH, WIDTH), edges()
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    plain = _tight(conv, bound=0.9)
    expected = torch.autograd.grad(plain(x, pairs).square().sum(), [x, *conv.parameters()])
    # the backends that need no compiler; autograd's part is the same in all of them
    compiled = _tight(torch.compile(conv, backend="aot_eager"), bound=0.9)
    assert compiled.inject == "add"
    found = torch.autograd.grad(compiled(x, pairs).square().sum(), [x, *conv.parameters()])
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-10)


def test_dropout_inside_is_one_mask_a_call() -> None:
    class Dropped(Mixed):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(z, x), 0.5, self.training)

    f = Dropped()
    layer, x = _tight(f), torch.randn(NODES, WIDTH)
    torch.manual_seed(3)
    z = layer(x)
    assert layer.info.converged
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.allclose(z, unrolled(lambda z: _with_seed(3, f, z, x), torch.zeros_like(x), 60))
    assert torch.equal(torch.rand(1), after)
    assert not torch.allclose(layer(x), z)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def _with_seed(seed: int, f: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    torch.manual_seed(seed)
    out: Tensor = f(z, x)
    return out


def test_autocast_is_followed_by_f_and_not_by_z() -> None:
    layer = FixedPoint(nn.Linear(WIDTH, WIDTH), inject="add", bound=0.5, tolerance=1e-2).float()
    x = torch.randn(NODES, WIDTH, dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
    assert z.dtype is torch.float32
    z.sum().backward()
    assert x.grad is not None


def test_nothing_of_a_call_outlives_it() -> None:
    layer = _tight(Mixed())
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    gc.disable()
    try:
        z = layer(x)
        seen = weakref.ref(z.grad_fn)
        z.sum().backward()
        del z
        assert seen() is None
    finally:
        gc.enable()


class _Expanding(nn.Module):
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 3.0 * torch.abs(z) + x.abs() + 1.0


def test_divergence_warns_once_and_says_the_way_out() -> None:
    layer = FixedPoint(_Expanding(), "picard", max_steps=20)
    x = torch.ones(4, WIDTH)
    line = (
        r"the forward solve stops at a relative residual of 6\.\de-01 after 20 evaluations.*"
        r"\(tolerance 1e-05\); make the map a contraction \(smaller weights, or bound=0\.9\)"
    )
    with pytest.warns(NotConvergedWarning, match=line):
        layer(x)
    assert not layer.info.converged
    assert layer.info.evaluations == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)  # said already
        FixedPoint(_Expanding(), "picard", max_steps=20, on_failure="ignore")(x)
    with pytest.raises(UserError, match="the forward solve stops"):
        FixedPoint(_Expanding(), "picard", max_steps=20, on_failure="raise")(x)


def test_numbers_that_are_not_finite_raise() -> None:
    x = torch.ones(4, WIDTH)
    with pytest.raises(UserError, match=r"too large for float64 after .* evaluations; make the"):
        FixedPoint(_Expanding(), "picard", max_steps=5000)(x)
    with pytest.raises(UserError, match="not finite or too large for float64 at its start"):
        FixedPoint(Mixed())(x * torch.nan)


def test_a_backward_solve_that_fails_says_so() -> None:
    layer = FixedPoint(Mixed(), adjoint_solver="picard", adjoint_max_steps=1)
    z = layer(torch.randn(4, WIDTH))
    with pytest.warns(NotConvergedWarning, match="the backward solve stops"):
        z.sum().backward()
    assert layer.info.forward is not None
    assert layer.info.forward.converged
    assert not layer.info.converged


def test_a_tolerance_below_the_number_format_is_named() -> None:
    layer = FixedPoint(Mixed().float(), tolerance=1e-12, max_steps=30)
    with pytest.warns(NotConvergedWarning, match="float32 cannot reach the tolerance 1e-12"):
        layer(torch.randn(NODES, WIDTH, dtype=torch.float32))


def test_bound_makes_an_expanding_map_contract_and_leaves_others_alone() -> None:
    conv, pairs = SAGEConv(WIDTH, WIDTH), edges()
    with torch.no_grad():
        conv.lin_l.weight.mul_(20.0)
        conv.lin_r.weight.mul_(0.01)
    small = conv.lin_r.weight.detach().clone()
    layer = _tight(conv, "picard", bound=0.8)
    layer(torch.randn(NODES, WIDTH), pairs)
    assert layer.info.converged
    norms = [float(torch.linalg.matrix_norm(w.detach(), ord=2)) for w in linear_weights(conv)]
    assert norms[0] == pytest.approx(0.4)
    assert torch.equal(conv.lin_r.weight, small)
    version = conv.lin_l.weight._version
    layer(torch.randn(NODES, WIDTH), pairs)
    assert conv.lin_l.weight._version == version


def test_a_solver_may_be_an_object() -> None:
    f, x = Mixed(), torch.randn(NODES, WIDTH)
    expected = _tight(f)(x)
    layer = FixedPoint(f, Anderson(3), tolerance=1e-12)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-10)
    for network in NETWORKS:
        shape = NeuralShape(WIDTH, 3, 10, 4, 5, network)
        predictor = build_predictor(shape).requires_grad_(False)
        layer = FixedPoint(f, NeuralSolver(predictor, NODES, 1e-10), tolerance=1e-12)
        if network == "graph":
            with pytest.raises(UserError, match="reads the neighbours of a graph"):
                layer(x)
            continue
        z = layer(x)
        assert torch.allclose(z, expected, rtol=0, atol=1e-10)
        z.sum().backward()
        assert layer.info.converged


def test_a_solver_with_an_estimator_is_refused() -> None:
    solver = NeuralSolver(None, NODES, 1e-10, estimator=ErrorEstimator(BasisCache(3), 1, 1, 1))
    layer = FixedPoint(Mixed(), solver)
    with pytest.raises(UserError, match=r"trained with solver\.estimator none, or anderson$"):
        layer(torch.randn(NODES, WIDTH))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"solver": "neural"}, "solver = 'neural' has to be trained"),
        ({"solver": "broyden", "beta": 0.5}, r"beta = 0\.5 makes no difference to broyden"),
        ({"solver": "picard", "memory": 9}, r"memory = 9 makes no difference to picard; leave it"),
        ({"solver": "broyden", "regularization": 1.0}, r"= 1\.0 makes no difference to broyden"),
        (
            {"solver": "picard", "adjoint_solver": "broyden", "regularization": 1.0},
            r"= 1\.0 makes no difference to picard and broyden; leave it out or choose another sol",
        ),
        *(
            (
                {"solver": Anderson(3), name: value},
                f"{name} = {value} makes no .* to Anderson; .*obj",
            )
            for name, value in (("memory", 9), ("beta", 0.5), ("regularization", 1.0))
        ),
        ({"solver": "newton"}, "solver = 'newton' must be"),
        ({"tolerance": 0.0}, "tolerance = 0.0 must be above 0"),
        ({"max_steps": 0}, "max_steps = 0 must be at least 1"),
        ({"adjoint_tolerance": -1.0}, "tolerance = -1.0 must be above 0"),
        ({"inject": "concat"}, "inject = 'concat' must be one of auto, argument, add, pair"),
        ({"on_failure": "stop"}, "on_failure = 'stop' must be one of warn, raise, ignore"),
        ({"bound": 1.5}, r"bound = 1\.5 must be above 0 and below 1"),
        ({"bound": 0.9}, "bound needs linear layers to bound, and Mixed has none"),
        ({"beta": 2.0}, r"beta = 2\.0 must be at most 1"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        FixedPoint(Mixed(), **settings)
    assert "\n" not in str(caught.value)


def test_a_setting_that_one_direction_reads_is_taken() -> None:
    f, x = Mixed(), torch.randn(NODES, WIDTH)
    expected = _tight(f)(x)
    for solver, adjoint in (("picard", "anderson"), ("anderson", "picard")):
        layer = _tight(f, solver, adjoint_solver=adjoint, memory=9, regularization=1e-9)
        assert torch.allclose(layer(x), expected, rtol=0, atol=1e-9)
    assert FixedPoint(f, Anderson(3), adjoint_solver="anderson", memory=9, beta=0.5)


def test_a_map_that_cannot_be_called_so_is_one_line() -> None:
    x = torch.randn(NODES, WIDTH)
    line = (
        r"called as f\(z, x, \.\.\.\) with 0 more arguments and f takes .*; choose another inject"
    )
    with pytest.raises(UserError, match=line):
        FixedPoint(nn.Linear(WIDTH, WIDTH))(x)

    def broken(z: Tensor, x: Tensor) -> Tensor:
        raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        FixedPoint(broken)(x)
