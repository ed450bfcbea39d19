"""The kernels of the history on any device, beside torch's operations on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.solvers.base import SolveSizes
from distributed_ignn.solvers.blocks import Rows, residual_squares
from distributed_ignn.solvers.history import History
from tests.device.triton_runs import counted, without_kernels

HOW = ("push", "push with the image", "enter", "enter an estimate", "begin")


def _small_tiles(numbers: int = 64) -> None:
    """So that small arrays have two programs, each of which has several tiles."""
    from distributed_ignn.device import triton_history

    triton_history.PROGRAMS, triton_history._BLOCK = 2, numbers


def history_errors(comm: Communicator) -> dict[str, float]:
    """Largest difference between kernels and torch, over the size of what differs."""
    _small_tiles()
    found = {}
    cases = [
        ((50, 4), torch.float64, None, 3, HOW),
        ((45, 7), torch.float32, None, 2, HOW),
        ((33, 5), torch.float32, torch.bfloat16, 2, ("push", "enter")),
        ((1, 1), torch.float32, None, 1, ("push", "enter")),
        ((0, 4), torch.float32, None, 2, ("push", "enter")),
        ((8, 16), torch.float32, None, 10, ("push",)),
        ((61, 3), torch.bfloat16, None, 2, ("push", "enter")),
    ]
    for shape, dtype, storage, memory, ways in cases:
        for how in ways:
            name = f"{how}, {shape}, {dtype}, stored {storage}"
            found[name] = _history_error(shape, dtype, storage, memory, how, comm.device)
    return found


def _history_error(
    shape: tuple[int, int],
    dtype: torch.dtype,
    storage: torch.dtype | None,
    memory: int,
    how: str,
    device: torch.device,
) -> float:
    generator = torch.Generator().manual_seed(0)
    fused, plain = History(memory, storage), History(memory, storage)
    worst = 0.0
    for step in range(memory + 3):
        z, image = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        z, image = z.to(dtype), (z + image * 2.0**-step).to(dtype)
        here = _enter(fused, how, z.to(device), image.to(device), step).cpu()
        with without_kernels():
            there = _enter(plain, how, z, image, step)
        worst = max(worst, _difference(here, there, float(there.abs().max())))
        for history, dots in ((fused, here), (plain, there)):
            if dots.numel() > 1 or how != "begin" or step > 0:
                history.set_newest_gram(dots[: len(history) + (how == "begin" and step == 1)])
        alpha = torch.rand(len(fused), generator=generator, dtype=torch.float64)
        alpha /= alpha.sum()
        for beta in (1.0, 0.6, torch.tensor(0.6, dtype=torch.float64)):
            with without_kernels():
                expected = plain.mix(alpha, beta)
            scale = float(expected.abs().max()) if expected.numel() else 1.0
            mixed = fused.mix(alpha.to(device), beta).cpu()
            worst = max(worst, _difference(mixed, expected, scale))
    return worst


def _enter(history: History, how: str, z: Tensor, image: Tensor, step: int) -> Tensor:
    if how == "push":
        return history.push(z, image)
    if how == "push with the image":
        return history.push_with_image(z, image)
    correction: Rows | None = None
    if how == "enter an estimate":
        image, whole = image.cos(), image
        correction = lambda rows: whole[rows] - image[rows]  # noqa: E731 - one use
    if how == "begin" and step == 0:
        history.begin(z, image)
        return torch.zeros(1, dtype=torch.float64)
    return history.enter(z, image, correction)


def _difference(found: Tensor, expected: Tensor, scale: float) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return torch.inf
    if not found.numel():
        return 0.0
    error = (found.double() - expected.double()).abs().max()
    return float(error.nan_to_num(torch.inf)) / max(scale, 1e-30)


def squares_error(comm: Communicator) -> list[float]:
    """Of ||f(z) - z||^2 and ||f(z)||^2, relative; and whether NaN is seen."""
    _small_tiles()
    z, image = (torch.randn(333, 3, device=comm.device) for _ in range(2))
    exact = torch.stack([(image.double() - z).square().sum(), image.double().square().sum()])
    error = (residual_squares(z, image) / exact - 1.0).abs().max()
    image[7, 1] = torch.nan
    return [float(error), float(residual_squares(z, image).isnan().all())]


def sums_repeat(comm: Communicator) -> bool:
    """Whether the same numbers give the same sums, bit by bit."""
    _small_tiles()
    z, image = (torch.randn(333, 3, device=comm.device) for _ in range(2))
    return all(torch.equal(History(2).push(z, image), History(2).push(z, image)) for _ in range(3))


def passes(comm: Communicator, memory: int, storage: torch.dtype | None) -> dict[str, float]:
    """Passes over the state, and launches, of a step with a full history; and of whole solves."""
    _small_tiles(8192)
    state = torch.randn(1024, 32)
    size = state.numel() * state.element_size()
    found = {}
    history, steps = History(memory, storage), memory + 3
    alpha = torch.full((1,), 1.0, dtype=torch.float64)
    with counted() as all_steps:
        for step in range(steps):
            with counted() as traffic:
                history.push_with_image(state * step, state)
                alpha = torch.full((len(history),), 1.0 / len(history), dtype=torch.float64)
                history.mix(alpha, 1.0)
    found["push and mix"] = traffic.bytes / size
    found["launches"] = traffic.launches
    found["average"] = all_steps.bytes / size / steps
    sizes = SolveSizes(size, 4, steps, fused=True)
    found["planned"] = History.moved_bytes(sizes, memory, storage) / size
    history = History(memory, storage)
    history.begin(state, state)
    for step in range(steps):
        with counted() as traffic:
            history.enter(state * step, state)
            history.set_newest_gram(torch.ones(len(history), dtype=torch.float64))
            history.mix(torch.full((len(history),), 0.1, dtype=torch.float64), 1.0)
    found["enter and mix"] = traffic.bytes / size
    return found
