"""Nothing recorded is left when a rank leaves: NCCL waits for graphs that hold its calls."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import Stopped, UserError
from distributed_ignn.launchers.this_rank import on_this_rank
from distributed_ignn.runs.run import run_training
from distributed_ignn.solvers.captured import Recorder
from tests.pseudo_gpu.emulator import EmulatedGPU
from tests.pseudo_gpu.scenarios import QUIET, run_config


def _fail() -> None:
    raise UserError("a mistake")


def _stop() -> None:
    raise Stopped(15, "asked to stop")


WAYS: dict[str, tuple[Callable[[], None], type[Exception] | None]] = {
    "at its end": (lambda: None, None),
    "by a mistake": (_fail, UserError),
    "by a stop": (_stop, Stopped),
}


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Graphs that are alive before and after each ``Communicator.close``."""
    found: list[int] = []
    close = Communicator.close

    def watched(self: Communicator, **how: Any) -> None:
        found.append(_graphs())
        close(self, **how)
        found.append(_graphs())

    with mock.patch.object(Communicator, "close", watched):
        yield found


def _graphs() -> int:
    return sum(len(each._graphs) for each in gc.get_objects() if type(each) is Recorder)


@pytest.mark.parametrize("way", WAYS)
def test_no_graph_is_alive_when_the_group_ends(gpu: EmulatedGPU, tmp_path: Path, way: str) -> None:
    leave, error = WAYS[way]
    limits = {"method": "anderson", "capture": 4}
    config = run_config(tmp_path, forward=limits, adjoint=limits, schedule={})

    def after_epoch(record: Any, checkpoint: Any) -> None:
        if record.epoch == 2:
            leave()

    def trained(comm: Communicator) -> None:
        run_training(config, comm, after_epoch, conduct=QUIET)

    with _counted() as graphs:
        if error is None:
            on_this_rank(trained, "cuda")
        else:
            with pytest.raises(error):
                on_this_rank(trained, "cuda")
            assert graphs[0] > 0  # the exception holds what trained
    assert graphs[-1] == 0


def test_what_is_gone_is_not_called_and_not_kept() -> None:
    comm, called = Communicator(device=torch.device("cpu")), []

    class Holder:
        def let_go(self) -> None:
            called.append(self)

    kept = Holder()
    for holder in (kept, Holder()):
        comm.before_close(holder.let_go)
    del holder
    comm.before_close(kept.let_go)
    assert len(comm._before_close) == 2
    comm.close()
    assert called == [kept, kept]
