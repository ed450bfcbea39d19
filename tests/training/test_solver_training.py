"""Solver phases: what moves, what stays, and that the solver gets better."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import GraphData, csr_from_edges
from distributed_ignn.solvers.predictors import WeightPredictor
from distributed_ignn.training.learned.phases import SolverTrainer
from distributed_ignn.training.plans import ADJOINT, EVALUATE, TRAIN
from distributed_ignn.training.trainer import Trainer
from tests.parity.cases import NODES, make_data
from tests.training.small_trainers import assert_equal, small_config, small_trainer, train


def _solver_trainer(trainer: Trainer) -> SolverTrainer:
    assert trainer.solver_trainer is not None
    return trainer.solver_trainer


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


def _solver_weights(trainer: Trainer) -> dict[str, Tensor]:
    state = _solver_trainer(trainer).state().common
    return {k: v.clone() for k, v in state.items() if k.startswith("weight|")}


def _chain(solver: dict[str, Any]) -> tuple[GraphData, RunConfig]:
    """One long chain, whose slowest modes need hundreds of Picard steps, for these parts."""
    source = torch.arange(NODES - 1)
    data = replace(make_data("plain"), graphs=(csr_from_edges(source, source + 1, NODES),))
    changes: dict[str, dict[str, Any]] = {
        "model": {"kappa": 0.99, "init": "identity", "input_dropout": 0.0},
        "forward": {"warm_start": False, "tolerance": 1e-1, "memory": 2},
        "solver": {"memory": 2, "steps": 15, "lr": 0.02, "hidden": 8, "compress": 4}
        | {"target_tolerance": 1e-9, "target_max_steps": 2000}
        | {"initialiser": "none", "estimator": "none", "network": "graph"}
        | solver,
        "schedule": {"warmup_epochs": 0, "warmup_solver_steps": 60},
    }
    return data, small_config(changes)


def test_a_phase_moves_the_solver_alone() -> None:
    config = small_config({"adjoint": {"method": "neural"}})
    trainer = small_trainer(Communicator(), config)
    train(trainer, 1)
    assert trainer.learned is not None
    assert list(trainer.learned.modules()) == ["initialiser", "estimator", "adjoint", "predictor"]
    model, solver = _weights(trainer), _solver_weights(trainer)
    warm = {k: v.clone() for k, v in trainer.planner.states.items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in trainer.model.parameters()]
    ready = [trainer.learned.ready]
    trainer.tune_solver(3, backward=True)
    assert [*ready, trainer.learned.ready] == [False, True]
    assert _solver_trainer(trainer).steps_done == 3
    assert_equal(_weights(trainer), model)
    # the backward solve now starts from what is learned of it
    assert_equal(trainer.planner.states, {k: v for k, v in warm.items() if k == EVALUATE})
    assert warm.keys() == {TRAIN, EVALUATE, ADJOINT}
    for parameter, before in zip(trainer.model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (before is None)
        if before is not None and parameter.grad is not None:
            assert torch.equal(parameter.grad, before)
    for name, weight in _solver_weights(trainer).items():
        assert not torch.equal(weight, solver[name]), f"{name} did not move"


def test_model_steps_leave_the_solver_alone() -> None:
    trainer = small_trainer(Communicator(), small_config())
    train(trainer, 3)
    model, solver = _weights(trainer), _solver_weights(trainer)
    (record,) = train(trainer, 1)
    assert record.solver_steps == 0
    assert_equal(_solver_weights(trainer), solver)
    assert not torch.equal(_weights(trainer)["cell_weights.weight"], model["cell_weights.weight"])


@pytest.mark.parametrize(
    "parts",
    [
        {"initialiser": "graph"},
        {"network": "none", "estimator": "graph"},
        {"network": "none", "initialiser": "graph", "estimator": "graph"},
    ],
    ids=["initialiser and network", "estimator", "default"],
)
def test_a_trained_solver_needs_fewer_evaluations_for_the_first_digit(
    parts: dict[str, Any],
) -> None:
    data, config = _chain(parts)
    counts = []
    for steps in (0, 60):
        trainer = small_trainer(Communicator(), config, data)
        assert trainer.learned is not None
        if steps:
            trainer.tune_solver(steps)
        trainer.learned.ready = True
        solution = trainer.model.solve(trainer.planner.evaluate())
        assert solution.converged
        counts.append(solution.steps)
    assert counts[1] <= 0.75 * counts[0], counts


@pytest.mark.parametrize(
    "variant", ["graph-global-none", "graph-global-graph", "graph-node-none", "gru-node-graph"]
)
def test_gradients_of_the_weights_are_the_slope_of_the_loss(variant: str) -> None:
    """With two steps, where no history is held constant, against finite differences."""
    network, alpha, estimator = variant.split("-")
    solver: dict[str, Any] = {"network": network, "alpha": alpha, "estimator": estimator}
    solver |= {"steps": 2, "lambda1": 2.0, "lambda2": 0.0, "lambda3": 0.5, "lr": 1e-12}
    trainer = small_trainer(Communicator(), small_config({"solver": solver}))
    train(trainer, 2)
    assert trainer.learned is not None
    predictor = trainer.learned.predictor
    assert isinstance(predictor, WeightPredictor)
    for name, parameter in predictor.named_parameters():
        if name.startswith("head") and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    solver_trainer = _solver_trainer(trainer)

    def loss() -> float:
        solver_trainer.steps_done = 0
        found, _ = trainer.tune_solver(1)
        assert found is not None
        return found

    loss()
    named = dict(predictor.named_parameters())
    gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    assert gradients.keys() == named.keys()
    for name, parameter in named.items():
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1.0, -1.0):
            parameter.data.add_(direction, alpha=sign * 1e-5)
            values.append(loss())
            parameter.data.sub_(direction, alpha=sign * 1e-5)
        slope = float((gradients[name] * direction).sum())
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=0.01, abs=1e-6), name
    assert abs(slope) > 1e-6


@pytest.mark.parametrize("network", ["graph", "table"])
def test_network_steps_lower_their_own_loss(network: str) -> None:
    """At a fixed place in the schedule, where losses can be compared."""
    solver = {"network": network, "initialiser": "none", "estimator": "none", "lambda1": 1.0}
    trainer = small_trainer(Communicator(), small_config({"solver": solver | {"steps": 4}}))
    train(trainer, 2)
    solver_trainer = _solver_trainer(trainer)
    losses = []
    for _ in range(30):
        solver_trainer.steps_done = 3
        losses.append(trainer.tune_solver(1)[0])
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0] - 0.05, losses


def test_a_coarse_level_needs_shards_with_clusters() -> None:
    config = small_config({"partition": {"clusters": 4, "dir": "shards"}})
    with pytest.raises(UserError, match=r"partition.clusters = 4.*shards hold no clusters.*again"):
        small_trainer(Communicator(), config)
