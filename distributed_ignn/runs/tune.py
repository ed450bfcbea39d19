"""Fit the learned solver of a finished run again, without labels.

The solver is fitted to the fixed point of the weights that the run keeps; nothing of that reads a
label. The backward solve's estimator, which needs the loss, stays as it is.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.config import RunConfig
from distributed_ignn.config.explicit import IMPLICIT
from distributed_ignn.errors import UserError
from distributed_ignn.runs.kept_solver import load_solver, save_solver
from distributed_ignn.runs.predict import load_run
from distributed_ignn.solvers.anderson import Anderson
from distributed_ignn.solvers.blocks import square_sum
from distributed_ignn.solvers.solve import solve
from distributed_ignn.training.trainer import Trainer

_ROUNDS = 3  # solves of which the median time counts
_EVALUATIONS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """What the user asked for.

    Args:
        run: output folder of a training run.
        steps: gradient steps of the network that corrects the mixing weights, if there is one.
    """

    run: Path
    steps: int = 0


@dataclass(frozen=True, slots=True)
class SolverFigures:
    """How a solve from scratch goes.

    Args:
        evaluations: of the map, to the run's own tolerance.
        converged: whether it was reached.
        distances: ||Z - Z*|| / ||Z*|| after ``_EVALUATIONS``.
        seconds: median time of a solve to the tolerance.
    """

    evaluations: int
    converged: bool
    distances: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class TuneResult:
    """The solver before and after, and the seconds that the fit took."""

    before: SolverFigures
    after: SolverFigures
    seconds: float


def tune(options: TuneOptions, comm: Communicator) -> TuneResult:
    """Fit, write RUN/solver.safetensors and print what it changed; every rank calls it.

    Raises:
        UserError: see ``load_run``; the run has no learned solver, or no network for ``steps``.
    """
    trainer = load_run(options.run, comm, kept_solver=False)
    learned = trainer.learned
    if learned is None:
        raise UserError(
            f"{options.run} was trained with {_how(trainer.config)} and has no learned solver; "
            "train one with --forward.method neural"
        )
    if options.steps and not learned.has_network:
        raise UserError(
            f"--steps {options.steps} is for the network of the solver, and {options.run} has "
            "solver.network = none; drop it"
        )
    note = _load_kept(options.run, trainer)
    trainer.model.eval()
    target = _fixed_point(trainer)
    before = _measure(trainer, target)
    trainer.planner.forget()
    _, seconds = trainer.tune_solver(options.steps)
    result = TuneResult(before, _measure(trainer, target), seconds)
    path = save_solver(options.run, learned, trainer.best.epoch, comm)
    if comm.is_main:
        _show(result, trainer.config.forward.tolerance, path, note)
    return result


def _load_kept(run: Path, trainer: Trainer) -> str | None:
    """Load what the run keeps to compare with it; what is wrong with it, if it cannot be used."""
    if trainer.learned is None:
        raise ValueError("no learned solver")
    try:
        load_solver(run, trainer.learned, trainer.best.epoch, trainer.comm)
    except UserError as error:
        return str(error).partition(";")[0]
    return None


def _how(config: RunConfig) -> str:
    """Why a run has no learned solver."""
    kind, method = config.model.kind, config.forward.method
    return f"model.kind = {kind}" if kind != IMPLICIT else f"forward.method = {method}"


@torch.no_grad()
def _fixed_point(trainer: Trainer) -> Tensor:
    """Z* [O, D] as Anderson finds it, well below the tolerances that are compared."""
    injection = trainer.implicit.injection()
    cell = trainer.implicit.layer.cell(injection, trainer.implicit.channel_weights())
    solution = solve(
        cell,
        cell.form.activate(injection),
        Anderson(),
        trainer.comm.sum,
        tolerance=10.0 * torch.finfo(injection.dtype).eps,
        max_steps=trainer.config.solver.target_max_steps,
    )
    return solution.image


@torch.no_grad()
def _measure(trainer: Trainer, target: Tensor) -> SolverFigures:
    """Solves that start from nothing kept."""

    def solved(tolerance: float | None = None, steps: int | None = None) -> tuple[int, bool]:
        trainer.planner.forget()
        found = trainer.model.solve(trainer.planner.evaluate(tolerance, steps))
        difference = found.image - target
        squares = torch.stack([square_sum(difference), square_sum(target)])
        error, norm = trainer.comm.sum(squares.cpu()).tolist()
        distances.append((error / max(norm, 1e-300)) ** 0.5)
        return found.steps, found.converged

    distances: list[float] = []
    for steps in _EVALUATIONS:
        solved(0.0, steps)
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        evaluations, converged = solved()
        seconds.append(time.perf_counter() - started)
    trainer.planner.forget()
    first = tuple(distances[: len(_EVALUATIONS)])
    return SolverFigures(evaluations, converged, first, statistics.median(seconds))


def _show(result: TuneResult, tolerance: float, path: Path, note: str | None) -> None:
    columns = (result.before, result.after)
    table = Table("", "before", "after", title="learned solver, fitted again without labels")
    table.add_row(
        f"evaluations to residual {tolerance:g}",
        *(str(c.evaluations) if c.converged else f"over {c.evaluations}" for c in columns),
    )
    table.add_row("seconds of that solve", *(f"{c.seconds:.4f}" for c in columns))
    for place, count in enumerate(_EVALUATIONS):
        plural = "" if count == 1 else "s"
        label = f"relative distance after {count} evaluation{plural}"
        table.add_row(label, *(f"{c.distances[place]:.1e}" for c in columns))
    console = Console(highlight=False)
    if note is not None:
        console.print(f"[yellow]{note}; before: the solver of the checkpoint[/yellow]")
    console.print(table)
    console.print(f"fitted in {result.seconds:.2f} s; written: {path}", soft_wrap=True)
