"""The paper's own solver in training: its losses as printed, their gradient, what moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import NeuralSolverConfig
from distributed_ignn.errors import UserError
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.runs.checkpoints.snapshot import restore, take_snapshot
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.paper_solver import PaperNetwork
from distributed_ignn.solvers.solve import solve
from distributed_ignn.training.learned.paper_training import PaperParts, PaperRollout
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import FEATURES, NODES, WIDTH
from tests.training.small_trainers import everything, small_config, small_trainer, train

PAPER: dict[str, Any] = {
    "kind": "paper",
    "network": "none",
    "steps": 3,
    "memory": 2,
    "compress": 4,
    "hidden": 5,
    "bottleneck": 3,
    "lr": 0.02,
    "target_tolerance": 1e-9,
}


def _trainer(changes: dict[str, dict[str, Any]] | None = None, graph: str = "plain") -> Trainer:
    merged: dict[str, dict[str, Any]] = {"solver": PAPER}
    for section, keys in (changes or {}).items():
        merged[section] = merged.get(section, {}) | keys
    return small_trainer(Communicator(), small_config(merged), graph)


def _parts(trainer: Trainer) -> PaperParts:
    assert isinstance(trainer.learned, PaperParts)
    return trainer.learned


def _problem(trainer: Trainer) -> tuple[EquilibriumCell, Tensor, Tensor]:
    """The map, f(0) and Z*."""
    model = trainer.implicit
    injection = model.injection().detach()
    cell = model.layer.cell(injection, model.channel_weights())
    start = torch.relu(injection)
    found = solve(cell, start, Anderson(), lambda sums: sums, tolerance=1e-13, max_steps=2000)
    return cell, start, found.image


def _network(trainer: Trainer) -> PaperNetwork:
    """With heads that are not zero, so that every weight matters."""
    network = _parts(trainer).network
    for head in (network.head_alpha, network.head_beta):
        head.weight.data.add_(torch.randn_like(head.weight), alpha=0.1)
    return network


def _rollout(trainer: Trainer, **settings: Any) -> Any:
    """The loss of the steps from f(0), as a function of nothing."""
    cell, start, target = _problem(trainer)
    config = NeuralSolverConfig(**PAPER | {"lambda1": 1.0, "lambda3": 0.5} | settings)
    network, comm = _parts(trainer).network, Communicator()
    scale = float(network.first_scale)

    def loss(progress: float = 0.5) -> Tensor:
        network.first_scale.data.fill_(scale)
        rollout = PaperRollout(network, config, comm, target, NODES)
        return torch.stack(list(rollout.losses(cell, start, progress))).sum()

    return loss


@pytest.mark.parametrize("graph_layer", [True, False])
@pytest.mark.parametrize("graph", ["plain", "channels"])
def test_the_unrolled_gradient_is_that_of_the_loss(graph: str, graph_layer: bool) -> None:
    changes: dict[str, dict[str, Any]] = {"model": {"residual": 0.2}}
    changes["solver"] = {"graph_layer": graph_layer}
    trainer = _trainer(changes, graph)
    assert (trainer.implicit.layer.sparsified is None) != graph_layer
    network, loss = _network(trainer), _rollout(trainer)
    loss().backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        along = torch.randn_like(parameter)
        kept, values = parameter.detach().clone(), []
        for step in (1e-6, -1e-6):
            parameter.data.copy_(kept + step * along)
            values.append(float(loss().detach()))
        parameter.data.copy_(kept)
        slope = (values[0] - values[1]) / 2e-6
        assert float((parameter.grad * along).sum()) == pytest.approx(slope, rel=1e-5), name


def test_one_step_training_is_the_same_loss_and_for_one_step_the_same_gradient() -> None:
    for steps, same in ((1, True), (3, False)):
        found = []
        for training in ("unrolled", "one_step"):
            torch.manual_seed(7)
            trainer = _trainer()
            network = _network(trainer)
            loss = _rollout(trainer, steps=steps, training=training)()
            loss.backward()
            grad = network.first.weight.grad
            assert grad is not None
            found.append((float(loss.detach()), grad))
        (value, gradient), (other_value, other) = found
        assert value == pytest.approx(other_value, rel=1e-10)
        assert torch.allclose(gradient, other, rtol=1e-6) == same


class _Kept:
    """Stands for what is kept for the way back; counts how many arrays there are at once."""

    alive = most = 0

    def __init__(self, array: Tensor) -> None:
        self.array = array
        self.counts = array.dim() > 1
        _Kept.alive += self.counts
        _Kept.most = max(_Kept.most, _Kept.alive)

    def __del__(self) -> None:
        _Kept.alive -= self.counts


def test_one_step_training_keeps_the_arrays_of_one_step() -> None:
    most: dict[tuple[str, int], int] = {}
    for training in ("unrolled", "one_step"):
        for steps in (4, 12):  # the history is full in both
            trainer = _trainer()
            cell, start, target = _problem(trainer)
            settings = PAPER | {"lambda1": 1.0, "training": training, "steps": steps}
            config, comm = NeuralSolverConfig(**settings), Communicator()
            rollout = PaperRollout(_network(trainer), config, comm, target, NODES)
            _Kept.most = 0
            with torch.autograd.graph.saved_tensors_hooks(_Kept, lambda kept: kept.array):
                for loss in rollout.losses(cell, start, 0.5):
                    loss.backward()
            del loss
            assert _Kept.alive == 0
            most[training, steps] = _Kept.most
    assert most["one_step", 12] == most["one_step", 4]
    assert most["unrolled", 12] > 2 * most["unrolled", 4] > most["one_step", 4]


def test_the_three_schemes_of_lambda1() -> None:
    trainer = _trainer()
    cell, z, target = _problem(trainer)
    distances = []
    for _ in range(3):  # an untrained network takes Picard's steps
        z = cell(z, None).image
        distances.append(float((z - target).norm()))
    expected = {
        "rising": sum(d * (k + 1) / 3 for k, d in enumerate(distances)),
        "constant": sum(distances),
        "last": distances[-1],
    }
    for scheme, value in expected.items():
        loss = _rollout(trainer, lambda1=2.0, lambda3=0.0, lambda1_steps=scheme)
        assert float(loss(0.25).detach()) == pytest.approx(2.0 * 0.25 * value, rel=1e-9)


def test_the_auxiliary_loss_is_the_mixed_residual_and_fades() -> None:
    trainer = _trainer()
    cell, z, _ = _problem(trainer)
    total = 0.0
    for _ in range(3):
        image = cell(z, None).image
        total, z = total + float((image - z).norm()), image
    loss = _rollout(trainer, lambda1=0.0, lambda3=2.0)
    assert float(loss(0.25).detach()) == pytest.approx(2.0 * 0.75 * total, rel=1e-9)
    assert float(loss(1.0).detach()) == 0.0


def test_a_phase_moves_both_parts_and_not_the_model() -> None:
    trainer = _trainer()
    train(trainer, 1)
    parts, planner = _parts(trainer), trainer.planner
    assert list(parts.modules()) == ["initialiser", "predictor"]
    untrained = parts.ready
    model = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    before = {k: v.detach().clone() for k, v in parts.named_parameters().items()}
    _, injection, target = _problem(trainer)
    cell = trainer.implicit.layer.cell(injection, trainer.implicit.channel_weights())
    losses = [trainer.tune_solver(20)[0] for _ in range(4)]
    assert [untrained, parts.ready] == [False, True]
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < 0.7 * losses[0]
    for name, value in parts.named_parameters().items():
        assert not torch.equal(value, before[name]), f"{name} did not move"
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, model[name])
    guess = planner.first_guess(cell, injection)
    assert float((guess - target).norm()) < 0.6 * float(target.norm())
    assert trainer.tune_solver(0)[0] is None


def test_without_an_initialiser_solves_begin_at_zero_and_lambda2_zero_leaves_it() -> None:
    plain = _trainer({"solver": {"initialiser": "none"}})
    assert list(_parts(plain).modules()) == ["predictor"]
    plain.tune_solver(2)
    still = _trainer({"solver": {"lambda2": 0.0}})
    initialiser = _parts(still).mlp
    assert initialiser is not None
    before = [p.detach().clone() for p in initialiser.parameters()]
    still.tune_solver(2)
    for parameter, kept in zip(initialiser.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)


@pytest.mark.parametrize("training", ["unrolled", "one_step"])
def test_a_run_goes_on_bit_for_bit(training: str) -> None:
    changes = {"solver": {"training": training}}
    whole, first, second = _trainer(changes), _trainer(changes), _trainer(changes)
    train(whole, 5)
    train(first, 3)
    restore(second, take_snapshot(first))
    train(second, 2)
    found, expected = everything(second), everything(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(name.startswith("solver") and "exp_avg" in name for name in expected)


def test_features_may_be_sparse_dense_or_missing() -> None:
    for graph in ("plain", "dense", "embedding"):
        trainer = _trainer(graph=graph)
        loss, _ = trainer.tune_solver(3)
        assert loss is not None
        initialiser = _parts(trainer).mlp
        assert initialiser is not None
        assert initialiser.inner.shape[0] == (WIDTH if graph == "embedding" else FEATURES)


def test_a_directed_graph_is_refused() -> None:
    with pytest.raises(UserError, match="paper needs an undirected graph with a symmetric A_hat"):
        _trainer(graph="directed")
