"""Kept edges of the graph of the error estimator against what the solver makes of them.

For every way of choosing edges and every share kept, the estimator is fitted afresh on the frozen
model of a run, with several draws of the edges: how far the solver is from the fixed point after
each evaluation, and how long the choosing took. Controls: the model's own channels (the shipped
setting), the whole graph as one channel (``none``), and an estimator without graph. If kept edges
matter, the differences between rows exceed those between draws; the study says whether they do.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.goals import Goal, distance_goal
from distributed_ignn.lab.benchmarks.interleaving import Report, compare, interleave
from distributed_ignn.lab.benchmarks.problem import Problem, load_problem
from distributed_ignn.lab.benchmarks.solver import learned_method, learned_starts
from distributed_ignn.lab.benchmarks.sparsifier_plot import draw_quality
from distributed_ignn.lab.benchmarks.sparsifier_speed import Speed, measure_speed
from distributed_ignn.lab.benchmarks.study import Study, Tell, tell_nobody
from distributed_ignn.lab.benchmarks.tracing import Step, trace
from distributed_ignn.lab.benchmarks.variants import Variant, train_variant
from distributed_ignn.propagation.operators import ChannelOperator
from distributed_ignn.propagation.sparsify import SPARSIFIERS, WHOLE, sparsify

NO_GRAPH, CHANNELS = "no graph", "channels"
_FLOOR = 1e-5
_COMPARED_STEPS = 4


@dataclass(frozen=True, slots=True)
class SparsifierOptions:
    """What is measured.

    Args:
        run: output folder of a training run with a learned solver.
        keeps: shares of edges to keep.
        seeds: draws of the edges, per choice that leaves something to chance.
        rounds: interleaved rounds of timing the choice.
        max_steps: evaluations allowed.
        scales: sizes of synthetic-products for the time over size, as shares of ogbn-products.
        tell: told what has been finished.
    """

    run: Path
    keeps: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    seeds: int = 3
    rounds: int = 5
    max_steps: int = 60
    scales: tuple[float, ...] = (0.001, 0.002, 0.004, 0.008, 0.016)
    tell: Tell = tell_nobody


@dataclass(frozen=True, slots=True)
class Choice:
    """A way of choosing edges.

    Args:
        name: as tables show it.
        method: how edges are chosen.
        keep: share of the edges kept.
        thinned: whether the estimator reads the chosen edges, not the channels or nothing.
    """

    name: str
    method: str
    keep: float
    thinned: bool = True

    @property
    def drawn(self) -> bool:
        """Whether chance has a part in which edges are kept."""
        return self.thinned and self.method != WHOLE

    @property
    def variant(self) -> Variant:
        """The solver that reads these edges."""
        reach = "own" if self.name == NO_GRAPH else "graph"
        # any name but "none" makes the estimator read the one graph that it is given
        sparsifier = "pri" if self.thinned else "none"
        settings = {"estimator": reach, "sparsifier": sparsifier, "network": "none"}
        return Variant(self.name, settings | {"estimator_hops": 1})


def choices(keeps: Sequence[float]) -> list[Choice]:
    """The controls first, then every method at every share below 1, where all are the same."""
    found = [
        Choice(NO_GRAPH, "none", 0.0, thinned=False),
        Choice(CHANNELS, "none", 1.0, thinned=False),
        Choice(WHOLE, "none", 1.0),
    ]
    methods: tuple[str, ...] = tuple(SPARSIFIERS)
    for method in methods:
        found += [Choice(f"{method} {keep:g}", method, keep) for keep in keeps if keep < 1.0]
    return found


@dataclass(frozen=True, slots=True)
class Quality:
    """What the solvers of one choice reach.

    Args:
        choice: of edges.
        kept: share of the entries that is in the sparsified graph.
        seconds: of choosing.
        draws: steps of the solver fitted to each draw; a control has one.
    """

    choice: Choice
    kept: float
    seconds: float
    draws: tuple[list[Step], ...]

    def distances(self, evaluations: int) -> list[float]:
        """Per draw, the distance after so many evaluations."""
        return [steps[min(evaluations, len(steps) - 1)].distance for steps in self.draws]

    def evaluations(self, goal: Goal) -> list[float]:
        """Per draw, evaluations until the goal is kept."""
        return [goal.evaluations(steps) for steps in self.draws]


def run(options: SparsifierOptions, comm: Communicator) -> Study:
    """Measure on all ranks of the job; every rank calls it.

    Raises:
        UserError: the run has no trained solver, or see ``load_run``.
    """
    problem = load_problem(options.run, comm)
    learned = problem.trainer.learned
    if learned is None or not learned.ready:
        raise UserError(
            f"{options.run} was trained with forward.method = "
            f"{problem.trainer.config.forward.method}; this study needs a run with neural, whose "
            "initialiser makes the starting points"
        )
    found = list(_qualities(problem, options))
    goal = distance_goal(1e-3)
    speeds = measure_speed(options.scales, options.rounds, comm)
    seconds = {q.choice.name: q.seconds for q in found if q.choice.thinned}
    mean = {q.choice.name: statistics.fmean(q.evaluations(goal)) for q in found}
    figures = compare(mean, "evaluations", WHOLE, goal.name)
    figures += compare(seconds, "seconds", WHOLE, "choosing the edges")
    steps = _COMPARED_STEPS
    return Study(
        Report("sparsifier", _settings(problem, options, speeds), figures),
        tuple(_rows(found)),
        (_table(found, goal, steps), _speed_table(speeds)),
        (verdict(found, steps), *(speed.sentence() for speed in speeds)),
        lambda: draw_quality(
            [(q.choice.name, q.choice.method, q.kept, q.distances(steps)) for q in found],
            steps,
            problem.trainer.config.dataset,
        ),
    )


def _qualities(problem: Problem, options: SparsifierOptions) -> Iterator[Quality]:
    """Fit and trace the solver of every choice; the run's own graph is put back."""
    trainer, model = problem.trainer, problem.trainer.implicit
    own = model.layer
    try:
        for choice in choices(options.keeps):
            draws, seconds, kept = [], [], 0.0
            for draw in range(options.seeds if choice.drawn else 1):
                seed = trainer.config.seed + draw
                operator, spent, kept = _choose(problem, choice, seed, options.rounds)
                model.layer = replace(own, sparsified=operator)
                draws.append(_fit_and_trace(problem, choice, options))
                seconds.append(spent)
            options.tell(f"{choice.name}: fitted to {len(draws)} draws")
            yield Quality(choice, kept, statistics.median(seconds), tuple(draws))
    finally:
        model.layer = own


def _choose(
    problem: Problem, choice: Choice, seed: int, rounds: int
) -> tuple[ChannelOperator | None, float, float]:
    """The sparsified graph, the median seconds of making it, and the share of entries in it."""
    if not choice.thinned:
        return None, 0.0, choice.keep
    shard, comm, dtype = problem.trainer.shard, problem.comm, problem.injection.dtype
    made: list[ChannelOperator] = []

    def make() -> None:
        made[:] = [sparsify(shard, comm, choice.method, choice.keep, dtype, seed)]

    seconds = interleave({"make": make}, rounds, comm)["make"]
    entries = [
        graph.owned.num_entries + graph.boundary.num_entries - shard.num_owned
        for graph in (made[0], shard.channels[0])
    ]
    kept, whole = comm.sum(torch.tensor(entries, dtype=torch.float64)).tolist()
    return made[0], seconds, kept / max(whole, 1.0)


def _fit_and_trace(problem: Problem, choice: Choice, options: SparsifierOptions) -> list[Step]:
    own = problem.trainer.learned
    initialiser = None if own is None else own.initialiser
    learned = train_variant(problem, choice.variant, initialiser, 0)
    name, start = learned_starts(problem, learned)[-1]
    return trace(
        problem, learned_method(choice.name, name, start, learned), options.max_steps, _FLOOR
    )


def verdict(found: Sequence[Quality], steps: int) -> str:
    """Whether the choice of edges moves the distance after K evaluations more than the draw does.

    Both spreads are standard deviations of log10(distance): within a choice over its draws, and of
    the choices' means, from which the part that draws alone would cause is taken away.
    """
    graph = [q for q in found if q.choice.drawn]
    logs = [[math.log10(max(d, 1e-300)) for d in q.distances(steps)] for q in graph]
    draws = len(logs[0])
    if draws < 2:
        return "one draw per choice: whether the kept edges matter cannot be told"
    within = math.sqrt(statistics.fmean(statistics.variance(values) for values in logs))
    means = [statistics.fmean(values) for values in logs]
    between = math.sqrt(max(statistics.variance(means) - within**2 / draws, 0.0))
    matters = "matter" if between > within else "do not matter"
    return (
        f"log10 of the distance after {steps} evaluations spreads by {within:.3f} over draws and "
        f"by {between:.3f} over {len(graph)} choices of edges: the kept edges {matters} for the "
        "quality of this solver"
    )


def _rows(found: Sequence[Quality]) -> Iterator[dict[str, Any]]:
    for quality in found:
        for seed, steps in enumerate(quality.draws):
            for step in steps:
                yield {
                    "edges": quality.choice.name,
                    "method": quality.choice.method,
                    "keep": quality.choice.keep,
                    "kept_entries": quality.kept,
                    "seconds_choosing": quality.seconds,
                    "seed": seed,
                    "evaluations": step.evaluations,
                    "distance": step.distance,
                    "residual": step.residual,
                    "metric": step.metric,
                }


def _table(found: Sequence[Quality], goal: Goal, steps: int) -> Table:
    table = Table(title=f"kept edges and the error estimator, {len(found[-1].draws)} draws")
    half = (steps + 1) // 2
    names = ("edges", "kept", "ms", f"distance at {half}", f"at {steps}", f"to {goal.name}")
    for name in names:
        table.add_column(name, justify="left" if name == "edges" else "right")
    for quality in found:
        mean = statistics.fmean(quality.evaluations(goal))
        table.add_row(
            quality.choice.name,
            f"{quality.kept:.2f}",
            f"{1e3 * quality.seconds:.1f}",
            _spread(quality.distances(half)),
            _spread(quality.distances(steps)),
            f"{mean:.1f}" if math.isfinite(mean) else "-",
        )
    return table


def _spread(values: list[float]) -> str:
    """Mean, and standard deviation as a share of it where there are several."""
    mean = statistics.fmean(values)
    spread = f" ±{statistics.stdev(values) / mean:.0%}" if len(values) > 1 and mean else ""
    return f"{mean:.1e}{spread}"


def _speed_table(speeds: Sequence[Speed]) -> Table:
    table = Table(title="CPU milliseconds of choosing edges, synthetic-products, keep = 0.3")
    table.add_column("entries", justify="right")
    for speed in speeds:
        table.add_column(speed.method, justify="right")
    for index, entries in enumerate(speeds[0].entries):
        table.add_row(f"{entries:,}", *(f"{1e3 * s.seconds[index]:.1f}" for s in speeds))
    return table


def _settings(
    problem: Problem, options: SparsifierOptions, speeds: Sequence[Speed]
) -> dict[str, Any]:
    config: RunConfig = problem.trainer.config
    return {
        "run": str(options.run),
        "dataset": config.dataset,
        "ranks": problem.comm.world_size,
        "threads": torch.get_num_threads(),
        "device": problem.comm.device.type,
        "seeds": options.seeds,
        "residual_of_target": problem.target_residual,
        "exponents": {speed.method: round(speed.exponent, 3) for speed in speeds},
    }
