"""Settings as a Python program gives them: long or short names, nested or not.

``{"model.hidden": 64}``, ``{"model": {"hidden": 64}}`` and ``hidden=64`` mean the same. A short
name is that of a key in ``model`` or ``train``, if there is one, and else has to be found in one
section only.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from distributed_ignn.config.dataset import FILE_SUFFIXES, IN_MEMORY, OWN_FILE, dataset_names
from distributed_ignn.config.idle import refuse_idle, without_idle
from distributed_ignn.config.parse import resolve_read_run, validate_run
from distributed_ignn.config.sections import RunConfig
from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import JobError, UserError

_FIRST = ("model", "train")
_FROM_DATA = ("dataset", "data.path")
_COMMAND = r"\b(?:ignn|pip|python|tensorboard|torchrun) [^;,)]*"  # its flags are to be typed
_FLAG = r"--([a-z][a-z.-]*[a-z])(?: (?!(?:and|decides|goes|is|of|on|or|takes|to)\b)([\w./-]+))?"
_WORDS = re.compile(f"{_COMMAND}|{_FLAG}")


def run_from_settings(
    dataset: str, given: Mapping[str, Any], config: Path | None = None
) -> RunConfig:
    """The run that settings from Python ask for.

    Args:
        dataset: what it trains on: a name, or the path of a file or folder.
        given: settings, see above; they win over those of ``config``.
        config: YAML file; by default the one that comes with the dataset, if any.

    Raises:
        UserError: an unknown or ambiguous name, a wrong value, or see ``parse_args``.
    """
    values = _put({}, {**spelled_out(given), **_naming(dataset)})
    return resolve_read_run(values, config)


def _naming(dataset: str) -> dict[str, str]:
    """The settings that name what is trained on.

    Those of a path that has another ending than ``dataset`` takes, or that is a folder of OGB's
    form, are two, as on the command line.
    """
    known = dataset in (*dataset_names(), IN_MEMORY) or dataset.endswith(FILE_SUFFIXES)
    if known or not Path(dataset).exists():
        return {"dataset": dataset}
    return {"dataset": OWN_FILE, "data.path": dataset}


def run_from(
    config: RunConfig | Mapping[str, Any] | str | Path, given: Mapping[str, Any]
) -> RunConfig:
    """The run that settings from Python ask for, whatever they start from.

    Args:
        config: a YAML file, the name of a dataset, path of a graph, settings with ``dataset``
            among them, or a complete run.
        given: settings, see above; they win over those of ``config``.

    Raises:
        UserError: see ``run_from_settings``; or no dataset is named.
        NoEffectError: see ``refuse_idle``.
    """
    flat = spelled_out(given)
    if isinstance(config, RunConfig):
        if flat:
            config = validate_run(_put(config.model_dump(exclude_unset=True), flat))
        refuse_idle(config, flat)
        return without_idle(config)
    if isinstance(config, Mapping):
        if "dataset" not in config:
            raise UserError("config has no dataset; name one, as in {'dataset': 'chains'}")
        own = {name: value for name, value in config.items() if name != "dataset"}
        return run_from_settings(str(config["dataset"]), {**spelled_out(own), **flat})
    name = os.fspath(config)
    if not name.endswith((".yaml", ".yml")):
        return run_from_settings(name, flat)
    values = _put({}, flat)
    return resolve_read_run(values, Path(name))


def _put(values: dict[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """``values``, with settings by their full names put into its sections."""
    for name, value in flat.items():
        *sections, key = name.split(".")
        level = values
        for section in sections:
            level = level.setdefault(section, {})
        level[key] = value
    return values


def spelled_out(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their full names, as in ``model.hidden``.

    Raises:
        UserError: an unknown or ambiguous name, a setting that is given twice, or one that the data
            decide.
    """
    found: dict[str, Any] = {}
    for name, value in _leaves(given, ""):
        if name in found:
            raise UserError(f"{name} is given twice; drop one of them")
        if name in _FROM_DATA:
            raise UserError(f"{name} = {value}: the data are an argument of their own; drop it")
        found[name] = value
    return found


def _leaves(given: Mapping[str, Any], section: str) -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        name = _full_name(str(key), section)
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value.item() if isinstance(value, np.generic) else value


def _full_name(key: str, section: str) -> str:
    word = section + key.replace("-", "_")
    places = _names()
    if word in places["."]:
        return word
    found = places.get(word, ())
    preferred = [name for name in found if name.partition(".")[0] in _FIRST]
    chosen = preferred or list(found)
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise UserError(
            f"{key!r} may be {' or '.join(chosen)}; write the whole name, as in "
            f"{{{chosen[0]!r}: ...}}"
        )
    raise UserError(
        f"unknown setting {section + key!r}{suggest(word, (*places, *places['.']))}; settings are "
        "those of ignn train --help, as in hidden=64 or {'model.hidden': 64}"
    )


def setting_names() -> tuple[str, ...]:
    """Full names of all settings."""
    return tuple(name for name, is_leaf in _walk(RunConfig, "") if is_leaf)


@contextmanager
def told_in_python(*arguments: str) -> Iterator[None]:
    """Let errors name settings as Python has them; also a decorator.

    Args:
        arguments: of the function, which its command has as flags.
    """
    try:
        yield
    except (UserError, JobError) as error:
        error.args = (in_python(str(error), arguments),)
        raise


def in_python(message: str, arguments: Iterable[str] = ()) -> str:
    """``message`` with ``model.cell = mignn`` for ``--model.cell mignn``, but within a command."""
    known = {*setting_names(), *arguments}

    def put(found: re.Match[str]) -> str:
        name = (found[1] or "").replace("-", "_")
        if name not in known:
            return found[0]
        return name if found[2] is None else f"{name} = {found[2]}"

    return _WORDS.sub(put, message)


@functools.cache
def _names() -> dict[str, tuple[str, ...]]:
    """Full names by short name; all of them, sections included, under ``.``."""
    found: dict[str, tuple[str, ...]] = {}
    everything = tuple(_walk(RunConfig, ""))
    for name, is_leaf in everything:
        short = name.rpartition(".")[2]
        if is_leaf and short != name:
            found[short] = (*found.get(short, ()), name)
    return found | {".": tuple(name for name, _ in everything)}


def _walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, bool]]:
    """Full name of every key, and whether it is no section."""
    for name, field in section.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            yield prefix + name, False
            yield from _walk(below, f"{prefix}{name}.")
        else:
            yield prefix + name, True
