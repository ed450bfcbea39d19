"""What one steady evaluation of each solver asks of the host: launches, syncs, idle device.

Counted from two solves of different lengths, so that what happens once per solve cancels, and what
happens every few evaluations is spread over them. On a GPU torch's profiler sees the driver's calls
and the kernels, of which NCCL's own are left out; elsewhere operations stand in for launches.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.interleaving import finish_device
from distributed_ignn.lab.benchmarks.iteration import draw_numbers
from distributed_ignn.models.maps import AdjointCell, EquilibriumCell
from distributed_ignn.propagation.propagate import Propagation, PropagationOptions
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.estimator import ErrorEstimator
from distributed_ignn.solvers.neural import NeuralSolver
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.reduced import BasisCache
from distributed_ignn.solvers.solve import solve
from tests.gpu.prepared_graphs import Preparation, open_graph
from tests.gpu.setting import Budget, Setting, keep
from tests.gpu.verdicts import Check, judge, measured

MOST_LAUNCHES, MOST_SYNCS = 12, 1
"""Of an evaluation with Anderson's method, outside CUDA graphs."""

_STEPS = {"full": (10, 20), "tiny": (7, 9)}  # a history is full from the sixth on
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
_GRAPHS = ("cudaGraphLaunch",)
_SYNCS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
_JUDGED = ("anderson", "anderson, adjoint")

#: The planner's names of the methods.
_METHODS = {"picard": "picard", "anderson": "anderson", "broyden": "broyden", "learned": "neural"}

Solve = Callable[[int], None]
Counts = dict[str, float]


def look(budget: Budget, graphs: Preparation) -> Iterator[Check]:
    """On one rank and on two."""
    setting = budget.setting
    for ranks in (1, 2):
        graphs.wait(setting.sizes.links, ranks, budget.left())
        found = budget.ranks(per_evaluation, ranks)[0]
        if ranks > 1 and setting.counts(ranks):
            keep(
                setting,
                "asked",
                {_METHODS[n]: _asked(c) for n, c in found.items() if n in _METHODS},
            )
        for name, counts in found.items():
            yield from _checks(setting, ranks, name, counts)


def _asked(counts: Counts) -> dict[str, float]:
    """As a hardware profile has it."""
    return {key: max(0.0, counts[key]) for key in ("launches", "syncs")}


def _checks(setting: Setting, ranks: int, solver: str, counts: Counts) -> Iterator[Check]:
    stands_in = "" if setting.real else "operations of the CPU stand in"
    name = f"{solver}, {ranks} ranks"
    for key, most in (("launches", MOST_LAUNCHES), ("syncs", MOST_SYNCS)):
        label = f"{name}: {key} per evaluation"
        if solver not in _JUDGED:
            yield measured(label, counts[key], "", stands_in)
            continue
        # half a one more may come from what a solve does once
        yield judge(
            label,
            counts[key],
            "",
            most + 0.5,
            least=False,
            counts=setting.counts(ranks),
            note=stands_in,
        )
    note = f"{counts['seconds'] * 1e6:,.0f} us"
    if setting.real:
        note += f", device idle for {counts['idle']:.0%}, {counts['graphs']:.2g} graph launches"
    yield measured(f"{name}: evaluation", counts["seconds"] * 1e6, "us", note)


@torch.no_grad()
def per_evaluation(comm: Communicator, setting: Setting) -> dict[str, Counts]:
    """Launches, syncs, seconds and idle share of each solver."""
    scale = setting.sizes.links
    width = str(setting.sizes.judged)
    with open_graph(comm, setting, scale, "--model.hidden", width) as workload:
        return {
            name: _counted(comm, setting, solve_of) for name, solve_of in _solves(workload).items()
        }


def _solves(workload: Workload) -> dict[str, Solve]:
    """A solve of a given number of evaluations by every method."""
    comm, shard = workload.comm, workload.shard
    weights, bias, _ = draw_numbers(workload, shard)

    def forward(make: Callable[[], AnySolver], codec: str = "fp32") -> Solve:
        options = PropagationOptions(workload.config.train.kernel, codec)
        propagation = Propagation(shard, comm, torch.float32, options)
        return _solve(lambda: EquilibriumCell(propagation, weights, bias), make, bias, comm)

    propagation = Propagation(shard, comm, torch.float32)
    found = {
        "picard": forward(Picard),
        "anderson": forward(Anderson),
        "anderson, adjoint": _solve(
            lambda: AdjointCell(propagation, weights, bias > 0.5, bias), Anderson, bias, comm
        ),
        "broyden": forward(Broyden),
        "learned": forward(lambda: _learned(shard.num_nodes, bias)),
    }
    if comm.world_size > 1:
        found["anderson, int4 halo"] = forward(Anderson, "int4")
    return found


def _learned(nodes: int, like: Tensor) -> NeuralSolver:
    """The estimator over one hop that every step of a learned solve takes."""
    estimator = ErrorEstimator(BasisCache(8), 1, 1, 20).to(like.device)
    return NeuralSolver(None, nodes, 1e-10, None, estimator, 5)


def _solve(
    cell: Callable[[], Any], make: Callable[[], AnySolver], like: Tensor, comm: Communicator
) -> Solve:
    def run(steps: int) -> None:
        start = torch.zeros_like(like)
        solve(cell(), start, make(), comm.sum, tolerance=0.0, max_steps=steps)

    return run


def _counted(comm: Communicator, setting: Setting, run: Solve) -> Counts:
    """Per evaluation, from the difference of two solves."""
    few, many = _STEPS["tiny" if setting.sizes.brief else "full"]
    for steps in (few, many):  # whatever is made or compiled once
        run(steps)
    short, long = (_profiled(comm, setting, run, steps) for steps in (few, many))
    found = {key: (long[key] - short[key]) / (many - few) for key in long}
    found["seconds"] = _seconds(comm, run, few, many)
    # the profiler slows the host; the clock alone says how long an evaluation takes
    found["idle"] = max(0.0, 1.0 - found.pop("busy") / found["seconds"])
    return found


def _seconds(comm: Communicator, run: Solve, few: int, many: int) -> float:
    """Of an evaluation, without the profiler."""
    times = []
    for steps in (few, many):
        comm.barrier()
        finish_device(comm)
        started = time.perf_counter()
        run(steps)
        finish_device(comm)
        times.append(time.perf_counter() - started)
    return max((times[1] - times[0]) / (many - few), 1e-9)


def _profiled(comm: Communicator, setting: Setting, run: Solve, steps: int) -> Counts:
    """Launches, graph launches, syncs, and seconds in which the device worked."""
    finish_device(comm)
    if not setting.real:
        with _Operations() as operations:
            run(steps)
        return {**operations.counts, "graphs": 0.0, "busy": 0.0}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run(steps)
    names = Counter(event.name for event in seen.events())
    kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    of_nccl = sum(event.name.startswith("nccl") for event in kernels)
    spans = sorted((e.time_range.start, e.time_range.end) for e in kernels)
    return {
        "launches": sum(names[name] for name in _LAUNCHES) - of_nccl,
        "syncs": sum(names[name] for name in _SYNCS),
        "graphs": sum(names[name] for name in _GRAPHS),
        "busy": _covered(spans) / 1e6,
    }


class _Operations(TorchDispatchMode):
    """Counts operations that are no views, and those that ask for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"launches": 0.0, "syncs": 0.0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts["launches"] += not func.is_view
        self.counts["syncs"] += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals that ascend."""
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
