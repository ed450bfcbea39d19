"""The emulated GPU itself: what it refuses, counts and replays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pseudo_gpu import counts as kinds
from tests.pseudo_gpu.emulator import DeviceFault, EmulatedGPU

CUDA = torch.device("cuda", 0)


def test_tensors_say_where_they_are_and_compute(gpu: EmulatedGPU) -> None:
    x = torch.arange(6.0, device=CUDA).reshape(2, 3)
    assert (x.device, x.is_cuda, x.is_cpu) == (CUDA, True, False)
    assert (x @ x.T).tolist() == [[5.0, 14.0], [14.0, 50.0]]
    assert x.cpu().numpy().sum() == 15.0
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        x.numpy()
    assert gpu.counts.total(kinds.SYNC) == 2


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda x: x + torch.ones(2, 3), r"CPU tensors of shape \(2, 3\)"),
        (lambda x: x + x.to("cuda:1"), "operands on cuda:0, cuda:1"),
        (lambda x: x.index_select(0, torch.tensor([0])), "CPU tensors"),
        (lambda x: torch.mm(x, torch.ones(3, 2)), "CPU tensors"),
        (lambda x: torch.sparse.mm(_identity(), x, "sum"), "for the CPU alone"),
    ],
)
def test_what_a_gpu_refuses(
    gpu: EmulatedGPU, action: Callable[[Tensor], Any], message: str
) -> None:
    with pytest.raises(DeviceFault, match=message):
        action(torch.ones(2, 3, device=CUDA))


def _identity() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the layout is young
        return torch.eye(2).to_sparse_csr().to(CUDA)


def test_numbers_of_the_cpu_may_stand_beside_tensors_of_a_gpu(gpu: EmulatedGPU) -> None:
    x = torch.ones(2, 3, device=CUDA)
    assert (x * torch.tensor(2.0)).sum().item() == 12.0
    assert x[torch.tensor([1])].shape == (1, 3)


def test_syncs_copies_and_launches_are_counted_where_they_happen(gpu: EmulatedGPU) -> None:
    gpu.counts.package = "tests/pseudo_gpu_none"
    x = torch.ones(3, device=CUDA)
    x.add_(1.0)
    float(x.sum())
    x[x > 1.0]
    torch.tensor([1.0], device=CUDA)
    counts = gpu.counts.totals()
    # ones, add, sum and item; >, nonzero and index, which starts with it
    assert counts[kinds.LAUNCH] == 4 + 3
    assert counts[kinds.SYNC] == 2
    assert counts[kinds.UPLOAD] == 1
    assert gpu.counts.lines(kinds.SYNC) == {"outside": 2}


def test_backward_runs_in_the_device_thread_and_modules_move(gpu: EmulatedGPU) -> None:
    layer = torch.nn.Linear(3, 2)
    weight = layer.weight
    layer.to(CUDA)
    assert layer.weight is weight
    assert weight.device == CUDA
    layer(torch.ones(4, 3, device=CUDA)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.device == CUDA
    layer.load_state_dict({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
    assert float(weight.abs().sum().detach()) == 0.0


def test_random_numbers_are_not_those_of_the_cpu(gpu: EmulatedGPU) -> None:
    torch.manual_seed(3)
    on_cpu = torch.rand(4)
    torch.manual_seed(3)
    state = torch.cuda.get_rng_state(CUDA)
    drawn = torch.rand(4, device=CUDA).cpu()
    assert torch.equal(torch.rand(4), on_cpu), "a GPU took the CPU's numbers"
    assert not torch.equal(drawn, on_cpu)
    torch.cuda.set_rng_state(state, CUDA)
    assert torch.equal(torch.rand(4, device=CUDA).cpu(), drawn)


def test_memory_and_what_is_alive(gpu: EmulatedGPU) -> None:
    x = torch.zeros(1000, device=CUDA)
    assert torch.cuda.memory_allocated() == 4096
    view = x[:10]
    assert (gpu.memory.tensors, torch.cuda.memory_allocated()) == (2, 4096)
    del x
    assert torch.cuda.memory_allocated() == 4096
    del view
    assert (gpu.memory.tensors, torch.cuda.memory_allocated()) == (0, 0)
    assert torch.cuda.max_memory_allocated() == 4096
    event = torch.cuda.Event(enable_timing=True)
    assert len(gpu.events) == 1
    del event
    assert (len(gpu.events), gpu.most_events) == (0, 1)


def test_devices_are_told_apart(gpu: EmulatedGPU) -> None:
    assert torch.cuda.device_count() == 2
    with EmulatedGPU(1, first=3):
        assert torch.cuda.get_device_properties(0).uuid == "GPU-emulated-3"
        with pytest.raises(RuntimeError, match="invalid device ordinal 1"):
            torch.zeros(1, device="cuda:1")


def test_a_copy_to_the_host_is_read_only_once_it_is_there(gpu: EmulatedGPU) -> None:
    host = torch.empty(3, pin_memory=True)
    x = torch.ones(3, device=CUDA)
    host.copy_(x, non_blocking=True)
    there = torch.cuda.Event()
    there.record()
    assert gpu.counts.total(kinds.SYNC) == 0
    with pytest.raises(DeviceFault, match="reads a copy not waited for"):
        host.sum()
    there.synchronize()
    assert float(host.sum()) == 3.0
    assert gpu.counts.total(kinds.SYNC) == 1


def _doubling(gpu: EmulatedGPU) -> tuple[Any, Tensor, Tensor]:
    z = torch.ones(2, 2, device=CUDA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        image = z * 2.0
        z.copy_(image)
    return graph, z, image


def test_a_graph_does_nothing_until_it_is_replayed(gpu: EmulatedGPU) -> None:
    graph, z, image = _doubling(gpu)
    assert bool((z == 1.0).all())
    assert bool(image.isnan().all())
    gpu.counts.clear()
    for _ in range(3):
        graph.replay()
    assert gpu.counts.totals() == {kinds.LAUNCH: 3}
    assert bool((z == 8.0).all())
    assert bool((image == 8.0).all())


def test_numbers_of_the_host_are_those_of_the_capture(gpu: EmulatedGPU) -> None:
    z, factor = torch.ones(2, device=CUDA), torch.tensor(3.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z.mul_(factor)
    factor.fill_(5.0)
    graph.replay()
    assert z.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    "action",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[x > 0.0],
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0], device=CUDA),
        lambda x: torch.ones(2).to(CUDA, non_blocking=True),
        lambda x: torch.empty(2, pin_memory=True),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.cuda.current_stream().synchronize(),
        lambda x: torch.cuda.CUDAGraph().replay(),
    ],
)
def test_what_a_capture_refuses(gpu: EmulatedGPU, action: Callable[[Tensor], Any]) -> None:
    x = torch.ones(2, device=CUDA)
    with pytest.raises((DeviceFault, RuntimeError)), torch.cuda.graph(torch.cuda.CUDAGraph()):
        action(x)
    assert not torch.cuda.is_current_stream_capturing()
    assert float(x.sum()) == 2.0


def test_pinned_memory_goes_in_and_out_of_a_graph(gpu: EmulatedGPU) -> None:
    given, taken = torch.ones(2, pin_memory=True), torch.zeros(2, pin_memory=True)
    x = torch.zeros(2, device=CUDA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.copy_(given, non_blocking=True)
        taken.copy_(x + 1.0, non_blocking=True)
    given.fill_(4.0)
    graph.replay()
    with pytest.raises(DeviceFault, match="not waited for"):
        taken.sum()
    torch.cuda.synchronize()
    assert taken.tolist() == [5.0, 5.0]


def test_a_graph_on_freed_memory_is_refused(gpu: EmulatedGPU) -> None:
    x = torch.ones(2, device=CUDA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        image = x + 1.0
    del x
    with pytest.raises(DeviceFault, match="freed memory"):
        graph.replay()
    assert image.shape == (2,)


def test_a_capture_is_not_on_the_default_stream(gpu: EmulatedGPU) -> None:
    with pytest.raises(DeviceFault, match="not the default one"):
        torch.cuda.CUDAGraph().capture_begin()


def _aside() -> tuple[Any, Tensor]:
    return torch.cuda.Stream(), torch.ones(3, device=CUDA)


def test_a_stream_waits_for_what_it_reads(gpu: EmulatedGPU) -> None:
    side, x = _aside()
    with (
        pytest.raises(DeviceFault, match="uses what another stream writes"),
        torch.cuda.stream(side),
    ):
        x.sum()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        total = x.sum()
    with pytest.raises(DeviceFault, match="uses what another stream writes"):
        total.add(1.0)
    done = side.record_event()
    torch.cuda.current_stream().wait_event(done)
    assert float(total.add(1.0)) == 4.0


def test_a_stream_waits_for_who_reads_what_it_writes(gpu: EmulatedGPU) -> None:
    side, x = _aside()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x.sum()
    with pytest.raises(DeviceFault, match="overwrites what another stream reads"):
        x.zero_()
    side, x = _aside()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        x.sum()
    side.synchronize()
    x.zero_()


def test_copies_aside_and_back_keep_the_order(gpu: EmulatedGPU) -> None:
    """To pinned memory and back on one stream, without a wait of the host."""
    side, x = _aside()
    there = torch.empty(3, pin_memory=True)
    side.wait_stream(torch.cuda.current_stream())
    back = torch.empty(3, device=CUDA)
    with torch.cuda.stream(side):
        there.copy_(x, non_blocking=True)
        back.copy_(there, non_blocking=True)
        done = side.record_event()
    assert gpu.counts.total(kinds.SYNC) == 0
    done.wait()
    assert float(back.sum()) == 3.0
