"""Two ranks, of which one leaves while the other waits for it in something that never fails.

So do ranks wait in NCCL inside a machine. ``python -m tests.comm.waiting_ranks HOW LEAVER DEVICE``:
on a GPU the wait is NCCL's own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import torch

from distributed_ignn.cli import run_main
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.launchers.this_rank import on_this_rank


def _act(comm: Communicator) -> None:
    comm.activity.epoch = 3
    comm.barrier()
    how, leaver = sys.argv[1], int(sys.argv[2])
    if comm.rank != leaver:
        with comm.activity.phase("forward solve"):
            if comm.device.type == "cuda":
                float(comm.sum(torch.ones(1, device=comm.device)))
            threading.Event().wait(60)
    with comm.activity.phase("validating"):
        if comm.watchdog is not None:
            threading.Event().wait(2.0)  # until it has been seen there
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "failed":
            raise ZeroDivisionError("a bug")


if __name__ == "__main__":
    sys.exit(run_main(lambda: on_this_rank(_act, sys.argv[3])))
