"""Products and evaluations in several widths and formats, beside torch's CSR and the copy limit.

A product's limit is the time in which the rows that it gathers, one for every entry, and those that
it writes could be copied: what a cache saves comes on top.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks import local_product
from distributed_ignn.lab.benchmarks.bandwidth import COPY_LIMIT, GATHER_LIMIT, copy_task
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.interleaving import Report, interleave
from distributed_ignn.lab.benchmarks.iteration import (
    Evaluation,
    draw_numbers,
    ideal_bytes,
    propagation_of,
)
from distributed_ignn.lab.benchmarks.products import PLAIN, PRODUCTS, build_products
from distributed_ignn.propagation.kernels import KERNELS
from tests.gpu.prepared_graphs import Preparation, open_graph
from tests.gpu.setting import Budget, Setting, keep
from tests.gpu.verdicts import Check, judge, left_out, measured

SHARE, OVER_CSR = 0.8, 1.5
OURS = tuple(name for name in PRODUCTS if name.startswith("blocks, "))
_ROUNDED = 2.0**-6  # of the largest entry: results in bfloat16 that were added in another order
_KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class ProductFigure:
    """One way to multiply in one width and format.

    Args:
        direction: forward or transpose.
        kernel: as ``products.PRODUCTS`` names it.
        width, kind: D, and the format of the operand.
        seconds: of a product.
        of_copy: share of the speed of a copy at which it gathers and writes rows.
        of_ideal: the same if every row were read once.
        over_csr: how many times as fast as torch's CSR product on rows in a plain order.
    """

    direction: str
    kernel: str
    width: int
    kind: str
    seconds: float
    of_copy: float
    of_ideal: float
    over_csr: float


def look(budget: Budget, graphs: Preparation) -> Iterator[Check]:
    """Forward and transpose of every kernel, then whole evaluations."""
    graphs.wait(budget.setting.sizes.products, 1, budget.left())
    ((found, missing),) = budget.ranks(products, 1)
    for name, why in missing.items():
        yield left_out(name, why)
    yield from product_checks(budget.setting, found)
    (seconds,) = budget.ranks(evaluations, 1)
    keep_seconds(budget.setting, seconds)
    for name, value in seconds.items():
        if isinstance(value, str):
            yield left_out(name, value)
        else:
            yield measured(name, value.of_copy, "%", f"{value.seconds * 1e3:.3g} ms")


def product_checks(setting: Setting, found: list[ProductFigure]) -> Iterator[Check]:
    """The fastest of ours in each width, format and direction against the targets; all as rows."""
    groups = defaultdict(list)
    for figure in found:
        groups[figure.direction, figure.width, figure.kind].append(figure)
    for (direction, width, kind), figures in groups.items():
        for figure in figures:
            note = f"{figure.seconds * 1e3:.3g} ms, {figure.of_ideal:.0%} if rows were read once"
            label = f"{direction}, D {width}, {kind}, {figure.kernel}: of a copy's speed"
            yield measured(label, figure.of_copy, "%", note)
        best = min((f for f in figures if f.kernel in OURS), key=lambda f: f.seconds)
        counts = setting.real and width == setting.sizes.judged
        where = f"{direction}, D {width}, {kind}, fastest"
        yield judge(f"{where}: of a copy's speed", best.of_copy, "%", SHARE, counts=counts)
        yield judge(
            f"{where}: times as fast as torch's CSR", best.over_csr, "", OVER_CSR, counts=counts,
            note=best.kernel,
        )  # fmt: skip


@torch.no_grad()
def products(comm: Communicator, setting: Setting) -> tuple[list[ProductFigure], dict[str, str]]:
    """Every kernel that works here, and why others do not."""
    found: list[ProductFigure] = []
    missing: dict[str, str] = {}
    emulated = setting.kind == "emulated"  # which runs no kernels of Triton
    with open_graph(comm, setting, setting.sizes.products) as workload:
        shard = workload.shard
        rows = shard.num_owned + shard.num_halo
        for kind, dtype in _KINDS.items():
            try:
                first = torch.rand(rows, setting.sizes.widths[0], device=comm.device).to(dtype)
                silent = [name for name in PRODUCTS if "triton" in name and emulated]
                built = build_products(shard, comm, first, lambda text: None, silent)
            except (NotImplementedError, RuntimeError) as error:
                missing[f"products, {kind}"] = str(error).splitlines()[0]
                continue
            for name in PRODUCTS.keys() - built.keys():
                missing[f"{name}, {kind}"] = "does not multiply this on this device"
            for width in setting.sizes.widths:
                local = torch.rand(rows, width, device=comm.device).to(dtype)
                tolerance = 1e-4 if dtype is torch.float32 else _ROUNDED
                report = local_product.measure(
                    workload, built, local, tolerance, setting.sizes.copy_bytes
                )
                found += _figures(report, width, kind)
    return found, missing


def _figures(report: Report, width: int, kind: str) -> list[ProductFigure]:
    """Of a report of ``local_product``."""
    ratios = {(f.section, f.name, f.baseline): f.ratio for f in report.figures}
    return [
        ProductFigure(
            figure.section,
            figure.name,
            width,
            kind,
            figure.value,
            ratios[figure.section, figure.name, GATHER_LIMIT],
            ratios[figure.section, figure.name, COPY_LIMIT],
            figure.ratio,
        )
        for figure in report.figures
        if figure.baseline == PLAIN
    ]


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one evaluation, and the share of the copy limit at which it works."""

    width: int
    kind: str
    kernel: str
    seconds: float
    of_copy: float


Evaluations = dict[str, Timed | str]
"""By name; where there are no seconds, why."""


@torch.no_grad()
def evaluations(comm: Communicator, setting: Setting) -> Evaluations:
    """One evaluation of the map by every kernel, as a share of the copy limit."""
    found: Evaluations = {}
    copy, copied = copy_task(comm, setting.sizes.copy_bytes)
    with open_graph(comm, setting, setting.sizes.products) as workload:
        bandwidth = copied / interleave({"copy": copy}, workload.rounds, comm)["copy"]
        for kind, dtype in _KINDS.items():
            for kernel in KERNELS:
                label = f"evaluation, {kind}, {kernel}"
                if setting.kind == "emulated" and "triton" in kernel:
                    found[label] = "an emulated GPU runs no kernels of Triton"
                    continue
                try:
                    seconds = _evaluation_seconds(workload, setting, kernel, dtype)
                except (NotImplementedError, RuntimeError, UserError) as error:
                    found[label] = str(error).splitlines()[0]
                    continue
                for width, each in seconds.items():
                    limit = ideal_bytes(workload.shard, width, dtype.itemsize) / bandwidth
                    name = f"{label}, D {width}: of the copy limit"
                    found[name] = Timed(width, kind, kernel, each, limit / each)
    return found


def _evaluation_seconds(
    workload: Workload, setting: Setting, kernel: str, dtype: torch.dtype
) -> dict[int, float]:
    """Of one evaluation by width; weights stay in float32 where the kernel adds in it."""
    comm, shard = workload.comm, workload.shard
    first = replace(workload, config=_with(workload.config, kernel, setting.sizes.widths[0]))
    propagation = propagation_of(first, shard, comm, dtype)
    found = {}
    for width in setting.sizes.widths:
        chosen = replace(workload, config=_with(workload.config, kernel, width))
        numbers = draw_numbers(chosen, shard, dtype)
        if KERNELS[kernel].fuses and dtype is torch.bfloat16:
            whole = draw_numbers(chosen, shard)
            numbers = whole._replace(bias=numbers.bias, state=numbers.state)
        task = Evaluation(propagation, *numbers)
        found[width] = interleave({"": task}, workload.rounds, comm)[""]
    return found


def _with(config: RunConfig, kernel: str, width: int) -> RunConfig:
    model = config.model.model_copy(update={"hidden": width})
    train = config.train.model_copy(update={"kernel": kernel})
    return config.model_copy(update={"model": model, "train": train})


def keep_seconds(setting: Setting, found: Evaluations) -> None:
    """Leave the seconds of an evaluation at the judged width to the profile, by format, kernel."""
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for value in found.values():
        if isinstance(value, Timed) and value.width == setting.sizes.judged:
            table[value.kind][value.kernel] = value.seconds
    keep(setting, "kernels", table)
