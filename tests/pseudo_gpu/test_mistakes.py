"""Deliberate mistakes in the package, each of which has to fail this tier.

Each is made by replacing one function, and met by what the other tests of this folder run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator, PendingRows
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.solvers.anderson import Anderson
from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu.emulated import run_emulated
from tests.pseudo_gpu.emulator import DeviceFault, EmulatedGPU
from tests.pseudo_gpu.entered import emulator
from tests.pseudo_gpu.steady import above, count_case

pytestmark = pytest.mark.timeout(120)


@contextmanager
def _cpu_tensor_in_a_collective() -> Iterator[None]:
    def careless(self: Communicator, tensor: Tensor, op: Any) -> Tensor:
        dist.all_reduce(tensor.cpu(), op)
        return tensor

    with mock.patch.object(Communicator, "_all_reduce", careless):
        yield


@contextmanager
def _mixed_devices() -> Iterator[None]:
    made = EquilibriumCell.__init__

    def careless(self: EquilibriumCell, *args: Any, **kwargs: Any) -> None:
        propagation, weights, injection, *rest = args
        made(self, propagation, weights, injection.cpu(), *rest, **kwargs)

    with mock.patch.object(EquilibriumCell, "__init__", careless):
        yield


@contextmanager
def _other_device() -> Iterator[None]:
    made = EquilibriumCell.__init__

    def careless(self: EquilibriumCell, *args: Any, **kwargs: Any) -> None:
        propagation, weights, *rest = args
        other = torch.device("cuda", 1 - weights[0].device.index)
        made(self, propagation, [weight.to(other) for weight in weights], *rest, **kwargs)

    with mock.patch.object(EquilibriumCell, "__init__", careless):
        yield


@contextmanager
def _rows_read_before_they_are_waited_for() -> Iterator[None]:
    with mock.patch.object(PendingRows, "wait", lambda self: self.received):
        yield


@contextmanager
def _rows_overwritten_while_they_are_sent() -> Iterator[None]:
    start = Communicator.start_exchange

    def careless(self: Communicator, rows: Tensor, *counts: Any) -> PendingRows:
        pending = start(self, rows, *counts)
        pending.sent.zero_()
        return pending

    with mock.patch.object(Communicator, "start_exchange", careless):
        yield


@contextmanager
def _one_more_sync() -> Iterator[None]:
    observe = Anderson.observe

    def careless(self: Anderson, state: Any, evaluation: Any, reduce: Any) -> float:
        assert bool(evaluation.image.isfinite().all())
        return observe(self, state, evaluation, reduce)

    with mock.patch.object(Anderson, "observe", careless):
        yield


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "CPU tensor in a collective": (_cpu_tensor_in_a_collective, "all_reduce: no backend"),
    "mixed devices": (_mixed_devices, "CPU tensors of shape"),
    "another device": (_other_device, "operands on cuda:0, cuda:1"),
    "rows read too early": (_rows_read_before_they_are_waited_for, "uses rows of an exchange"),
    "rows overwritten": (_rows_overwritten_while_they_are_sent, "overwrites rows of an exchange"),
}


def _made(comm: Communicator) -> dict[str, str]:
    """What every mistake is answered with; and none, without one."""
    found = {"none": _answer(comm)}
    for name, (mistake, _) in REFUSED.items():
        with mistake():
            found[name] = _answer(comm)
        emulator().transfers.forget()  # of the evaluation that was left
    usual = {"anderson": count_case(comm, "anderson")}
    with _one_more_sync():
        found["one more sync"] = "; ".join(above({"anderson": count_case(comm, "anderson")}, usual))
    return found


def _answer(comm: Communicator) -> str:
    try:
        count_case(comm, "picard")
    except DeviceFault as fault:
        return str(fault)
    return ""


def test_mistakes_in_the_package_are_noticed() -> None:
    for found in run_emulated(_made, 2):
        assert found.pop("none") == ""
        assert "anderson: syncs " in found.pop("one more sync")
        assert found.keys() == REFUSED.keys()
        for name, (_, message) in REFUSED.items():
            assert message in found[name], name
            # the line of the package where it happened
            assert "[distributed_ignn/" in found[name], name


def test_a_sync_inside_a_captured_graph_is_noticed(gpu: EmulatedGPU) -> None:
    """A map that looks at its image, in the middle of a capture."""
    z = torch.ones(4, 3, device="cuda")

    def careless(z: Tensor) -> Tensor:
        image = torch.relu(z * 0.5)
        if float(image.sum()) > 0.0:
            image = image + 1.0
        return image

    with pytest.raises(DeviceFault, match="while a CUDA graph is captured"):
        _capture(lambda: careless(z))
    assert gpu.capture is None
    _capture(lambda: torch.relu(z * 0.5))
    assert gpu.counts.total(kinds.FAULT) == 1


def _capture(action: Callable[[], Any]) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph
