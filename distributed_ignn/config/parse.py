"""From command line and YAML to a checked RunConfig, and back to YAML.

Later sources win: defaults, then the YAML file, then the command line. Every mistake is a
UserError of one line, raised before any process starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from distributed_ignn.config.check import validate_options, validate_run
from distributed_ignn.config.choices import choice_at
from distributed_ignn.config.command import CommandParser
from distributed_ignn.config.dataset import FILE_SUFFIXES, IN_MEMORY, OWN_FILE, dataset_names
from distributed_ignn.config.deepspeed_settings import check_device, read_settings, require_package
from distributed_ignn.config.dotted import names_of
from distributed_ignn.config.explicit import is_explicit, of_dataset
from distributed_ignn.config.idle import refuse_idle, refuse_without_ray, without_idle
from distributed_ignn.config.model import OF_FEATURES
from distributed_ignn.config.options import OptionsT, declare, given
from distributed_ignn.config.sections import RunConfig
from distributed_ignn.config.shipped import CONFIG_FOLDER, shipped_file
from distributed_ignn.errors import UserError
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.strict_yaml import read_yaml
from distributed_ignn.urls.url import Url, lacking

_PLACEHOLDERS = {
    "str": "NAME",
    "int": "N",
    "float": "X",
    "Path": "PATH",
    "{auto,Path}": "auto|PATH",
    "{int,auto}": "N|auto",
    "{float,auto}": "X|auto",
    "bool": "{true,false}",
}
_EMPTY_DEFAULTS = (" (default: None)", " (default: null)", " (default factory: _output_folder)")


class _CommandLine(RunConfig, BaseSettings):
    """RunConfig in the form that pydantic-settings reads flags for; never created."""

    model_config = SettingsConfigDict(
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_kebab_case=True,
        cli_use_class_docs_for_groups=True,
    )


def parse_args(argv: Sequence[str]) -> RunConfig:
    """The run that a training command line asks for.

    Args:
        argv: arguments without the program name.

    Raises:
        UserError: an unknown flag or key, a value outside its limits, settings that contradict
            each other, or a file that is not there.
        SystemExit: after ``--help``.
    """
    found, flags = _read(CommandParser(), argv)
    return _resolve_started_run(flags, found.config)


def parse_run(argv: Sequence[str], *, name: str, about: str, more: str, usage: str) -> RunConfig:
    """As ``parse_args``, with what ``--help`` says of the command around the settings.

    Args:
        argv: arguments without the program name.
        name: of the command.
        about, more: what it does, and examples.
        usage: the first line of the help.
    """
    parser = CommandParser(prog=name, usage=usage, description=about, epilog=more)
    found, flags = _read(parser, argv)
    return _resolve_started_run(flags, found.config)


def parse_options(
    options: type[OptionsT], argv: Sequence[str], *, name: str, about: str, more: str
) -> OptionsT:
    """The flags of a command that takes no settings of a run.

    Args:
        options: what it takes.
        argv: arguments without the program name.
        name: of the command, as the help spells it.
        about, more: what it does, and examples, for the help.

    Raises:
        UserError, SystemExit: as ``parse_args``.
    """
    parser = CommandParser(prog=name, description=about, epilog=more)
    declare(options, parser, _PLACEHOLDERS)
    return validate_options(options, given(options, parser.parse_args(argv)))


def parse_options_and_settings(
    options: type[OptionsT], argv: Sequence[str], *, name: str, about: str, more: str
) -> tuple[OptionsT, dict[str, Any], Path | None]:
    """The flags of a command that takes the settings of a run besides; ``resolve_run`` makes it.

    Args:
        options: its own flags; none of them may be named like a setting.
        argv, name, about, more: as for ``parse_options``.

    Returns:
        Its own flags, the sections and keys that the command line sets, unchecked, and the file
        that it names with ``--config``.

    Raises:
        UserError, SystemExit: as ``parse_args``.
    """
    parser = CommandParser(prog=name, description=about, epilog=more)
    declare(options, parser, _PLACEHOLDERS)
    own = " ".join(parser.format_usage().replace("%", "%%").split()).removeprefix("usage: ")
    parser.usage = f"{own} [--config FILE] [--SECTION.KEY VALUE ...]"
    found, flags = _read(parser, argv)
    return validate_options(options, given(options, found)), flags, found.config


def _read(parser: CommandParser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Add ``--config`` and all settings to a parser; all that it finds, and the settings of it."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file, or the name of one below configs/ (default: configs/DATASET.yaml)",
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        _CommandLine,
        root_parser=parser,
        cli_parse_none_str="null",
        add_argument_method=_add_setting,
    )
    parser.fold_sections()
    found = parser.parse_args(argv)
    settings = {key: value for key, value in vars(found).items() if not isinstance(value, list)}
    return found, source(parsed_args=settings)()


def _add_setting(group: Any, *flags: str, **kwargs: Any) -> argparse.Action:
    """Declare a flag, with the placeholders of a manual instead of Python's type names."""
    if kwargs.get("action") == "store_true":
        return argparse.ArgumentParser.add_argument(group, *flags, **kwargs)
    kwargs["metavar"] = _PLACEHOLDERS.get(kwargs["metavar"], kwargs["metavar"])
    choice = choice_at(RunConfig, kwargs["dest"])
    if choice is not None:
        text, default, value = kwargs["help"].partition(" (default: ")
        kwargs["help"] = choice.explain(text) + default + value
        kwargs["metavar"] = choice.placeholder() or kwargs["metavar"]
    for empty in _EMPTY_DEFAULTS:
        kwargs["help"] = kwargs["help"].removesuffix(empty)
    return argparse.ArgumentParser.add_argument(group, *flags, **kwargs)


def load_yaml(path: Path) -> RunConfig:
    """The run that a YAML file describes on its own, such as the config.yaml of a finished run.

    Raises:
        UserError: the file is missing or malformed, or one of its settings is wrong.
    """
    return validate_run(_read_yaml(path), path)


def dump_yaml(config: RunConfig) -> str:
    """All settings as YAML, in the order of their sections; ``load_yaml`` reads it back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _resolve_started_run(flags: dict[str, Any], config_file: Path | None) -> RunConfig:
    """As ``resolve_read_run``, of a run whose settings alone say how its processes start."""
    run = resolve_read_run(flags, config_file)
    refuse_without_ray(run, names_of(flags))
    return run


def resolve_read_run(flags: dict[str, Any], config_file: Path | None) -> RunConfig:
    """As ``resolve_run``, of a run that is to be trained: every setting of it has an effect.

    Raises:
        NoEffectError: see ``refuse_idle``.
    """
    run = resolve_run(flags, config_file)
    refuse_idle(run, names_of(flags))
    return without_idle(run)


def resolve_run(flags: dict[str, Any], config_file: Path | None) -> RunConfig:
    """Merge settings over those of a file and check the result.

    Args:
        flags: sections and keys, from a command line or a program.
        config_file: the file, or the name of one below ``configs/``; that of the dataset, if it
            has one, by default. Under the settings
            for a graph of one's own, those that were chosen for any graph come first.

    Raises:
        UserError: see ``parse_args``.
    """
    path = _shipped(flags.get("dataset")) if config_file is None else _named(config_file)
    if path is None:
        return _checked({}, flags)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(
            f"config = {path} {problem}; name a YAML file with --config FILE, or one that comes "
            "with the package, as paper/citeseer.yaml"
        )
    file = _read_yaml(path)
    if config_file is None:
        file = _for_kind(_kind(_merge(file, flags)), file)
    else:
        _refuse_another_folder(path, file, flags)
    return _checked(file, flags, path)


def _checked(
    file: Mapping[str, Any], flags: Mapping[str, Any], path: Path | None = None
) -> RunConfig:
    """The run of a file's settings and those of the command line over the defaults."""
    chosen = {"dataset": flags["dataset"]} if "dataset" in flags else {}
    if (kind := _kind(flags)) is not None:
        chosen["model"] = {"kind": kind}
    beneath = _over_defaults(file, chosen)
    return _check_files(validate_run(_over_defaults(file, flags), path, flags, beneath))


def _refuse_another_folder(path: Path, file: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    """Refuse to go on in the folder that a run had before it was moved or copied."""
    folder, output = path.parent, str(file.get("output", ""))
    if (
        flags.get("resume") == "auto"
        and output
        and flags.get("output") is None
        and (folder / "checkpoints").is_dir()
        and "://" not in output
        and Path(output).absolute() != folder.absolute()
    ):
        raise UserError(
            f"config = {path} is of a run that was in output = {output}; say which one is to go "
            f"on, as in --output {folder}"
        )


def _named(path: Path) -> Path:
    """The file of a path, or that of the package of the same name below ``configs``."""
    if path.exists() or path.is_absolute():
        return path
    below = path.parts[1:] if path.parts[:1] == (CONFIG_FOLDER.name,) else path.parts
    shipped = CONFIG_FOLDER.joinpath(*below)
    return shipped if shipped.is_file() else path


def _over_defaults(file: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings over the defaults for a graph of one's own, and over those of a kind."""
    values = _merge(file, flags)
    kind, dataset = _kind(values), values.get("dataset")
    if dataset in (OWN_FILE, IN_MEMORY) or str(dataset).endswith(FILE_SUFFIXES):
        values = _merge(_for_kind(kind, _read_yaml(shipped_file("own-graph.yaml"))), values)
    if not is_explicit(kind):
        return values
    own = CONFIG_FOLDER / "baselines" / f"{kind}.yaml"  # a kind that is new need not have one
    return _merge(_read_yaml(own), values) if own.is_file() else values


def said_of_features(run: RunConfig) -> dict[str, Any]:
    """What a run says of features to the implicit model, and its defaults do not, by dotted name.

    Args:
        run: the settings, as they are also found in the folder of a run, where nobody can tell any
            more who wrote what.
    """
    if is_explicit(run.model.kind):
        return {}
    beneath = _over_defaults({"dataset": run.dataset}, {}).get("model", {})
    fields = type(run.model).model_fields
    said = {name: getattr(run.model, name) for name in OF_FEATURES}
    return {
        f"model.{name}": value
        for name, value in said.items()
        if value not in (fields[name].default, beneath.get(name))
    }


def _kind(values: Mapping[str, Any]) -> Any:
    """What ``model.kind`` is set to, unchecked; None where it is not."""
    model = values.get("model")
    return model.get("kind") if isinstance(model, Mapping) else None


def _for_kind(kind: Any, file: dict[str, Any]) -> dict[str, Any]:
    """What a shipped file that was chosen for the implicit model says to a model of a kind."""
    return of_dataset(kind, file) if is_explicit(kind) else file


def _shipped(dataset: str | None) -> Path | None:
    """The settings that come with a dataset; None for a graph of one's own.

    Raises:
        UserError: no dataset is named, or its settings are missing: it is never trained with others
            without a word.
    """
    if dataset is None:
        raise UserError("dataset is missing; name one with --dataset NAME or a file with --config")
    if dataset not in dataset_names() or dataset == OWN_FILE:
        return None
    path = CONFIG_FOLDER / f"{dataset}.yaml"
    if not path.is_file():
        raise UserError(
            f"dataset = {dataset} has no settings, {path} is missing; install distributed_ignn "
            "again, or name a file with --config"
        )
    return path


def _check_files(run: RunConfig) -> RunConfig:
    """Refuse files that are not there now rather than after all processes have started."""
    for key, place in {
        "output": run.output,
        "resume": run.resume,
        "partition.dir": run.partition.dir,
        "data.path": run.data.path,
        "data.nodes": run.data.nodes,
    }.items():
        problem = lacking(place)
        if problem is not None:
            raise UserError(f"{key} = {place} {problem}")
    resume = None if run.resume == "auto" else run.resume
    named = {
        "resume": resume,
        "deepspeed_config": run.deepspeed_config,
        "data.path": run.data.path,
    }
    for key, path in named.items():
        if path is not None and not isinstance(path, Url) and not Path(path).exists():
            raise UserError(f"{key} = {path} does not exist; name an existing one with --{key}")
    if run.engine == "deepspeed":
        require_package()
        check_device(read_settings(run.deepspeed_config), run.device)
    return run


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``base`` in which the leaves of ``over`` win."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _merge(below, value)
        merged[key] = value
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, unchecked."""
    try:
        content = read_yaml(path)
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {in_one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold sections and keys, as in dataset: NAME")
    return content
