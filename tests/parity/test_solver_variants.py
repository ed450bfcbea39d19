"""Every variant of the learned solver is trained alike on one rank and on two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.solvers.predictors import NETWORKS, SCOPES
from tests.ranks import run_ranks
from tests.training.small_trainers import small_config, small_trainer, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

VARIANTS = [
    (network, alpha)
    for network in NETWORKS
    for alpha in SCOPES
    if (network, alpha) != ("table", "node")
]


def _train_variants(comm: Communicator) -> dict[str, tuple[list[float | None], list[Tensor]]]:
    """Solver losses, and the solver's weights after a phase of four steps, by variant."""
    found = {}
    for network, alpha in VARIANTS:
        solver = {"network": network, "alpha": alpha, "lambda1": 1.0, "lambda3": 0.5, "lr": 0.02}
        trainer = small_trainer(comm, small_config({"solver": solver}), "awkward")
        train(trainer, 1)
        assert trainer.learned is not None
        predictor = trainer.learned.predictor
        assert predictor is not None
        before = [p.detach().clone() for p in predictor.parameters()]
        losses = [trainer.tune_solver(1)[0] for _ in range(4)]
        after = [p.detach().clone() for p in predictor.parameters()]
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        found[f"{network} {alpha}"] = (losses, after)
    return found


def test_two_ranks_train_every_variant_as_one_does() -> None:
    whole = _train_variants(Communicator())
    for cut in run_ranks(_train_variants, 2, timeout=150):
        assert whole.keys() == cut.keys()
        for name, (losses, weights) in whole.items():
            assert cut[name][0] == pytest.approx(losses, rel=1e-6), name
            for mine, theirs in zip(weights, cut[name][1], strict=True):
                # Adam turns the last digit of a gradient near zero into a visible one
                assert torch.allclose(mine, theirs, rtol=0, atol=1e-5), name
