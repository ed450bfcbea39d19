"""Solvers on a trained run: how far each is from the fixed point after every evaluation, and when.

Baselines: Anderson (M = 5) and Picard, both from zero. b(X) is computed once for all of them and is
not part of any time; making the starting point is. See ``tracing`` for what a method has after k
evaluations, ``problem`` for Z*, ``variants`` for how variants of the learned solver are trained.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.goals import Goal, distance_goal, metric_goal, short
from distributed_ignn.lab.benchmarks.interleaving import Figure, Report, compare, interleave
from distributed_ignn.lab.benchmarks.pareto import draw_pareto
from distributed_ignn.lab.benchmarks.peers import torchdeq_drives
from distributed_ignn.lab.benchmarks.problem import Problem, load_problem
from distributed_ignn.lab.benchmarks.solver_tables import tabulate
from distributed_ignn.lab.benchmarks.study import Study, Tell, tell_nobody
from distributed_ignn.lab.benchmarks.tracing import (
    Method,
    Start,
    Step,
    drive_solver,
    time_steps,
    trace,
)
from distributed_ignn.lab.benchmarks.variants import all_variants, ensure_thinned, train_variant
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.broyden import Broyden
from distributed_ignn.solvers.initialiser import Initialiser
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.solvers.solve import solve
from distributed_ignn.training.learned_solver import Guess, LearnedSolver

ANDERSON, PICARD = "anderson 5, zero", "picard, zero"
ZERO, AT_ZERO, INITIALISER = "zero", "f(0)", "initialiser"
MEMORIES = (3, 5, 8)


@dataclass(frozen=True, slots=True)
class SolverOptions:
    """What is measured.

    Args:
        run: output folder of a training run.
        rounds: interleaved rounds; the median time counts.
        distances: relative distances to Z* to reach.
        max_steps: evaluations allowed.
        solver_steps: gradient steps of a variant's network; None leaves the variants out.
        cpu_time: whether seconds are those of the processor, which others who use the machine do
            not lengthen.
        tell: told what has been finished.
    """

    run: Path
    rounds: int = 15
    distances: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    max_steps: int = 100
    solver_steps: int | None = None
    cpu_time: bool = False
    tell: Tell = tell_nobody


@dataclass(slots=True)
class Contest:
    """Methods by label, and what is to be said about them."""

    methods: dict[str, Method] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, method: Method) -> None:
        self.methods[method.label] = method


def run(options: SolverOptions, comm: Communicator) -> Study:
    """Measure on all ranks of the job; every rank calls it.

    Raises:
        UserError: see ``load_run``; or processor time is asked for where it is not what a solve
            takes.
    """
    if options.cpu_time and (comm.world_size > 1 or comm.device.type != "cpu"):
        raise UserError(
            f"--cpu-time: {comm.world_size} ranks on {comm.device.type} wait for each other or for "
            "the device, which processor time does not show; start one process with --device cpu, "
            "or leave it out"
        )
    problem = load_problem(options.run, comm)
    contest = enlist(problem, options.distances, options.solver_steps, options.tell)
    measured = measure(problem, contest.methods, options)
    goals = (*map(distance_goal, options.distances), metric_goal(problem.metric))
    figures = [figure for goal in goals for figure in _figures(goal, measured)]
    report = Report("solver", _settings(problem, options), tuple(figures))
    rows = tuple(_rows(contest.methods, measured))
    tables = tabulate(measured, goals, ANDERSON, PICARD)
    title = f"{problem.trainer.config.dataset}, {problem.trainer.objective.metric_name}"
    return Study(
        report,
        rows,
        tables,
        (*contest.notes, *agreements(problem, contest.methods)),
        lambda: draw_pareto(contest.methods, measured, problem.metric, title),
    )


def enlist(
    problem: Problem,
    distances: Sequence[float],
    solver_steps: int | None,
    tell: Tell = tell_nobody,
) -> Contest:
    """All methods that the run allows, variants included if they are to be trained.

    Args:
        problem: of the run.
        distances: that are to be reached.
        solver_steps: gradient steps of a variant's network; None leaves variants out.
        tell: told what has been finished.
    """
    contest = Contest()
    learned = problem.trainer.learned
    own = learned if learned is not None and learned.ready else None
    starts: dict[str, Start] = {ZERO: torch.zeros_like}
    if own is None:
        contest.notes.append("the run has no trained solver: nothing starts from an initialiser")
    elif own.guess is not None:
        starts[INITIALISER] = _guess(problem, own.guess)
    for name, start in starts.items():
        _enlist_classical(contest, name, start, problem.comm)
    if own is not None:
        for name, start in learned_starts(problem, own):
            for label, tolerance in _aims(problem, distances):
                contest.add(learned_method(label, name, start, own, tolerance))
    if solver_steps is not None:
        initialisers = [None] if own is None or own.initialiser is None else [None, own.initialiser]
        for initialiser in initialisers:
            _enlist_variants(contest, problem, initialiser, solver_steps, tell)
    return contest


def _aims(problem: Problem, distances: Sequence[float]) -> list[tuple[str, float]]:
    """The tolerances that a learned solver is told: the run's, and the distances below it."""
    own = problem.trainer.config.forward.tolerance
    below = [(f"learned to {short(d)}", d) for d in distances if d < own]
    return [("learned", own), *below]


def learned_starts(problem: Problem, learned: LearnedSolver) -> list[tuple[str, Start]]:
    """f(0), which costs no evaluation, and the initialiser's point."""
    found: list[tuple[str, Start]] = [(AT_ZERO, problem.cell().form.activate)]
    if learned.guess is not None:
        found.append((INITIALISER, _guess(problem, learned.guess)))
    return found


def _guess(problem: Problem, guess: Guess) -> Start:
    def start(injection: Tensor) -> Tensor:
        cell = problem.cell()
        return guess(cell, injection, cell.form.activate)

    return start


def _enlist_classical(contest: Contest, name: str, start: Start, comm: Communicator) -> None:
    contest.add(Method("picard", name, start, drive_solver(Picard()), Picard()))
    for memory in MEMORIES:
        solver = Anderson(memory)
        contest.add(Method(f"anderson {memory}", name, start, drive_solver(solver), solver))
    contest.add(Method("broyden", name, start, drive_solver(Broyden())))
    drives, note = torchdeq_drives(comm)
    for peer, drive in drives.items():
        contest.add(Method(peer, name, start, drive))
    if note and note not in contest.notes:
        contest.notes.append(note)


def _enlist_variants(
    contest: Contest, problem: Problem, initialiser: Initialiser | None, steps: int, tell: Tell
) -> None:
    """Train every variant from one starting point; networks with a graph layer read A_s."""
    ensure_thinned(problem)
    for variant in all_variants():
        started = time.perf_counter()
        learned = train_variant(problem, variant, initialiser, steps)
        seconds = time.perf_counter() - started
        name, start = learned_starts(problem, learned)[-1]
        method = learned_method(variant.name, name, start, learned)
        contest.add(method)
        work = f"{steps} network steps" if variant.has_network else "fitted"
        contest.notes.append(f"{method.label}: {work} in {seconds:.1f} s")
        tell(contest.notes[-1])


def learned_method(
    name: str, start_name: str, start: Start, learned: LearnedSolver, tolerance: float = 0.0
) -> Method:
    """A learned solver as a method, for solves to ``tolerance``; 0 estimates every step."""
    solver = learned.solver(tolerance)
    return Method(name, start_name, start, drive_solver(solver), solver)


@torch.no_grad()
def agreements(problem: Problem, methods: Mapping[str, Method]) -> list[str]:
    """Per method, the share of nodes that it predicts as Z* does, at the run's own tolerance."""
    section = problem.trainer.config.forward
    lines = []
    for name, method in methods.items():
        if method.solver is None:
            continue
        solution = solve(
            problem.cell(),
            method.start(problem.injection),
            method.solver,
            problem.comm.sum,
            tolerance=section.tolerance,
            max_steps=section.max_steps,
        )
        share = problem.agreement(solution.image)
        lines.append(
            f"{name}: residual {solution.residual:.0e} after {solution.steps} evaluations, "
            f"{share:.2%} of the predictions are those of Z*"
        )
    return lines


def measure(
    problem: Problem, methods: dict[str, Method], options: SolverOptions
) -> dict[str, list[Step]]:
    """Steps of every method, timed, down to a tenth of the smallest distance asked for."""
    floor = min(options.distances) / 10
    found = {n: trace(problem, m, options.max_steps, floor) for n, m in methods.items()}
    options.tell(f"{len(methods)} methods measured; timing them, {options.rounds} rounds")
    lengths = {name: len(steps) for name, steps in found.items()}
    now = time.process_time if options.cpu_time else time.perf_counter
    times = time_steps(problem, methods, lengths, options.rounds, now)
    return {
        name: [replace(step, seconds=s) for step, s in zip(steps, times[name], strict=True)]
        for name, steps in found.items()
    }


def _figures(goal: Goal, measured: dict[str, list[Step]]) -> list[Figure]:
    steps = {name: goal.evaluations(found) for name, found in measured.items()}
    seconds = {name: goal.seconds(found) for name, found in measured.items()}
    return [
        figure
        for baseline in (ANDERSON, PICARD)
        for unit, values in (("evaluations", steps), ("seconds", seconds))
        for figure in compare(values, unit, baseline, goal.name)
    ]


def _rows(methods: dict[str, Method], measured: dict[str, list[Step]]) -> list[dict[str, Any]]:
    """One row per method and step."""
    return [
        {
            "method": methods[label].name,
            "start": methods[label].start_name,
            "evaluations": step.evaluations,
            "seconds": step.seconds,
            "distance": step.distance,
            "residual": step.residual,
            "metric": step.metric,
        }
        for label, steps in measured.items()
        for step in steps
    ]


@torch.no_grad()
def _settings(problem: Problem, options: SolverOptions) -> dict[str, Any]:
    trainer, comm = problem.trainer, problem.comm
    seconds = interleave({"b": trainer.implicit.injection}, options.rounds, comm)["b"]
    return {
        "run": str(options.run),
        "dataset": trainer.config.dataset,
        "ranks": comm.world_size,
        "threads": torch.get_num_threads(),
        "device": comm.device.type,
        "dtype": str(problem.injection.dtype).removeprefix("torch."),
        "spectral_radius": round(trainer.implicit.spectral_radius(), 4),
        "residual_of_target": problem.target_residual,
        "metric": trainer.objective.metric_name,
        "metric_at_target": problem.metric,
        "seconds_injection": seconds,
        "solver_steps_of_variants": options.solver_steps,
        "clock": "processor" if options.cpu_time else "wall",
    }
