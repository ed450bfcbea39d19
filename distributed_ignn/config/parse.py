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

from distributed_ignn.config.check import validate_run
from distributed_ignn.config.command import CommandParser
from distributed_ignn.config.dataset import DATASET_NAMES
from distributed_ignn.config.sections import RunConfig
from distributed_ignn.errors import UserError
from distributed_ignn.reading.plain_files import in_one_line
from distributed_ignn.reading.strict_yaml import read_yaml

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"

_PLACEHOLDERS = {
    "str": "NAME",
    "int": "N",
    "float": "X",
    "Path": "PATH",
    "{auto,Path}": "auto|PATH",
    "bool": "{true,false}",
}
_EMPTY_DEFAULTS = (" (default: None)", " (default: null)", " (default factory: _output_folder)")
_USAGE = "train.py --dataset NAME [--config FILE] [--output DIR] [--SECTION.KEY VALUE ...]"
_DESCRIPTION = "Train an implicit graph neural network on one graph divided among all processes."
EXAMPLES = """\
examples:
  torchrun --standalone --nproc-per-node 2 launch/train.py --dataset chains --device cpu
  python launch/train.py --dataset acm --workers 2 --model.hidden 64 --forward.tolerance 1e-5

Settings start from their defaults; a --config file overrides them and the command line overrides
the file. In a file each section is a block and keys are written with _ instead of -. The value
null unsets a setting that may be empty.
"""


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
    parser = CommandParser(usage=_USAGE, description=_DESCRIPTION, epilog=EXAMPLES)
    return parse_command(parser, argv)[1]


def parse_command(
    parser: CommandParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, RunConfig]:
    """Parse a command that has flags of its own besides the settings of a run.

    Args:
        parser: holds the command's own flags; ``--config`` and all settings are added to it.
            Own flags must not be named like a setting.
        argv: arguments without the program name.

    Returns:
        The namespace, to read the own flags from, and the run.

    Raises:
        UserError, SystemExit: as ``parse_args``.
    """
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file (default: configs/DATASET.yaml)"
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        _CommandLine,
        root_parser=parser,
        cli_parse_none_str="null",
        add_argument_method=_add_setting,
    )
    values = parser.parse_args(argv)
    flags = source(parsed_args=values)()
    return values, resolve_run(flags, values.config)


def _add_setting(group: Any, *flags: str, **kwargs: Any) -> argparse.Action:
    """Declare a flag, with the placeholders of a manual instead of Python's type names."""
    kwargs["metavar"] = _PLACEHOLDERS.get(kwargs["metavar"], kwargs["metavar"])
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


def resolve_run(flags: dict[str, Any], config_file: Path | None) -> RunConfig:
    """Merge settings over those of a file and check the result.

    Args:
        flags: sections and keys, from a command line or a program.
        config_file: the file; that of the dataset, if it has one, by default.

    Raises:
        UserError: see ``parse_args``.
    """
    path = config_file or _shipped_file(flags.get("dataset"))
    if path is None:
        return _check_files(validate_run(flags))
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"config = {path} {problem}; name a YAML file with --config FILE")
    return _check_files(validate_run(_merge(_read_yaml(path), flags), path, flags))


def _shipped_file(dataset: str | None) -> Path | None:
    if dataset is None:
        raise UserError("dataset is missing; name one with --dataset NAME or a file with --config")
    path = CONFIG_FOLDER / f"{dataset}.yaml"
    return path if dataset in DATASET_NAMES and path.is_file() else None


def _check_files(run: RunConfig) -> RunConfig:
    """Refuse files that are not there now rather than after all processes have started."""
    resume = None if run.resume == "auto" else run.resume
    named = {
        "resume": resume,
        "deepspeed_config": run.deepspeed_config,
        "data.path": run.data.path,
    }
    for key, path in named.items():
        if path is not None and not Path(path).exists():
            raise UserError(f"{key} = {path} does not exist; name an existing one with --{key}")
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
