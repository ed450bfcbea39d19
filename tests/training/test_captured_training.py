"""Training whose solves go in groups of evaluations: the numbers of training one by one.

On a CPU nothing is recorded, and the same functions run; the refusals are those of a user.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.parse import parse_args
from distributed_ignn.errors import UserError
from distributed_ignn.solvers.captured import Captures
from distributed_ignn.training.recorded import captures, refuse_captures
from tests.ranks import run_ranks
from tests.training.small_trainers import everything, small_config, small_trainer

EPOCHS = 3
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "anderson": {"forward": {"method": "anderson"}},
    "picard, two channels": {"forward": {"method": "picard"}, "adjoint": {"method": "anderson"}},
    "damped": {
        "forward": {"method": "anderson", "beta": 0.8, "memory": 2},
        "adjoint": {"method": "picard", "beta": 0.9},
    },
}


def _config(way: str) -> RunConfig:
    return small_config(WAYS[way] | {"solver": {"network": "none", "sparsifier": "none"}})


def _trained(comm: Communicator, way: str, size: int) -> tuple[list[Any], dict[str, Any], int]:
    """Losses and counts of every epoch, all that the next one depends on, and the loops kept."""
    case = "channels" if "channels" in way else "plain"
    trainer = small_trainer(comm, _config(way), case)
    groups = {}
    if size:
        groups = {name: Captures(size, comm.traffic) for name in ("forward", "adjoint")}
        trainer.planner._captures = groups
    found = []
    for _ in range(EPOCHS):
        record = trainer.train_epoch()
        counts = record.evaluations_forward, record.evaluations_adjoint
        found.append([record.loss, *counts, record.evaluations_validation])
    loops = sum(len(group._loops) for group in groups.values())
    return found, everything(trainer), loops


def _both(comm: Communicator) -> dict[str, tuple[Any, Any]]:
    return {way: (_trained(comm, way, 0), _trained(comm, way, 3)) for way in WAYS}


@pytest.mark.parametrize("ranks", [1, 2])
def test_groups_train_like_single_evaluations(ranks: int) -> None:
    for found in run_ranks(_both, ranks):
        for way, (single, grouped) in found.items():
            assert [row[1:] for row in single[0]] == [row[1:] for row in grouped[0]], way
            losses = [row[0] for row in single[0]]
            assert [row[0] for row in grouped[0]] == pytest.approx(losses, abs=1e-12), way
            assert single[1].keys() == grouped[1].keys()
            for name, value in single[1].items():
                assert torch.allclose(grouped[1][name], value, rtol=0.0, atol=1e-11), (way, name)
            # training keeps products, validation does not, and the backward solve has a map too
            assert grouped[2] == 3, way


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--forward.capture 5 --device cpu", "forward.capture = 5 does not go with device = cpu"),
        ("--adjoint.capture 2 --comm.backend gloo", "whose exchanges wait on the host; drop one"),
        ("--forward.capture 5 --comm.stale true", "outlast an evaluation; drop one of them"),
        ("--forward.capture 5 --comm.halo int8", "comm.halo = int8, whose rounding enters the"),
        ("--forward.capture 5 --model.cell mignn", "whose step follows the weights"),
        ("--forward.capture 5 --forward.method broyden", "forward.capture = 5 has no effect with"),
        ("--adjoint.capture 5 --forward.method neural", "adjoint.capture = 5 has no effect with"),
    ],
)
def test_what_cannot_be_recorded_is_refused(flags: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_args(["--dataset", "chains", *flags.split()])
    assert message in str(caught.value)


def test_a_run_that_finds_nothing_to_record_is_refused() -> None:
    config = parse_args(
        ["--dataset", "chains", "--adjoint.capture", "4", "--adjoint.method", "picard"]
    )
    with pytest.raises(UserError, match=r"adjoint.capture = 4, but this rank computes on a CPU"):
        refuse_captures(config, Communicator())
    assert captures(config, Communicator()) == {}  # a trained run may be used there
    with (
        mock.patch.object(Communicator, "backend", "gloo"),
        pytest.raises(UserError, match="these ranks exchange rows by gloo"),
    ):
        refuse_captures(config, _on_gpu())
    with (
        mock.patch("distributed_ignn.training.recorded.choose_codec", return_value="int4"),
        pytest.raises(UserError, match=r"written in int4; add --comm\.halo fp32"),
    ):
        refuse_captures(config, _on_gpu())
    refuse_captures(config, _on_gpu())
    assert [(name, found.size) for name, found in captures(config, _on_gpu()).items()] == [
        ("adjoint", 4)
    ]


def _on_gpu() -> Communicator:
    return Communicator(device=torch.device("cuda"))
