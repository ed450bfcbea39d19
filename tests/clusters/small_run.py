"""The small run of the cluster tests."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.jobs import TRAIN, differences, records, result

EPOCHS = 20
# fp32: between machines rows would be written in four bits, whose rounding starts anew with each
# checkpoint. Random parts: many rows cross the cable.
# The tolerances make an epoch take a quarter of a second, half a beat of the watchdog: whoever is
# lost after six of them has told that it was in one.
COMMAND = [
    TRAIN,
    *shlex.split(
        "--dataset chains --device cpu --data.chains.length 5 --data.chains.chains-per-class 20 "
        "--data.chains.features 4 --data.chains.noise 0.1 --partition.method random "
        f"--model.hidden 8 --comm.halo fp32 --train.epochs {EPOCHS} --train.checkpoint-every 4 "
        "--forward.tolerance 1e-6 --adjoint.tolerance 1e-6"
    ),
]


def assert_same(output: Path, expected: Path) -> None:
    """Every epoch's numbers and the final weights, optimiser and random state, bit for bit."""
    assert [r["epoch"] for r in records(output)] == list(range(1, EPOCHS + 1))
    assert differences(result(output), result(expected)) == []
