"""Settings that make no difference to a run are refused, not passed over.

Asked of what a user writes for training; the settings of a finished run are read as they are. Rules
that need no more than the settings themselves stand beside these (``sections``); here are those for
which it matters who wrote what: a command line may take the effect away from what a file says.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from distributed_ignn.config import choices
from distributed_ignn.config.choices import Choice
from distributed_ignn.config.explicit import KINDS, is_explicit
from distributed_ignn.config.section import NoEffect, Section
from distributed_ignn.config.sections import RunConfig
from distributed_ignn.errors import NoEffectError

_SOLVERS = Choice(choices.SOLVER_KINDS)
_CELLS = Choice(choices.CELLS)
_PARTITIONERS = Choice(choices.PARTITIONERS)
_PARTS = ("initialiser", "estimator", "network", "sparsifier", "graph_layer")
_OF_A_SOLVER = ("solver.kind", *(f"solver.{part}" for part in _PARTS), "solver.lambda1")
_NETWORK_STEPS = ("warmup_solver_steps", "solver_steps")
_GENERATED = {
    "chains": "chains",
    "synthetic": "synthetic-products",
    "heterophilous": "heterophilous",
}
"""Who reads a section of ``data``."""

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True, slots=True)
class _Idle:
    """A setting without effect.

    Args:
        told: what is said of it.
        decided_by: the settings that take its effect away.
    """

    told: NoEffect
    decided_by: tuple[str, ...]


def refuse_idle(run: RunConfig, said: Collection[str], others: Iterable[RunConfig] = ()) -> None:
    """See to it that every setting which is not the default is read.

    What a file says may be without effect where the command line has decided so: that is another
    run's settings with something taken away. What the command line itself says may not.

    Args:
        run: the checked settings.
        said: dotted names of what the command line or a program has set.
        others: runs with other settings that are trained besides; it is enough if one of them
            reads what ``run`` does not. They are asked for only where that makes a difference.

    Raises:
        NoEffectError: naming the first that is not, and how many more there are.
    """
    idle = _blamed(_idle(run), said)
    if idle:
        for other in others:
            passed_over = {each.told.setting for each in _idle(other)}
            idle = [
                told
                for told in idle
                if told.setting in passed_over
                or _value(other, told.setting) != _value(run, told.setting)
            ]
    _refuse(idle)


def refuse_unread(
    run: RunConfig, given: Mapping[str, Any], read: Collection[str], reader: str
) -> None:
    """As ``refuse_idle``, of a command that reads a few settings of a run and trains none.

    Args:
        run: the checked settings.
        given: values of what the command line sets, by dotted name.
        read: names of settings and sections that the command goes by.
        reader: what it does, for the message.

    Raises:
        NoEffectError: see ``refuse_idle``; what a file says of other things is passed over.
    """
    for name, value in given.items():
        if not _is_among(name, read):
            raise NoEffectError(f"{name} = {value} has no effect on {reader}; drop it", name)
    # nor is anything idle here because of what training would do
    idle = (
        each
        for each in _idle(run)
        if all(_is_among(name, read) for name in (each.told.setting, *each.decided_by))
    )
    _refuse(_blamed(idle, given))


def refuse_without_ray(run: RunConfig, said: Collection[str]) -> None:
    """Refuse what Ray alone reads, where no Ray is asked for.

    What a file says is left alone, for the ``config.yaml`` of every run says it.

    Args:
        run, said: see ``refuse_idle``.

    Raises:
        NoEffectError: naming the first such setting.
    """
    if run.workers is not None or run.gpus is not None:
        return
    for name in ("restarts", "restart_wait_seconds"):
        value = _value(run, name)
        if name in said and value != RunConfig.model_fields[name].default:
            raise NoEffectError(
                f"{name} = {value} has no effect without Ray, which workers or gpus ask for; drop "
                "it (torchrun goes by its own --max-restarts)",
                name,
            )


def _blamed(idle: Iterable[_Idle], said: Collection[str]) -> list[NoEffect]:
    """Those of them that the file has not lost to the command line, see ``refuse_idle``."""
    known = {*said}
    return [
        each.told
        for each in idle
        if each.told.setting in known or known.isdisjoint((*each.decided_by, "resume"))
    ]


def _refuse(idle: Sequence[NoEffect]) -> None:
    if idle:
        more = f" (and {len(idle) - 1} more)" if idle[1:] else ""
        raise NoEffectError(f"{idle[0]}; drop it{more}", idle[0].setting)


def _is_among(name: str, names: Collection[str]) -> bool:
    """Whether a setting is one of those, or in a section that is."""
    return any(name == each or name.startswith(f"{each}.") for each in names)


def _value(section: Section, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), section)


def deciders(run: RunConfig) -> frozenset[str]:
    """The settings that take the effect from others in this run."""
    return frozenset(name for each in _idle(run) for name in each.decided_by)


def without_idle(run: RunConfig) -> RunConfig:
    """The run with the defaults in place of settings without effect: its own file passes, too."""
    for each in list(_idle(run)):
        run = _reset(run, each.told.setting.split("."))
    return run


def _reset(section: SectionT, steps: Sequence[str]) -> SectionT:
    key, *below = steps
    if below:
        return section.model_copy(update={key: _reset(getattr(section, key), below)})
    return section.model_copy(update={key: type(section).model_fields[key].default})


def _idle(run: RunConfig) -> Iterator[_Idle]:
    yield from _of_generators(run)
    yield from _of_partition(run)
    yield from _of_consistency(run)
    if run.train.on_bad_numbers == "stop":
        because, by = "train.on_bad_numbers = stop", ("train.on_bad_numbers",)
        yield from _changed("train", run.train, ("max_bad_steps",), because, by)
    if run.device == "cuda":
        yield from _changed("train", run.train, ("keep_freed",), "device = cuda", ("device",))
    if not is_explicit(run.model.kind):
        yield from _of_solver(run)
        yield from _of_map(run)
    else:
        yield from _of_kind(run)


def _changed(
    name: str, section: Section, keys: tuple[str, ...], because: str, by: tuple[str, ...]
) -> Iterator[_Idle]:
    """Those keys of a section that are not as by default."""
    for key in keys:
        value = getattr(section, key)
        if value != type(section).model_fields[key].default:
            yield _Idle(NoEffect(f"{name}.{key}", value, because), by)


def _of_solver(run: RunConfig) -> Iterator[_Idle]:
    if not run.learns_forward:
        because, by = f"forward.method = {run.forward.method}", ("forward.method",)
        for name in ("solver", "schedule"):
            section = getattr(run, name)
            yield from _changed(name, section, tuple(type(section).model_fields), because, by)
        yield from _changed("partition", run.partition, ("clusters",), because, by)
        return
    solver = run.solver
    read, because = _SOLVERS.entry(solver.kind).reads(solver), _parts(run)
    unread = tuple(key for key in type(solver).model_fields if key not in read)
    yield from _changed("solver", solver, unread, because, _OF_A_SOLVER)
    if "lr" not in read:
        yield from _changed("schedule", run.schedule, _NETWORK_STEPS, because, _OF_A_SOLVER)
    if "estimator" not in read or solver.estimator == "none":
        yield from _changed("partition", run.partition, ("clusters",), because, _OF_A_SOLVER)


def _parts(run: RunConfig) -> str:
    """The settings that decide what of a solver is read."""
    solver = run.solver
    told = {"kind": solver.kind}
    if solver.kind == "estimator":
        told |= {"estimator": solver.estimator, "network": solver.network}
    else:
        absent = {part: getattr(solver, part) for part in ("initialiser", "graph_layer")}
        told |= {part: value for part, value in absent.items() if value in ("none", False)}
    return ", ".join(f"solver.{key} = {value}" for key, value in told.items())


def _of_map(run: RunConfig) -> Iterator[_Idle]:
    model = run.model
    if model.constraint == "none":
        yield from _changed(
            "model", model, ("kappa",), "model.constraint = none", ("model.constraint",)
        )
    unread = tuple(sorted(_CELLS.entry(model.cell).unread))
    yield from _changed("model", model, unread, f"model.cell = {model.cell}", ("model.cell",))


def _of_kind(run: RunConfig) -> Iterator[_Idle]:
    """What an explicit model does not read; ``model.hidden`` may be the width of an embedding."""
    kind, layers = KINDS.entry(run.model.kind), run.explicit.layers
    named, by = f"model.kind = {run.model.kind}", ("model.kind",)
    if kind.drops_from is None:
        yield from _changed("model", run.model, ("dropout",), named, by)
    elif layers < kind.drops_from:
        because = f"{named}, explicit.layers = {layers}"
        yield from _changed("model", run.model, ("dropout",), because, (*by, "explicit.layers"))
    if layers == 1:
        because, by_layers = "explicit.layers = 1", ("explicit.layers",)
        yield from _changed("explicit", run.explicit, ("jump",), because, by_layers)
    # "ignore" is what such a kind does; and METIS may read weights all the same
    if run.data.edge_weights == "use" and not (kind.reads_weights or run.partition.edge_weights):
        because = f"{named}, for which every edge counts 1 (set ignore, or model.kind gcn)"
        yield _Idle(NoEffect("data.edge_weights", "use", because), by)


def _of_consistency(run: RunConfig) -> Iterator[_Idle]:
    if run.train.consistency == 0.0:
        keys = "consistency_samples", "consistency_temperature", "consistency_warmup"
        by = ("train.consistency",)
        yield from _changed("train", run.train, keys, "train.consistency = 0", by)


def _of_generators(run: RunConfig) -> Iterator[_Idle]:
    for name, dataset in _GENERATED.items():
        if run.dataset == dataset:
            continue
        section: Section = getattr(run.data, name)
        keys, because = tuple(type(section).model_fields), f"dataset = {run.dataset}"
        yield from _changed(f"data.{name}", section, keys, because, ("dataset",))


def _of_partition(run: RunConfig) -> Iterator[_Idle]:
    asked = run.partition
    if asked.clusters == 0:  # those are METIS's, whoever divides the graph among ranks
        read = _PARTITIONERS.entry(asked.method).reads
        keys = tuple(k for k in ("provider", "objective", "imbalance", "seed") if k not in read)
        because = f"partition.method = {asked.method}"
        yield from _changed("partition", asked, keys, because, ("partition.method",))
