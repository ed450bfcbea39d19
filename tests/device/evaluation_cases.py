"""What one evaluation of the map and Anderson's step read and write, kernels and torch together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.propagation.entries import Entries
from distributed_ignn.propagation.triton_rows import Tail, TritonRows
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import Evaluation
from distributed_ignn.solvers.solve import solve
from tests.device.triton_runs import Traffic, counted

ROWS, WIDTH = 128, 64
STATE = ROWS * WIDTH * 4


class LargeTraffic(TorchDispatchMode):
    """Counts bytes of arrays as large as a state that torch's own operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        views = func.is_view or "empty" in str(func) or "detach" in str(func)
        if not views:
            touched = [*args, *(kwargs or {}).values(), result]
            large = [each for each in touched if isinstance(each, Tensor)]
            sizes = (each.numel() * each.element_size() for each in large)
            self.bytes += sum(size for size in sizes if size >= STATE)
        return result


class Rotation:
    """The cell's path through one kernel, on a graph of one neighbour each: a gather is a pass."""

    def __init__(self, kernels: Traffic, other: LargeTraffic) -> None:
        self.totals: list[tuple[int, int, int]] = []
        self._kernels, self._other = kernels, other
        generator = torch.Generator().manual_seed(0)
        offsets = torch.arange(ROWS + 1, dtype=torch.int32)
        col = torch.arange(ROWS, dtype=torch.int32).roll(1)
        self._rows = TritonRows.from_entries(Entries(offsets, col, None, None, None, ROWS))
        self._weight = 0.9 * torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
        self._offset = torch.randn(ROWS, WIDTH, generator=generator)
        self._product = torch.empty(ROWS, WIDTH)

    def __call__(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        self.totals.append((self._kernels.bytes, self._other.bytes, self._kernels.large))
        image = torch.empty_like(z)
        tail = Tail(self._weight, self._offset, z, image, product=self._product)
        return Evaluation(z, image, squares=self._rows.evaluate(z, tail))


def passes_of_an_evaluation(comm: Communicator) -> dict[str, dict[str, float]]:
    """Passes over the state, and launches that read it, by how Anderson enters an evaluation.

    The product is kept for the backward pass.
    """
    from distributed_ignn.device import triton_history

    triton_history.PROGRAMS, triton_history._BLOCK = 2, 16384
    return {
        "judged first": _steady(judge_first=True),
        "entered at once": _steady(judge_first=False),
    }


def _steady(*, judge_first: bool) -> dict[str, float]:
    """From one evaluation to the next, where the history is full."""
    other = LargeTraffic()
    with counted(least=3 * STATE // 4) as kernels, other:
        rotation = Rotation(kernels, other)
        solve(
            rotation,
            torch.zeros(ROWS, WIDTH),
            Anderson(5, judge_first=judge_first),
            lambda numbers: numbers,
            tolerance=0.0,
            max_steps=9,
        )
    before, after = rotation.totals[-2:]
    names = "kernels", "torch", "launches"
    found = {name: new - old for name, new, old in zip(names, after, before, strict=True)}
    return {name: n if name == "launches" else n / STATE for name, n in found.items()}
