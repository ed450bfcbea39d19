"""One rank of a job that trains until something happens: ``python -m tests.gpu.lone_rank``.

Arguments: the device, and the epoch in which this rank raises (0: never). Every epoch is a line on
standard output. It joins, watches the others and ends as a rank of ``ignn train`` does.
"""

from __future__ import annotations

import itertools
import sys

from distributed_ignn.cli import run_main
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import CommConfig
from distributed_ignn.launchers.this_rank import on_this_rank
from tests.gpu.quick_run import quick_trainer

HANG_SECONDS = 20.0
RAISED = "this rank was told to fail"


def _train(comm: Communicator, fails_in: int) -> None:
    trainer = quick_trainer(comm, 10**6)
    for epoch in itertools.count(1):
        comm.activity.epoch = epoch
        if epoch == fails_in:
            raise ArithmeticError(RAISED)
        with comm.activity.phase("an epoch"):
            trainer.train_epoch()
        print(f"epoch {epoch}", flush=True)


if __name__ == "__main__":
    device, number = sys.argv[1:]
    settings = CommConfig(hang_seconds=HANG_SECONDS)
    sys.exit(
        run_main(lambda: on_this_rank(lambda comm: _train(comm, int(number)), device, settings))
    )
