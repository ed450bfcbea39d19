"""How halo codecs change a solve: evaluations, bytes, seconds, and where it ends.

On the map of a trained run, every method solves to one tolerance with every codec, rows that are
one evaluation old included. The first solve begins with links that hold nothing; the timed ones
begin as in training, from the same point with links that hold the last solve's rows. Every answer
is compared with Z* and its residual is computed again from exact rows.

Baseline: ``fp32``, rows as they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.codecs import CODECS
from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.lab.benchmarks.interleaving import Figure, Report, compare, interleave
from distributed_ignn.lab.benchmarks.problem import Problem, load_problem
from distributed_ignn.lab.benchmarks.study import Study, Tell, tell_nobody
from distributed_ignn.models.maps import EquilibriumCell
from distributed_ignn.plots import (
    Picture,
    legend_below,
    line_style,
    log_ticks,
    set_title,
    style,
    whole_ticks,
)
from distributed_ignn.propagation.propagate import Propagation, PropagationOptions
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.base import AnySolver, Solution
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve

BASELINE = "fp32"


@dataclass(frozen=True, slots=True)
class CodecOptions:
    """What is measured.

    Args:
        run: output folder of a training run.
        rounds: interleaved rounds of the timed solves.
        tolerance: relative residual to solve to.
        max_steps: most evaluations of a solve.
        codecs: which ones; the baseline is always measured.
        tell: told what has been finished.
    """

    run: Path
    rounds: int = 15
    tolerance: float = 1e-6
    max_steps: int = 100
    codecs: tuple[str, ...] = tuple(CODECS)
    tell: Tell = tell_nobody


@dataclass(frozen=True, slots=True, eq=False)
class _Variant:
    """A method with a way of writing halo rows.

    Args:
        method, name: which.
        propagation: with links of its own.
    """

    method: str
    name: str
    propagation: Propagation


def run(options: CodecOptions, comm: Communicator) -> Study:
    """Measure on all ranks of the job; every rank calls it.

    Raises:
        UserError: see ``load_run``.
    """
    problem = load_problem(options.run, comm)
    rows: list[Mapping[str, Any]] = []
    figures: list[Figure] = []
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for method in _methods(problem):
        variants = _variants(problem, method, options)
        found = {v.name: _first_solve(problem, v, options) for v in variants}
        seconds = interleave(
            {v.name: lambda v=v: _solve(problem, v, options) for v in variants},  # type: ignore[misc]
            options.rounds,
            comm,
        )
        for unit in ("evaluations", "bytes per evaluation", "bytes, first solve"):
            values = {name: float(row[unit]) for name, row in found.items()}
            figures += compare(values, unit, BASELINE, method)
        figures += compare(seconds, "seconds per solve", BASELINE, method)
        for name, row in found.items():
            curves[method, name] = row.pop("curve")
            rows.append({"method": method, "codec": name, **row, "seconds": seconds[name]})
        options.tell(f"{method}: {len(variants)} ways of writing halo rows")
    report = Report("codecs", _settings(problem, options), tuple(figures))
    title = f"{problem.trainer.config.dataset}, ranks: {comm.world_size}"
    return Study(report, tuple(rows), report.tables(), _notes(rows), lambda: _draw(curves, title))


def _methods(problem: Problem) -> tuple[str, ...]:
    learned = problem.trainer.learned
    ready = learned is not None and learned.ready
    return ("picard", "anderson", *(["learned"] if ready else []))


def _variants(problem: Problem, method: str, options: CodecOptions) -> list[_Variant]:
    shard, comm, dtype = problem.trainer.shard, problem.comm, problem.injection.dtype
    chosen = [("fp32", PropagationOptions())]
    chosen += [(c, PropagationOptions(codec=c)) for c in options.codecs if c != BASELINE]
    chosen.append(("fp32, stale", PropagationOptions(stale=True)))
    chosen.append(("int4, stale", PropagationOptions(codec="int4", stale=True)))
    return [_Variant(method, name, Propagation(shard, comm, dtype, o)) for name, o in chosen]


def _solver(problem: Problem, method: str, tolerance: float) -> AnySolver:
    config, learned = problem.trainer.config.forward, problem.trainer.learned
    if method == "learned" and learned is not None:
        return learned.solver(tolerance)
    if method == "picard":
        return Picard()
    return Anderson(config.memory, config.beta, config.regularization)


def _cell(problem: Problem, propagation: Propagation) -> EquilibriumCell:
    model = problem.trainer.implicit
    layer = replace(model.layer, propagation=propagation)
    return layer.cell(problem.injection, model.channel_weights())


@torch.no_grad()
def _solve(problem: Problem, variant: _Variant, options: CodecOptions) -> Solution:
    cell = _cell(problem, variant.propagation)
    if variant.method == "learned":
        start = problem.trainer.planner.first_guess(cell, problem.injection)
    else:
        start = cell.form.activate(problem.injection)
    return solve(
        cell,
        start,
        _solver(problem, variant.method, options.tolerance),
        problem.comm.sum,
        tolerance=options.tolerance,
        max_steps=options.max_steps,
    )


def _first_solve(problem: Problem, variant: _Variant, options: CodecOptions) -> dict[str, Any]:
    """A solve from links that hold nothing, and the bytes of one that follows it."""
    comm = problem.comm
    before = comm.traffic.snapshot()
    started = time.perf_counter()
    solution = _solve(problem, variant, options)
    spent = time.perf_counter() - started
    first = _sum(comm, comm.traffic.since(before).exchange_bytes)
    before = comm.traffic.snapshot()
    again = _solve(problem, variant, options)
    later = _sum(comm, comm.traffic.since(before).exchange_bytes) / again.steps
    (distance,) = problem.distance(solution.image)
    steps = len(solution.residuals)
    curve = [(first * (k + 1) / steps, r) for k, r in enumerate(solution.residuals)]
    return {
        "evaluations": solution.steps,
        "evaluations, links warm": again.steps,
        "bytes per evaluation": later,
        "bytes, first solve": first,
        "seconds, first solve": spent,
        "distance": distance,
        "residual": solution.residual,
        "exact residual": _exact_residual(problem, solution.point),
        "curve": curve,
    }


def _sum(comm: Communicator, value: int) -> float:
    return float(comm.sum(torch.tensor([float(value)], dtype=torch.float64)))


@torch.no_grad()
def _exact_residual(problem: Problem, point: Tensor) -> float:
    """Relative residual of a point from rows as they are."""
    exact = Propagation(problem.trainer.shard, problem.comm, point.dtype)
    image = _cell(problem, exact)(point, None).image
    squares = torch.stack([(image - point).double().square().sum(), image.double().square().sum()])
    residual, size = problem.comm.sum(squares.cpu()).tolist()
    return float((residual / size) ** 0.5)


def _notes(rows: list[Mapping[str, Any]]) -> tuple[str, ...]:
    worst = max(rows, key=lambda row: float(row["exact residual"]) / float(row["residual"]))
    far = max(float(row["distance"]) for row in rows)
    return (
        f"largest distance to Z*: {far:.1e}; exact residual over the returned one, worst: "
        f"{worst['exact residual'] / worst['residual']:.2f} ({worst['method']}, {worst['codec']})",
        "bytes per evaluation: payload of all ranks, hops of the learned solver included, once the "
        "links hold rows; the first solve of a run also sends its first rows in bfloat16",
    )


def _settings(problem: Problem, options: CodecOptions) -> dict[str, Any]:
    shard, trainer = problem.trainer.shard, problem.trainer
    return {
        "dataset": trainer.config.dataset,
        "nodes": shard.num_nodes,
        "rows_sent": int(_sum(problem.comm, shard.send_index.numel())),
        "width": trainer.config.model.hidden,
        "ranks": problem.comm.world_size,
        "tolerance": options.tolerance,
        "rounds": options.rounds,
        "target_residual": problem.target_residual,
    }


@style()
def _draw(curves: Mapping[tuple[str, str], list[tuple[float, float]]], title: str) -> Picture:
    """Residual over bytes sent, or over evaluations where a rank is alone; a panel per method."""
    methods = list(dict.fromkeys(method for method, _ in curves))
    codecs = list(dict.fromkeys(name for _, name in curves))
    anything = any(sent > 0 for curve in curves.values() for sent, _ in curve)
    picture = Picture(3.6 * len(methods), 3.8)
    panels = picture.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        for (own, name), curve in curves.items():
            if own == method:
                residuals = [residual for _, residual in curve]
                sent = [b / 2**20 for b, _ in curve] if anything else range(1, len(curve) + 1)
                axes.plot(sent, residuals, **line_style(codecs.index(name)), label=name)
        if anything:
            log_ticks(axes.xaxis)
        else:
            whole_ticks(axes.xaxis)
        log_ticks(axes.yaxis)
        axes.set_xlabel("MiB sent by all ranks" if anything else "evaluations; nothing is sent")
        axes.set_title(method)
    panels[0].set_ylabel("relative residual")
    legend_below(picture)
    set_title(picture, f"{title}; the first solve")
    return picture
