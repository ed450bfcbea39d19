"""What each cell promises: one equilibrium, found by iterating, equal to a dense solve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import ModelConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.partitioning.sharding import build_shards
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.models.cells import CellWeights, build_weights
from distributed_ignn.models.cells.mignn import Splitting
from distributed_ignn.models.constraints import largest_column_sum
from distributed_ignn.models.implicit import ImplicitLayer, SolvePlan
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.propagation.propagate import Propagation
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve
from tests.parity.cases import assign, make_data

WIDTH = 4


class _Setup:
    """One cell on one small graph, with the graph's matrices as dense ones."""

    def __init__(self, case: str, **model: Any) -> None:
        self.config = ModelConfig.model_validate({"hidden": WIDTH, "kappa": 0.9} | model)
        shard: GraphShard = next(iter(build_shards(make_data(case), assign(case, 1), 1)))
        shard = shard.normalised(self.config.normalisation)
        comm = Communicator()
        self.propagation = Propagation(shard, comm, torch.float64)
        torch.manual_seed(0)
        made = build_weights(self.config, shard, self.propagation, comm, torch.float64)
        self.weights: CellWeights = made.double()
        self.weights.project()
        self.layer = ImplicitLayer(self.propagation, comm.sum, form=self.weights.form)
        self.nodes = shard.num_nodes
        self.owned = shard.owned_nodes
        self.dense = self.layer.products(torch.eye(self.nodes, dtype=torch.float64))
        self.injection = torch.randn(self.nodes, WIDTH, dtype=torch.float64)

    def roughen(self, scale: float = 3.0) -> None:
        """Parameters far from where they start, as training could leave them."""
        with torch.no_grad():
            for parameter in self.weights.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
        self.weights.project()

    def linear(self) -> Tensor:
        """sum_c B_c kron W_c', [n D, n D], differentiable: what acts on Z row by row."""
        pairs = zip(self.dense, self.weights(), strict=True)
        return torch.stack([torch.kron(a, w.T.contiguous()) for a, w in pairs]).sum(dim=0)

    def cell(self) -> EquilibriumCell:
        return self.layer.cell(self.injection, self.weights(), keep_products=True)

    def fixed_point(self, start: Tensor, solver: AnySolver, max_steps: int = 5000) -> Tensor:
        with torch.no_grad():
            solution = solve(
                self.cell(), start, solver, lambda s: s, tolerance=1e-13, max_steps=max_steps
            )
        assert solution.converged
        return solution.image


def _plan() -> SolvePlan:
    return SolvePlan(
        Anderson(), lambda cell, driver: torch.zeros_like(driver), 1e-13, 5000, lambda found: None
    )


EIGNN = [
    ("plain", {}),
    ("directed", {}),
    ("channels", {}),
    ("plain", {"residual": 0.3}),
    ("channels", {"learn_kappa": True}),
    ("both", {"residual": 0.2}),
    ("plain", {"normalisation": "row"}),
]


@pytest.mark.parametrize(("case", "model"), EIGNN)
def test_eignn_kernels_are_positive_and_below_one(case: str, model: dict[str, Any]) -> None:
    setup = _Setup(case, cell="eignn", **model)
    for _ in range(5):
        setup.roughen()
        weights = [w.detach() for w in setup.weights()]
        norms = [float(torch.linalg.matrix_norm(w, 2)) for w in weights]
        contraction = setup.weights.contraction()
        assert contraction is not None
        assert sum(norms) <= contraction * (1 + 1e-12)
        assert contraction <= 0.9
        for weight in weights:
            assert torch.allclose(weight, weight.T)
            assert float(torch.linalg.eigvalsh(weight)[0]) > -1e-14
        assert float(torch.linalg.eigvals(setup.linear().detach()).abs().max()) <= contraction


@pytest.mark.parametrize(("case", "model"), EIGNN)
def test_eignn_is_its_closed_form_and_so_is_its_gradient(case: str, model: dict[str, Any]) -> None:
    setup = _Setup(case, cell="eignn", **model)
    injection = setup.injection.clone().requires_grad_()
    parameters = [injection, *setup.weights.parameters()]
    probe = torch.randn_like(setup.injection)
    identity = torch.eye(setup.nodes * WIDTH, dtype=torch.float64)
    closed = torch.linalg.solve(identity - setup.linear(), injection.flatten())
    expected = torch.autograd.grad((closed * probe.flatten()).sum(), parameters)
    found = setup.layer(injection, setup.weights(), _plan(), _plan())
    assert torch.allclose(found.flatten(), closed, rtol=1e-10, atol=1e-11)
    assert float(found.detach().min()) < 0  # no activation
    gradients = torch.autograd.grad((found * probe).sum(), parameters)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert float(theirs.abs().max()) > 1e-3
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", ["plain", "directed", "channels"])
def test_eignn_iterates_from_anywhere_to_one_point(case: str) -> None:
    setup = _Setup(case, cell="eignn")
    starts = [torch.zeros_like(setup.injection), 100 * torch.randn_like(setup.injection)]
    first, second = (setup.fixed_point(start, Picard()) for start in starts)
    assert torch.allclose(first, second, atol=1e-9)


def test_eignn_on_a_directed_graph_contracts_in_the_certified_norm() -> None:
    """Distances of two sequences, over many steps, against kappa to that power."""
    setup = _Setup("directed", cell="eignn", init="identity")
    cell, points = setup.cell(), [torch.randn_like(setup.injection) for _ in range(2)]
    distances = []
    with torch.no_grad():
        for _ in range(120):
            distances.append(float((points[0] - points[1]).abs().max()))
            points = [cell(z, None).image for z in points]
    assert distances[60] <= 50 * 0.9**60 * distances[0]


@pytest.mark.parametrize("cell", ["ignn", "eignn"])
@pytest.mark.parametrize(("case", "model"), [("both", {}), ("channels", {"normalisation": "row"})])
def test_rows_that_sum_to_one_leave_kappa_to_the_weights(
    case: str, model: dict[str, Any], cell: str
) -> None:
    """Every single step contracts by kappa in the norm of w = 1."""
    setup = _Setup(case, cell=cell, init="identity", **model)
    assert setup.weights.growth == 1.0
    assert setup.weights.norm == ("max" if cell == "ignn" else "rows")
    measure = _largest_entry if cell == "ignn" else _longest_row
    for _ in range(5):
        setup.roughen()
        fixed, (a, b) = setup.cell(), (torch.randn_like(setup.injection) for _ in range(2))
        with torch.no_grad():
            after = measure(fixed(a, None).image - fixed(b, None).image)
        assert after <= 0.9 * measure(a - b) * (1 + 1e-12)
    ones = torch.full_like(setup.injection, 1.0)
    products = setup.propagation.apply(ones)
    assert all(torch.allclose(product, ones, rtol=1e-14) for product in products)
    if cell == "ignn":
        weights = torch.cat(setup.weights()).detach()
        assert largest_column_sum(weights) == pytest.approx(0.9)


def _largest_entry(rows: Tensor) -> float:
    return float(rows.abs().max())


def _longest_row(rows: Tensor) -> float:
    return float(rows.norm(dim=1).max())


MIGNN = [
    ("plain", {"skew": 0.0}),
    ("plain", {"skew": 0.4}),
    ("plain", {"skew": 2.0}),
    ("plain", {"skew": 0.3, "residual": 0.4}),
    ("channels", {"skew": 0.5}),
    ("channels", {"skew": 0.2, "learn_kappa": True}),
]


@pytest.mark.parametrize(("case", "model"), MIGNN)
def test_mignn_is_strongly_monotone_and_its_step_contracts(
    case: str, model: dict[str, Any]
) -> None:
    setup = _Setup(case, cell="mignn", **model)
    for _ in range(3):
        setup.roughen()
        with torch.no_grad():
            linear = setup.linear()
        operator = torch.eye(linear.shape[0], dtype=torch.float64) - linear
        smallest = float(torch.linalg.eigvalsh((operator + operator.T) / 2)[0])
        assert smallest >= 0.1 - 1e-12
        step = setup.weights.form.at(setup.weights()).step
        split = torch.eye(linear.shape[0], dtype=torch.float64) - step * operator
        contraction = setup.weights.contraction()
        assert contraction is not None
        assert contraction < 1
        assert float(torch.linalg.matrix_norm(split, 2)) <= contraction + 1e-12


def test_mignn_reaches_its_bounds() -> None:
    """Its set of matrices is not smaller than it says: both bounds are attained."""
    setup = _Setup("plain", cell="mignn", skew=0.5, hidden=WIDTH)
    parameters = dict(setup.weights.named_parameters())
    with torch.no_grad():
        parameters["cayley"].zero_()
        parameters["skew"].zero_()
        parameters["skew"][0, 0, 1] = 1.0
        (weight,) = setup.weights()
    assert torch.allclose((weight + weight.T) / 2, 0.9 * torch.eye(WIDTH).double())
    assert float(torch.linalg.matrix_norm((weight - weight.T) / 2, 2)) == pytest.approx(0.5)


@pytest.mark.parametrize("case", ["plain", "channels"])
def test_mignn_converges_where_the_column_sum_bound_and_the_plain_map_fail(case: str) -> None:
    """From any start, to the fixed point of the equation without the step."""
    setup = _Setup(case, cell="mignn", skew=1.0, init="identity")
    with torch.no_grad():
        parameters = dict(setup.weights.named_parameters())
        parameters["skew"].copy_(torch.randn_like(parameters["skew"]))
        weights = setup.weights()
        assert largest_column_sum(torch.cat(weights)) > 1.2
        assert float(torch.linalg.eigvals(setup.linear()).abs().max()) > 1.0
    starts = [torch.zeros_like(setup.injection), 10 * torch.randn_like(setup.injection)]
    picard = [setup.fixed_point(start, Picard(), 20000) for start in starts]
    mixed = setup.fixed_point(starts[1], Anderson(), 20000)
    with torch.no_grad():
        products = setup.layer.products(picard[0])
        plain = torch.stack([p @ w for p, w in zip(products, weights, strict=True)]).sum(dim=0)
    assert torch.allclose(torch.relu(plain + setup.injection), picard[0], atol=1e-8)
    for other in (picard[1], mixed):
        assert torch.allclose(picard[0], other, atol=1e-8)


def test_splitting_step_is_the_best_for_its_bound() -> None:
    for values in ((0.95, 0.1, 0.19), (0.9, 2.0, 0.5), (0.5, 0.3, 0.1), (0.9, 0.0, 0.0)):
        splitting = Splitting(*values)
        best = splitting.contraction(splitting.step())
        others = [splitting.contraction(t / 500) for t in range(1, 501)]
        assert best <= min(others) + 1e-12
        assert best < 1
    assert Splitting(0.9, 0.0, 0.0).step() == 1.0
    assert Splitting(0.9, 0.0, 0.0).contraction(1.0) == pytest.approx(0.9)


def test_splitting_reads_the_weights() -> None:
    skew = torch.zeros(3, 3, dtype=torch.float64)
    skew[0, 1], skew[1, 0] = 0.3, -0.3
    symmetric = torch.diag(torch.tensor([0.8, 0.5, -0.7])).double()
    found = Splitting.of([symmetric + skew])
    # the commutator of the two is symmetric with entries 0.3 * (0.8 - 0.5)
    assert [found.symmetric, found.skew, found.cross] == pytest.approx([0.8, 0.3, 0.09])
    halves = Splitting.of([symmetric / 2, symmetric / 2 + skew])
    assert [halves.symmetric, halves.skew, halves.cross] == pytest.approx([0.8, 0.3, 0.48])


def test_mignn_refuses_a_directed_graph() -> None:
    with pytest.raises(UserError, match=r"model.cell = mignn needs undirected graphs") as error:
        _Setup("directed", cell="mignn")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"use ignn or eignn, or data.directions = undirected"):
        _Setup("both", cell="mignn")
    with pytest.raises(UserError, match=r"model.normalisation = row .*; use symmetric, or "):
        _Setup("plain", cell="mignn", normalisation="row")


ALL = [
    *(("plain", {"cell": cell}) for cell in ("ignn", "eignn", "mignn")),
    *(
        ("channels", {"cell": cell, "learn_kappa": True, "residual": 0.2})
        for cell in ("ignn", "eignn", "mignn")
    ),
    ("directed", {"cell": "ignn", "learn_kappa": True}),
    ("directed", {"cell": "eignn"}),
]


@pytest.mark.parametrize(("case", "model"), ALL)
def test_gradient_of_every_parameter_agrees_with_finite_differences(
    case: str, model: dict[str, Any]
) -> None:
    setup = _Setup(case, **model)
    named = dict(setup.weights.named_parameters())

    def equilibrium(injection: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(named, values, strict=True))
        weights = torch.func.functional_call(setup.weights, parameters, ())
        return setup.layer(injection, list(weights), _plan(), _plan())

    values = [setup.injection, *(p.detach() for p in named.values())]
    inputs = tuple(value.clone().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(
        equilibrium, inputs, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize(("case", "model"), ALL)
def test_a_cell_shows_weights_active_entries_and_products(case: str, model: dict[str, Any]) -> None:
    setup = _Setup(case, **model)
    cell = setup.cell()
    z = torch.rand_like(setup.injection)
    with torch.no_grad():
        evaluation = cell(z, None)
        image = evaluation.image
        mixed = [a @ z for a in setup.dense]
        pairs = zip(mixed, setup.weights(), strict=True)
        whole = torch.stack([p @ w for p, w in pairs]).sum(dim=0) + setup.injection
    whole = z + setup.weights.form.at(setup.weights()).step * (whole - z)
    if model["cell"] == "eignn":
        assert torch.equal(cell.gate(torch.ones_like(z), image), torch.ones_like(z))
        assert torch.allclose(image, whole)
    else:
        assert torch.allclose(image, torch.relu(whole))
        values = torch.randn_like(z)
        assert torch.equal(cell.gate(values.clone(), image), values * (image > 0))
        assert 0 < int((image > 0).sum()) < image.numel()
    for found, expected in zip(cell.products_of(evaluation), mixed, strict=True):
        assert torch.allclose(found, expected)
    assert cell.evaluations == 1
    for own, made in zip(cell.weights, setup.weights(), strict=True):
        assert torch.equal(own, made)


@pytest.mark.parametrize("case", ["plain", "channels"])
def test_a_learned_kappa_scales_the_bound(case: str) -> None:
    setup = _Setup(case, cell="ignn", learn_kappa=True)
    reference = _Setup(case, cell="ignn")
    with torch.no_grad():
        dict(setup.weights.named_parameters())["weight"].copy_(5 * torch.randn(1, WIDTH, WIDTH))
        setup.weights.project()
        full = largest_column_sum(torch.cat(reference.weights())) / 0.9
        for offset in (-3.0, 0.0, 4.0):
            dict(setup.weights.named_parameters())["kappa.offset"].fill_(offset)
            kappa = setup.weights.contraction()
            assert kappa is not None
            assert kappa == pytest.approx(0.9 * torch.sigmoid(torch.tensor(3.0 + offset)).item())
            assert largest_column_sum(torch.cat(setup.weights())) == pytest.approx(kappa * full)


def test_without_the_constraint_nothing_is_certified() -> None:
    assert _Setup("plain", constraint="none").weights.contraction() is None


def test_residual_share_keeps_the_bounds_of_the_propagation() -> None:
    """B = (1 - r) A_hat + r I has its spectrum in [-1, 1] and acts as written."""
    plain, mixed = _Setup("plain"), _Setup("plain", residual=0.3)
    identity = torch.eye(plain.nodes, dtype=torch.float64)
    assert torch.allclose(mixed.dense[0], 0.7 * plain.dense[0] + 0.3 * identity)
    assert float(torch.linalg.eigvalsh(mixed.dense[0]).abs().max()) <= 1 + 1e-12
