"""Whether a run fits into the memory there is: known, shown and refused before it starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.table import Table

from distributed_ignn.comm.codecs import encodes
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.explicit import IMPLICIT
from distributed_ignn.graph.part_sizes import PartSizes
from distributed_ignn.graph.shard import GraphShard
from distributed_ignn.propagation.propagate import choose_codec
from distributed_ignn.runs.memory import machine as memory
from distributed_ignn.runs.memory.budget import KEPT, TYPICAL_EVALUATIONS, budget, kept_bytes
from distributed_ignn.training.plans import chosen_method

_GIB = 2**30
_SOLVES = ("forward", "adjoint")

_PLENTY = 2
"""Times what the ranks need: less, and freed memory is given back."""


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """What a run will take, on every rank alike.

    Args:
        items: bytes by name of the rank that needs most, with solves of
            ``TYPICAL_EVALUATIONS``; with freed memory where that is kept.
        total: their sum.
        bound: that sum with solves that fill their history.
        needed, available: of the machine or GPU with the least to spare: what its ranks need
            together if solves fill their history, and what they may have (None where that is not
            known).
        ranks: that share it.
        keeps_freed: whether freed memory is kept for the next array: on CPUs, if every machine has
            twice what its ranks need then.
    """

    items: dict[str, int]
    total: int
    bound: int
    needed: int
    available: int | None
    ranks: int
    keeps_freed: bool = False

    def as_json(self) -> dict[str, Any]:
        """For a file, in bytes."""
        return {
            "items": self.items,
            "total": self.total,
            "bound": self.bound,
            "needed_together": self.needed,
            "available_together": self.available,
            "ranks_together": self.ranks,
            "keeps_freed_memory": self.keeps_freed,
        }

    def line(self) -> str:
        """For people, where there is enough."""
        line = f"memory: about {self.needed / _GIB:.2f} GiB for {_ranks(self.ranks)}"
        return line if self.available is None else f"{line}, of {self.available / _GIB:.1f} GiB"

    def table(self) -> Table:
        """For people, largest items first."""
        table = Table("memory of the largest rank", "MiB", title="memory budget")
        table.columns[1].justify = "right"
        for name, value in sorted(self.items.items(), key=lambda item: -item[1]):
            table.add_row(name, f"{value / 2**20:,.0f}")
        table.add_row("[bold]sum[/bold]", f"[bold]{self.total / 2**20:,.0f}[/bold]")
        if self.bound > self.total:
            table.add_row("sum if solves fill their history", f"{self.bound / 2**20:,.0f}")
        if self.available is not None:
            share = f"{self.needed / _GIB:.2f} of {self.available / _GIB:.2f} GiB"
            table.add_row(f"{_ranks(self.ranks)} sharing memory", share)
        return table


def check_budget(
    config: RunConfig, shard: GraphShard, comm: Communicator, process: int | None = None
) -> BudgetReport:
    """The budget of a run; every rank calls it, before the model is built.

    Args:
        config: the run.
        shard: this rank's part.
        comm: this rank's communicator.
        process: what the process held before it read its part; now by default.

    Raises:
        UserError: the ranks of some machine or GPU need more than it has, or than
            ``train.memory_limit`` (on every rank).
    """
    resident = memory.resident(comm.device)
    base = resident if process is None else process
    config = config.model_copy(update={"device": comm.device.type})  # auto is known by now
    sizes = PartSizes.from_shard(shard)
    steps = dict.fromkeys(("forward", "adjoint"), TYPICAL_EVALUATIONS)
    hold = partial(
        budget,
        sizes,
        process=base,
        coded_halo=encodes(choose_codec(config.comm.halo, comm)),
        shares_memory=comm.shares_memory,
    )
    items = hold(config, evaluations=steps)
    full = hold(config)
    total = sum(full.values())
    keeps = config.train.keep_freed and comm.device.type == "cpu" and memory.can_keep_freed_memory()
    own = {
        "place": memory.place(comm),
        "items": items,
        "bound": total,
        "kept": kept_bytes(full) if keeps else 0,
        "resident": resident,
        "available": memory.available(comm.device),
    }
    ranks = comm.gather_json(own)
    report = _roomy(ranks, config.train.memory_limit) or _report(ranks, config.train.memory_limit)
    if report.available is not None and report.needed > report.available:
        rounded, smaller = _with_rounded_history(config)
        saved = total - sum(hold(smaller).values())
        solves = config.model.kind == IMPLICIT
        comm.agree(_refusal(report, saved / max(total, 1), rounded, solves))
    return report


def _roomy(ranks: list[dict[str, Any]], limit: float) -> BudgetReport | None:
    """The report where freed memory is kept, if all ranks can and there is plenty."""
    if not all(rank["kept"] for rank in ranks):
        return None
    keeping = [
        rank
        | {"bound": rank["bound"] + rank["kept"], "items": rank["items"] | {KEPT: rank["kept"]}}
        for rank in ranks
    ]
    for needed, available, _ in _places(keeping, limit):
        if available is None or available < _PLENTY * needed:
            return None
    return replace(_report(keeping, limit), keeps_freed=True)


def _report(ranks: list[dict[str, Any]], limit: float) -> BudgetReport:
    totals = [rank["bound"] for rank in ranks]
    largest = max(range(len(ranks)), key=totals.__getitem__)
    needed, available, count = min(_places(ranks, limit), key=_spare)
    items = ranks[largest]["items"]
    return BudgetReport(items, sum(items.values()), totals[largest], needed, available, count)


def _places(ranks: list[dict[str, Any]], limit: float) -> list[tuple[int, int | None, int]]:
    """What the ranks of each machine or GPU need together, what they may have, and their number."""
    found = []
    for place in sorted({rank["place"] for rank in ranks}):
        members = [rank for rank in ranks if rank["place"] == place]
        free = [rank["available"] for rank in members]
        held = sum(rank["resident"] for rank in members)
        known = None if None in free else min(free) + held
        if limit > 0.0:
            bound = int(limit * _GIB)
            known = bound if known is None else min(known, bound)
        found.append((sum(rank["bound"] for rank in members), known, len(members)))
    return found


def _spare(place: tuple[int, int | None, int]) -> float:
    needed, available, _ = place
    return float("inf") if available is None else float(available - needed)


def _with_rounded_history(config: RunConfig) -> tuple[list[str], RunConfig]:
    """The sections whose method can round its history, and the run in which they do."""
    methods = {name: chosen_method(config, adjoint=name == "adjoint")[0] for name in _SOLVES}
    rounded = [name for name, method in methods.items() if "history_dtype" in method.reads]
    change = {"history_dtype": "bfloat16"}
    update = {name: getattr(config, name).model_copy(update=change) for name in rounded}
    return rounded, config.model_copy(update=update)


def _refusal(report: BudgetReport, saved: float, rounded: list[str], solves: bool) -> str:
    """One line: what is missing and what would help."""
    available = report.available or 0
    together = "the rank needs" if report.ranks == 1 else f"{report.ranks} ranks together need"
    problem = (
        f"{together} about {report.needed / _GIB:.1f} GiB and may have {available / _GIB:.1f} GiB"
    )
    if rounded and saved > 0.0 and report.needed * (1.0 - saved) <= available:
        advice = "use " + " ".join(f"--{name}.history_dtype bfloat16" for name in rounded)
    else:
        times = -(-report.needed // max(available, 1))
        advice = f"use about {times} times the machines, a lower model.hidden, or " + (
            "a lower forward.memory, adjoint.memory and solver.memory"
            if solves
            else "fewer explicit.layers"
        )
    return f"the run does not fit into memory: {problem}; {advice}"


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"
