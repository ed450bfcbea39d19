"""The closed-form fits: optimal on their sample, and of use to the solves that follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import Iterate
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.initialiser import Initialiser
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from distributed_ignn.training.learned.fit import FitSample, SolverFit
from distributed_ignn.training.learned_solver import LearnedSolver
from distributed_ignn.training.plans import ADJOINT
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import NODES
from tests.training.small_trainers import small_config, small_trainer, train

TIGHT = {"target_tolerance": 1e-12, "target_max_steps": 500}


def _learned(trainer: Trainer) -> LearnedSolver:
    assert trainer.learned is not None
    return trainer.learned


def _trainer(case: str = "plain", **solver: Any) -> Trainer:
    """A trainer with the closed-form parts alone, two epochs in."""
    parts = {"network": "none", "sparsifier": "none", **TIGHT, **solver}
    config = small_config({"solver": parts, "adjoint": {"method": "neural"}})
    trainer = small_trainer(Communicator(), config, case)
    train(trainer, 2)
    return trainer


def _map(trainer: Trainer) -> tuple[EquilibriumCell, Tensor, Tensor]:
    """The map of the present weights, b, and Z*."""
    injection = trainer.implicit.injection().detach()
    cell = trainer.implicit.layer.cell(injection, trainer.implicit.channel_weights())
    start = torch.relu(injection)
    found = solve(cell, start, Anderson(), lambda s: s, tolerance=1e-13, max_steps=500)
    assert found.converged
    return cell, injection, found.image


def _fit(sample: FitSample) -> SolverFit:
    return SolverFit(Communicator(), sample, sample, 5, 1e-10)


_HALF = FitSample(torch.arange(0, NODES, 2))
_SAMPLES = {"all": FitSample(None), "half": _HALF}


@pytest.mark.parametrize("case", ["plain", "channels"])
@pytest.mark.parametrize("sample", _SAMPLES.values(), ids=_SAMPLES.keys())
def test_no_other_coefficients_estimate_the_error_better(case: str, sample: FitSample) -> None:
    trainer = _trainer(case)
    cell, injection, target = _map(trainer)
    estimator = _learned(trainer).estimator
    assert estimator is not None
    start = torch.relu(injection) / 2
    image = cell(start, None).image

    def error() -> float:
        """On the sample, after the first estimate."""
        estimate = estimator.estimate(cell, image - start, image, 0)
        return float(sample.take(start + estimate - target).square().sum())

    estimator.coefficients.zero_()
    estimator.coefficients[:, 0] = 1.0
    before = error()
    _fit(sample).estimator(estimator, cell, start, target)
    best, row = error(), estimator.coefficients[0]
    assert best < 0.5 * before
    rises = []
    for place in range(row.numel()):
        for change in (0.05, -0.05):
            row[place] += change
            rises.append(error() - best)
            row[place] -= change
    # the fit is regularised, and its features nearly depend on each other
    assert min(rises) > -1e-4 * best
    assert max(rises) > 1e-2 * best


def test_the_fit_sees_what_the_map_leaves_of_the_distance() -> None:
    trainer = _trainer()
    cell, injection, target = _map(trainer)
    estimator = _learned(trainer).estimator
    assert estimator is not None
    start = torch.relu(injection) / 2
    _fit(FitSample(None)).estimator(estimator, cell, start, target)
    expected = (cell(start, None).image - target).norm() / (start - target).norm()
    assert 0.0 < float(expected) < 1.0
    assert float(estimator.plain_rate) == pytest.approx(float(expected), rel=1e-9)
    _fit(FitSample(None)).estimator(estimator, cell, target, target)
    assert float(estimator.plain_rate) == 1.0  # nothing was left to begin with


def test_a_sample_decides_the_fit() -> None:
    trainer = _trainer()
    cell, injection, target = _map(trainer)
    estimator = _learned(trainer).estimator
    assert estimator is not None
    found = []
    for sample in _SAMPLES.values():
        _fit(sample).estimator(estimator, cell, torch.relu(injection), target)
        found.append(estimator.coefficients.clone())
    assert not torch.allclose(found[0], found[1], rtol=1e-3)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_no_other_readout_starts_nearer_to_the_pre_activation(hops: int) -> None:
    trainer = _trainer(initialiser_hops=hops)
    cell, injection, target = _map(trainer)
    h = _learned(trainer).initialiser
    assert h is not None
    wanted = cell.pre_activation(target)

    columns = h.columns(cell, h.basis(cell), injection, torch.relu)

    def error() -> float:
        basis = h.basis(cell)
        guess = h.untrained(basis, injection, columns) + torch.cat(columns, dim=1) @ h.readout
        return float((guess - wanted).square().sum())

    h.readout.zero_()
    before = error()
    _fit(FitSample(None)).initialiser(h, cell, injection, target)
    best = error()
    assert best < 0.9 * before
    assert torch.equal(h.frame, h.basis(cell).frame)
    rises = []
    for change in (0.05, -0.05):
        for row in range(0, h.readout.shape[0]):
            for column in range(0, h.readout.shape[1], 3):
                h.readout[row, column] += change
                rises.append(error() - best)
                h.readout[row, column] -= change
    assert min(rises) > -1e-5 * best
    assert max(rises) > 1e-4 * best


def _distance(point: Tensor, target: Tensor) -> float:
    return float((point - target).norm() / target.norm())


def _guess(h: Initialiser | None, cell: EquilibriumCell, injection: Tensor) -> Tensor:
    assert h is not None
    found: Tensor = h(cell, injection, torch.relu)
    return found


def test_the_initialiser_starts_nearer_and_still_does_when_the_weights_change() -> None:
    trainer = _trainer()
    h = _learned(trainer).initialiser
    cell, injection, target = _map(trainer)
    before = _distance(_guess(h, cell, injection), target)
    trainer.tune_solver()
    after = _distance(_guess(h, cell, injection), target)
    assert after < 0.7 * before
    with torch.no_grad():
        dict(trainer.model.named_parameters())["cell_weights.weight"].mul_(0.9)
    changed, injection, moved = _map(trainer)
    assert _distance(moved, target) > 0.02
    assert h is not None
    untrained = Initialiser(h.readout.shape[1], BasisCache(3), h.hops, 1).to(injection)
    assert _distance(_guess(h, changed, injection), moved) < 0.8 * _distance(
        _guess(untrained, changed, injection), moved
    )


def test_the_loss_of_a_phase_is_where_a_solve_gets_to() -> None:
    """log(||Z_k - Z*|| / ||Z*||) after as many steps of the solver as have been fitted."""
    trainer = _trainer(estimator_steps=2)
    loss, _ = trainer.tune_solver()
    learned = _learned(trainer)
    cell, injection, target = _map(trainer)
    z = _guess(learned.initialiser, cell, injection)
    solver = learned.solver()
    state = solver.init(z, cell)
    for _ in range(2):
        evaluation = cell(z, None)
        residual = solver.observe(state, evaluation, lambda s: s)
        assert state.strikes == 0
        z = solver.advance(state, Iterate(evaluation, residual))
    expected = torch.tensor(_distance(z, target)).log()
    assert loss == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "kept"), [({"lambda1": 0.0}, "estimator"), ({"lambda2": 0.0}, "initialiser")]
)
def test_a_part_without_weight_stays_untrained(changes: dict[str, Any], kept: str) -> None:
    trainer = _trainer(**changes)
    modules = _learned(trainer).modules()
    before = {name: [p.clone() for p in part.parameters()] for name, part in modules.items()}
    trainer.tune_solver()
    for name in ("estimator", "initialiser"):
        pairs = zip(before[name], modules[name].parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (name == kept)


@pytest.mark.parametrize("steps", [1, 3])
def test_it_goes_on_past_the_fitted_steps(steps: int) -> None:
    trainer = _trainer("channels", estimator_steps=steps)
    trainer.tune_solver()
    learned = _learned(trainer)
    cell, injection, target = _map(trainer)
    start = _guess(learned.initialiser, cell, injection)
    solved = solve(cell, start, learned.solver(), lambda s: s, tolerance=1e-10, max_steps=100)
    plain = torch.relu(injection)
    anderson = solve(cell, plain, Anderson(), lambda s: s, tolerance=1e-10, max_steps=100)
    assert solved.converged
    assert solved.steps < anderson.steps
    assert _distance(solved.image, target) < 1e-8


def test_a_learned_adjoint_gives_the_gradient_that_anderson_gives() -> None:
    trainer = _trainer("channels")
    tight = {"tolerance": 1e-13, "max_steps": 300}
    adjoint = trainer.config.adjoint.model_copy(update=tight)
    forward = trainer.config.forward.model_copy(update=tight)
    trainer.planner._config = trainer.config.model_copy(update={"forward": forward})
    trainer.tune_solver(backward=True)
    found, steps = [], []
    for method in ("neural", "anderson"):
        sections = {"forward": forward, "adjoint": adjoint.model_copy(update={"method": method})}
        trainer.planner._config = trainer.config.model_copy(update=sections)
        used = trainer.planner.method(ADJOINT)
        assert isinstance(used, NeuralSolver) == (method == "neural")
        trainer.planner.forget()
        trainer.planner.log.clear()
        trainer.model.zero_grad()
        trainer.loss.share(trainer.epoch, trainer.planner, {}).backward()
        found.append([p.grad.clone() for p in trainer.model.parameters() if p.grad is not None])
        steps.append(trainer.planner.log.steps(ADJOINT))
    assert len(found[0]) == len(found[1]) > 3
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-8 * float(theirs.abs().max()))
    assert steps[0] != steps[1], "the estimator was not used"


def test_only_the_backward_fit_reads_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer()

    def refuse(logits: Tensor) -> Tensor:
        raise AssertionError("labels were read")

    monkeypatch.setattr(trainer.objective, "row_loss", refuse)
    adjoint = _learned(trainer).adjoint
    assert isinstance(adjoint, ErrorEstimator)
    before = adjoint.coefficients.clone()
    trainer.tune_solver()
    assert torch.equal(adjoint.coefficients, before)
    with pytest.raises(AssertionError, match="labels were read"):
        trainer.tune_solver(backward=True)


def test_a_sample_is_about_as_large_as_asked_and_all_where_that_is_more() -> None:
    nodes = torch.arange(10_000)
    rows = FitSample.draw(nodes, 10_000, 1000).rows
    assert rows is not None
    assert 900 < rows.numel() < 1100
    assert rows.unique().numel() == rows.numel()
    assert FitSample.draw(nodes, 10_000, 10_000).rows is None
