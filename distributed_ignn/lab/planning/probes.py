"""The measurements behind a profile: what one rank reaches while others do the same beside it.

Each probe runs the code that training runs, on arrays of three sizes where size matters: the sparse
product of ``propagation/propagate.py``, Anderson's history, dropout masks, exchanges and
reductions of the communicator. All arrays are where the rank computes. A GPU is timed by events in
its queue, so that what it takes to notice its end is no part of the figures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from distributed_ignn.comm.codecs import Integers, Picked, decode_change, encode_change
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.storage.shard_file import read_shard_file
from distributed_ignn.models.dropout import NodeDropout
from distributed_ignn.propagation.operators import ChannelOperator
from distributed_ignn.propagation.sparse import SparseMatrix, block_bounds
from distributed_ignn.runs.memory.machine import peak
from distributed_ignn.solvers.dense import affine
from distributed_ignn.solvers.history import History, step_passes

Sizes = tuple[tuple[int, int], ...]
"""Rows and columns of arrays, by ascending size; the last is the one for what has a single rate."""

SIZES: Sizes = ((16_000, 64), (64_000, 64), (128_000, 128))
"""4, 16 and 66 MB: below and above what caches hold."""

GPU_SIZES: Sizes = ((64_000, 64), (256_000, 128), (512_000, 128))
"""16, 131 and 262 MB: below and above what the cache of a GPU holds."""

WIDTHS = (16, 64, 128)
"""Columns that the sparse product is measured with."""

_MEMORY = 5
_ROUNDS = 9
_MIB = 2**20
_FRESH_SIZES = (1, 4, 8, 16, 31, 33, 64)  # MiB
_PART_OF_ROWS = 4  # a fourth of the rows is picked, about a halo

Measured = dict[str, float]
"""Rates (amount per second) and times by name; sizes are part of the name."""


@dataclass(frozen=True, slots=True)
class Probes:
    """All measurements of one rank.

    Args:
        comm: its communicator; all ranks measure at the same time.
        folder: of the graphs, ``scattered-N`` and ``clustered-N`` for every N rows in ``sizes``.
        sizes: of the arrays.
    """

    comm: Communicator
    folder: Path
    sizes: Sizes = SIZES

    def run(self) -> Measured:
        """Everything; exchanges only where there is another rank."""
        found: Measured = {"process_bytes": self._process_bytes()}
        for rows, width in self.sizes:
            found |= self._arrays(rows, width)
            for kind in ("scattered", "clustered"):
                found |= self._gather(kind, rows)
        found |= self._rows(*self.sizes[-1])
        if self.comm.device.type == "cpu":
            found |= self._fresh()
        found["operation"] = self._operation()
        if self.comm.world_size > 1:
            found |= self._network(*self.sizes[-1])
        return found

    def _rand(self, rows: int, width: int) -> torch.Tensor:
        return torch.rand(rows, width, device=self.comm.device)

    def _process_bytes(self) -> float:
        """Before any data; of a GPU all that is taken there, by others too."""
        device = self.comm.device
        if device.type == "cpu":
            return float(peak(device))
        free, total = torch.cuda.mem_get_info(device)
        return float(total - free)

    def _seconds(self, action: Callable[[], object], rounds: int = _ROUNDS) -> float:
        """Lower quartile over ``rounds``, all ranks at once: other work only ever adds time."""
        once = _on_cpu if self.comm.device.type == "cpu" else _on_gpu
        action()
        times = []
        for _ in range(rounds):
            self.comm.barrier()
            times.append(once(action))
        return statistics.quantiles(times, n=4)[0] if rounds > 1 else times[0]

    def _arrays(self, rows: int, width: int) -> Measured:
        """Passes, Anderson's history and the product with [D, D]."""
        x, y = self._rand(rows, width), self._rand(rows, width)
        size = rows * width * 4

        def passes() -> None:
            torch.sub(x, y, out=y)
            y.copy_(x)
            y.relu_()

        history = History(_MEMORY)

        def step() -> None:
            history.set_newest_gram(history.push(x, y).double())

        for _ in range(_MEMORY + 1):
            step()
        alpha = torch.full((_MEMORY + 1,), 1.0 / (_MEMORY + 1), dtype=torch.float64)
        weight = self._rand(width, width) / width
        stream, push = self._seconds(passes), self._seconds(step)
        mix = self._seconds(lambda: history.mix(alpha, 1.0))
        bounds = block_bounds(rows, self.comm.device)
        blocks = [slice(begin, end) for begin, end in pairwise(bounds)]
        dense = self._seconds(lambda: [affine(x[block], weight, y[block]) for block in blocks])
        plain = self._seconds(lambda: x.T @ y)
        nodes = torch.arange(rows, device=self.comm.device)
        dropout = NodeDropout(0.5, 0)
        masks = self._seconds(lambda: dropout.mask(0, 0, nodes, width), 3)
        return {
            f"stream {size}": 7 * size / stream,
            f"history {size}": self._step_passes() * size / (push + mix),
            f"dense {size}": 2 * rows * width**2 / dense,
            f"plain_dense {size}": 2 * rows * width**2 / plain,
            f"masks {size}": rows * width / masks,
        }

    def _step_passes(self) -> float:
        """Of entering and mixing, as ``History.moved_bytes`` counts them."""
        return step_passes(_MEMORY + 1, fused=self.comm.device.type == "cuda")

    def _gather(self, kind: str, rows: int) -> Measured:
        """Bytes per second of the sparse product, counted as in ``equations.py``."""
        operator = self._operator(kind, rows)
        found = {}
        for width in WIDTHS:
            x = self._rand(rows, width)
            moved = (operator.num_entries + 2 * rows) * width * 4
            seconds = self._seconds(lambda x=x: operator @ x, 5)  # type: ignore[misc]
            found[f"{kind} {rows} {width}"] = moved / seconds
        return found

    def _operator(self, kind: str, rows: int) -> SparseMatrix:
        shard = read_shard_file(self.folder / f"{kind}-{rows}")
        where = torch.float32, self.comm.device
        return ChannelOperator.from_shard(shard.channels[0], *where).owned

    def _rows(self, rows: int, width: int) -> Measured:
        """Rows picked out, added in, and through a 4-bit encoding of their changes and back."""
        x = self._rand(rows, width)
        index = torch.randperm(rows)[: rows // _PART_OF_ROWS].sort().values.to(x.device)
        picked = x.index_select(0, index)
        sent, received = torch.zeros_like(picked), torch.zeros_like(picked)
        moved, coder = picked.numel() * 4, Integers(4)

        def code() -> None:
            payload, _ = encode_change(Picked(x, index), sent, coder)
            decode_change(payload, received, coder)

        pack = self._seconds(lambda: x.index_select(0, index))
        scatter = self._seconds(lambda: x.index_add_(0, index, picked))
        return {
            "pack": 2 * moved / pack,
            "scatter": 3 * moved / scatter,
            "codec": moved / self._seconds(code),
        }

    def _fresh(self) -> Measured:
        """From which size on new memory is mapped every time, and bytes mapped per second."""
        threshold, rate = 0.0, 0.0
        for mib in _FRESH_SIZES:
            count = mib * _MIB // 4
            kept = torch.zeros(count)
            filled = self._seconds(lambda array=kept: array.fill_(1.0))  # type: ignore[misc]
            new = self._seconds(lambda n=count: torch.empty(n).fill_(1.0))  # type: ignore[misc]
            if new > 2.0 * filled and mib >= _FRESH_SIZES[2]:
                threshold = threshold or mib * _MIB
                rate = count * 4 / (new - filled)
        return {"fresh threshold": threshold, "fresh": rate}

    def _operation(self) -> float:
        """Seconds to start one operation, from many on a tiny array."""
        tiny, count = torch.zeros(4, device=self.comm.device), 2000

        def many() -> None:
            for _ in range(count):
                tiny.add_(1.0)

        return self._seconds(many, 3) / count

    def _network(self, rows: int, width: int) -> Measured:
        """Exchange with every other rank, a small reduction, and what a product hides."""
        others = self.comm.world_size - 1
        counts = [rows // (2 * others)] * self.comm.world_size
        counts[self.comm.rank] = 0
        many, one = self._rand(sum(counts), width), [min(count, 1) for count in counts]
        few = self._rand(sum(one), width)
        numbers = torch.zeros(8, dtype=torch.float64, device=self.comm.device)
        short = self._seconds(
            lambda: [self.comm.start_exchange(few, one, one).wait() for _ in range(20)]
        )
        long = self._seconds(lambda: self.comm.start_exchange(many, counts, counts).wait())
        reduction = self._seconds(lambda: [self.comm.sum(numbers) for _ in range(50)]) / 50
        hidden = self._hidden(many, counts, long)
        message = short / 20 / others
        return {
            "message": message,
            "link": many.numel() * 4 / max(long - message * others, 1e-9),
            "reduction": reduction,
            "hidden": hidden,
        }

    def _hidden(self, rows: torch.Tensor, counts: list[int], exchange: float) -> float:
        """Share of the shorter one that is gone when product and exchange overlap."""
        size, width = self.sizes[1]
        operator = self._operator("scattered", size)
        x = self._rand(size, width)
        product = self._seconds(lambda: operator @ x, 5)

        def both() -> None:
            pending = self.comm.start_exchange(rows, counts, counts)
            operator @ x
            pending.wait()

        together = self._seconds(both)
        saved = (product + exchange - together) / min(product, exchange)
        return min(max(saved, 0.0), 1.0)


def _on_cpu(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _on_gpu(action: Callable[[], object]) -> float:
    """From the moment the GPU begins until it has done all that it was told."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    action()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def measure(comm: Communicator, folder: str, sizes: Sizes) -> Measured:
    """All probes on one rank; the entry of a started process."""
    return Probes(comm, Path(folder), sizes).run()
