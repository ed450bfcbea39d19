"""Methods on the frozen map of a trained run: how far each is from the fixed point, step by step.

All of it in float64, whatever the run was trained in: rounding to float32 would end the curves
above the smallest distance reported. What a method has after k evaluations: see
``lab/benchmarks/tracing.py``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from matplotlib.axes import Axes

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.lab.benchmarks.goals import distance_goal
from distributed_ignn.lab.benchmarks.problem import Problem, pose
from distributed_ignn.lab.benchmarks.solver import ZERO, learned_method, learned_starts
from distributed_ignn.lab.benchmarks.tracing import Method, Step, drive_solver, trace
from distributed_ignn.lab.benchmarks.variants import Variant
from distributed_ignn.lab.studies.outcome import Request
from distributed_ignn.lab.studies.study_runs import train_run, with_settings
from distributed_ignn.plots import (
    GREY,
    Picture,
    band_note,
    legend_below,
    line_style,
    log_ticks,
    mean_line,
    set_title,
    style,
    whole_ticks,
)
from distributed_ignn.runs.predict import load_run
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.picard import Picard
from distributed_ignn.training.learned_solver import LearnedSolver
from distributed_ignn.training.trainer import Trainer

DISTANCE = 1e-6
MAX_STEPS = 300
GOALS = tuple(map(distance_goal, (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, DISTANCE)))
CAPTION = "mean evaluations of the map to each relative distance from the fixed point"
PICARD, ANDERSON = "picard, zero", "anderson, zero"
"""Labels of the baselines."""

_TARGET_GOOD_ENOUGH = 1e-10  # far enough below DISTANCE
_HEAD = 0.065  # of the height of the curves, for a line of text
_LABELS = {"distance": "||Z - Z*|| / ||Z*||", "residual": "||f(Z) - Z|| / ||f(Z)||"}


def freeze(request: Request, seed: int, comm: Communicator) -> Problem:
    """Train with the learned solver, or take the finished run, and find its fixed point.

    Every rank calls it. The model, its initialiser and its solver are those of the epoch that
    validation chose.

    Raises:
        UserError: the fixed point cannot be found to the precision that the curves need, or see
            ``train_run``.
    """
    changes = {"seed": seed, "forward.method": "neural"}
    run = train_run(request.config, request.out, f"neural-seed{seed}", changes, comm)
    problem = pose(_in_double(load_run(run.config.output, comm)))
    if not problem.target_residual <= _TARGET_GOOD_ENOUGH:
        raise UserError(
            f"the fixed point of {run.config.output} was found only to a relative residual of "
            f"{problem.target_residual:.0e}; lower model.kappa = {run.config.model.kappa}"
        )
    return problem


def _in_double(trainer: Trainer) -> Trainer:
    """The same weights, of model and learned solver, in float64."""
    config = with_settings(trainer.config, {"train.dtype": "float64"})
    exact = Trainer(config, trainer.shard, trainer.comm)
    exact.model.load_state_dict(trainer.model.state_dict())
    if trainer.solver_trainer and exact.solver_trainer:
        exact.solver_trainer.load_state(trainer.solver_trainer.state())
    return exact


def own_solver(problem: Problem) -> LearnedSolver:
    """The learned solver of the run."""
    learned = problem.trainer.learned
    if learned is None or not learned.ready:
        raise ValueError("a run with forward.method neural keeps a trained solver")
    return learned


def classical(problem: Problem) -> list[Method]:
    """Picard and Anderson from zero, and Anderson from the run's initialiser if there is one.

    Anderson is as the run's settings describe it.
    """
    section = problem.trainer.config.forward
    anderson = Anderson(section.memory, section.beta, section.regularization)
    name, start = learned_starts(problem, own_solver(problem))[-1]
    return [
        Method("picard", ZERO, torch.zeros_like, drive_solver(Picard())),
        Method("anderson", ZERO, torch.zeros_like, drive_solver(anderson)),
        Method("anderson", name, start, drive_solver(anderson)),
    ]


def as_method(problem: Problem, name: str, learned: LearnedSolver) -> Method:
    """A learned solver from its own starting point: the initialiser's, or f(0) without one."""
    start_name, start = learned_starts(problem, learned)[-1]
    return learned_method(name, start_name, start, learned)


def trained_steps(config: RunConfig, variant: Variant | None = None) -> int:
    """K, the steps that a solver is fitted for; with a network those that it is trained for."""
    section = config.solver.model_copy(update=dict(variant.changes) if variant else {})
    gradients = section.network != "none" or section.kind == "paper"
    return section.steps if gradients else config.estimator_steps


def follow(problem: Problem, seed: int, methods: Iterable[Method]) -> list[dict[str, Any]]:
    """Rows of all steps of all methods, down to a relative distance of DISTANCE."""
    return [
        {"seed": seed, "method": method.label, **_row(step)}
        for method in methods
        for step in trace(problem, method, MAX_STEPS, DISTANCE)
    ]


def _row(step: Step) -> dict[str, Any]:
    row = asdict(step)
    row.pop("seconds")  # not timed
    return row


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Per method, evaluations to each distance: the mean over seeds, infinite if one fails.

    Args:
        rows: of ``follow``.
    """
    found: dict[str, list[list[Step]]] = {}
    for (method, _), steps in _curves(rows).items():
        found.setdefault(method, []).append(steps)
    return {
        method: {
            goal.name: statistics.fmean(goal.evaluations(steps) for steps in seeds)
            for goal in GOALS
        }
        for method, seeds in found.items()
    }


@style()
def draw(
    rows: Sequence[Mapping[str, Any]], title: str, horizons: Mapping[str, int] | None = None
) -> Picture:
    """Distance and residual over evaluations on log scales, a line per method.

    Of several seeds it is the geometric mean, in which a seed that has arrived stays where it is.

    Args:
        rows: of ``follow``.
        title: of the picture.
        horizons: K by the name that the plot gives it; each is a vertical line.
    """
    picture, panels = _two_panels(title, rows)
    for axes, (quantity, meaning) in zip(panels, _LABELS.items(), strict=True):
        _draw_curves(axes, rows, quantity)
        axes.set_ylabel(f"relative {quantity} {meaning}")
        _frame(axes, [rows], quantity, horizons or {})
    legend_below(picture)
    return picture


@style()
def draw_side_by_side(
    panels: Mapping[str, Sequence[Mapping[str, Any]]],
    quantity: str,
    title: str,
    horizons: Mapping[str, int],
) -> Picture:
    """One quantity over evaluations in two panels with the same axes.

    Args:
        panels: rows of ``follow`` by the panel's title; the same methods in the same order.
        quantity: ``distance`` or ``residual``.
        title: of the picture.
        horizons: see ``draw``.
    """
    picture, both = _two_panels(title, next(iter(panels.values())))
    for axes, (name, rows) in zip(both, panels.items(), strict=True):
        _draw_curves(axes, rows, quantity)
        axes.set_title(name)
        _frame(axes, list(panels.values()), quantity, horizons)
    both[0].set_ylabel(f"relative {quantity} {_LABELS[quantity]}")
    both[1].tick_params(labelleft=False)
    legend_below(picture)
    return picture


def _two_panels(title: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Picture, tuple[Axes, Axes]]:
    picture = Picture(10.0, 4.2)
    set_title(picture, title + band_note(len({row["seed"] for row in rows})))
    left, right = picture.subplots(1, 2)
    return picture, (left, right)


def _frame(
    axes: Axes,
    panels: Sequence[Sequence[Mapping[str, Any]]],
    quantity: str,
    horizons: Mapping[str, int],
) -> None:
    """Scales, and limits that show the methods that converge to their end; names of K inside.

    Picard may run out of the frame: twice as long as the others it would squeeze them.

    Args:
        panels: rows of all that have the same limits.
    """
    curves = [curve for rows in panels for curve in _curves(rows).items()]
    found = [steps for (method, _), steps in curves if method != PICARD]
    arrived = [steps for steps in found if steps[-1].distance <= DISTANCE] or found
    last = max(steps[-1].evaluations for steps in arrived)
    values = [getattr(step, quantity) for steps in arrived for step in steps]
    shown = [value for value in values if 0.0 < value < math.inf]
    axes.set_xlim(0.0, 1.02 * max(last, 1))
    inside = {k: steps for k, steps in horizons.items() if steps <= last}
    decades = math.log10(max(shown) / min(shown))
    head = 10.0 ** (_HEAD * decades * len(set(inside.values())))  # above where the curves begin
    axes.set_ylim(0.7 * min(shown), 1.5 * max(shown) * head)
    log_ticks(axes.yaxis)  # after its limits: matplotlib would look for some, up to what diverges
    axes.set_xlabel("evaluations of the map")
    whole_ticks(axes.xaxis)
    _mark_horizons(axes, inside)


def _mark_horizons(axes: Axes, horizons: Mapping[str, int]) -> None:
    """A vertical line for each K, with its name in a row of its own above the curves."""
    for row, steps in enumerate(sorted(set(horizons.values()))):
        top = 0.99 - 0.055 * row
        axes.axvline(steps, ymax=top, color=GREY, linestyle=":", linewidth=1.0)
        named = ", ".join(name for name, other in horizons.items() if other == steps)
        left = steps < 0.5 * axes.get_xlim()[1]
        axes.annotate(
            f"K = {steps}: {named}",
            (steps, top),
            xycoords=axes.get_xaxis_transform(),
            xytext=(4 if left else -4, 0),
            textcoords="offset points",
            ha="left" if left else "right",
            va="top",
            fontsize="small",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )


def _draw_curves(axes: Axes, rows: Sequence[Mapping[str, Any]], quantity: str) -> None:
    curves = _curves(rows)
    for place, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        seeds = [steps for (name, _), steps in curves.items() if name == method]
        mean_line(
            axes,
            [[(step.evaluations, getattr(step, quantity)) for step in steps] for steps in seeds],
            logarithmic=True,
            ends_stay=True,
            **line_style(place),
            label=method,
        )


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[Step]]:
    """Steps by method and seed."""
    curves: dict[tuple[str, int], list[Step]] = {}
    for row in rows:
        step = Step(row["evaluations"], row["distance"], row["residual"], row["metric"])
        curves.setdefault((row["method"], row["seed"]), []).append(step)
    return curves
