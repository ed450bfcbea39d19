"""Settings of the learned solver that make no difference to a run are refused, not passed over.

Asked of what a user writes for training; the settings of a finished run are read as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distributed_ignn.config import choices
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.section import NoEffect
from distributed_ignn.config.sections import RunConfig
from distributed_ignn.config.solvers import NeuralSolverConfig, ScheduleConfig
from distributed_ignn.errors import NoEffectError

_KINDS = Choice(choices.SOLVER_KINDS)
_PARTS = ("initialiser", "estimator", "network", "sparsifier")
_NETWORK_STEPS = ("warmup_solver_steps", "solver_steps")


def refuse_idle(run: RunConfig, flags: Mapping[str, Any]) -> RunConfig:
    """The run itself, if every setting of its solver that is not the default is read.

    A run is not asked whose command line takes the learned solver, or a part of it, away: that is
    another run's settings with less.

    Args:
        run: the checked settings.
        flags: sections and keys that the command line or a program has set.

    Raises:
        NoEffectError: naming the first that is not, and how many more there are.
    """
    given = flags.get("solver", {})
    less = any(given.get(key) == "none" for key in _PARTS)
    idle = list(_idle(run)) if run.learns_forward and not less else []
    if not idle:
        return run
    more = f" (and {len(idle) - 1} more)" if idle[1:] else ""
    raise NoEffectError(f"{idle[0]}; drop it{more}", idle[0].setting)


def _idle(run: RunConfig) -> Iterator[NoEffect]:
    solver = run.solver
    read = _KINDS.entry(solver.kind).reads(solver)
    for key, field in NeuralSolverConfig.model_fields.items():
        if key not in read and getattr(solver, key) != field.default:
            yield NoEffect(f"solver.{key}", getattr(solver, key), _because(solver))
    if "lr" in read:
        return
    for key in _NETWORK_STEPS:
        if getattr(run.schedule, key) != ScheduleConfig.model_fields[key].default:
            value = getattr(run.schedule, key)
            yield NoEffect(f"schedule.{key}", value, _because(solver))


def _because(solver: NeuralSolverConfig) -> str:
    """The settings that decide what is read."""
    parts = {"kind": solver.kind}
    if solver.kind == "estimator":
        parts |= {"estimator": solver.estimator, "network": solver.network}
    return ", ".join(f"solver.{key} = {value}" for key, value in parts.items())
