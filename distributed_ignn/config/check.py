"""What pydantic objects to in a run, as one line that names key, value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from distributed_ignn.config.sections import RunConfig
from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import UserError
from distributed_ignn.reading.plain_files import in_one_line

_LONGEST_VALUE = 60
_WHOLE = "must be a whole number"
_RULES = {  # what pydantic says for programmers
    **dict.fromkeys(("int_parsing", "int_parsing_size", "int_type", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_type": "must be text",
    "path_type": "must be a path",
}


def validate_run(
    values: Mapping[str, Any],
    path: Path | None = None,
    flags: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Check the raw settings of a run.

    Args:
        values: sections and keys; values may still be text, as the command line delivers them.
        path: file that they came from, to be named in the message.
        flags: those of them that the command line set; they are not blamed on the file.

    Raises:
        UserError: naming the first wrong setting, and how many more there are.
    """
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        # A default that depends on a wrong setting is a consequence, not a second mistake.
        details = [
            detail
            for detail in error.errors(include_url=False)
            if detail["type"] != "default_factory_not_called"
        ]
        message = _describe(details[0])
        location = details[0]["loc"]
        if path is not None and location and not _contains(flags or {}, location):
            message += f" (in {path})"
        if len(details) > 1:
            message += f" (and {len(details) - 1} more)"
        # long enough for any list of what is allowed
        raise UserError(in_one_line(message, 1_000)) from error


def _describe(detail: ErrorDetails) -> str:
    location, section = _locate(detail["loc"])
    if detail["type"] == "missing":
        return f"{location} is missing; name one with --{location} NAME"
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        known = section.model_fields
        return f"unknown key {location!r}{suggest(key, known)}; allowed here: {', '.join(known)}"
    if detail["type"] == "model_type":
        example = next(iter(section.model_fields))
        return (
            f"{location} is a section, not a value; set one of its keys, as in {location}.{example}"
        )
    if detail["type"] == "value_error":
        reason = str(detail["ctx"]["error"])
        is_section = isinstance(detail["input"], Mapping | BaseModel)
        return (
            f"{location}: {reason}".removeprefix(": ")
            if is_section
            else (f"{location} = {_cut(str(detail['input']))} {reason}")
        )
    reason = _RULES.get(detail["type"], detail["msg"].replace("Input should be", "must be"))
    reason = reason.format(**detail.get("ctx", {}))
    found = f"{location} = {_shorten(detail['input'])}"
    return f"{found} {reason}{_way_out(section, location)}"


def _way_out(section: type[BaseModel], location: str) -> str:
    """A value that is right: the default, or none."""
    field = section.model_fields[location.rpartition(".")[2]]
    default = field.get_default()
    if default is None:
        return "; leave it out for the default" if not field.is_required() else ""
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return f"; the default is {text}"


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """Dotted key of an error and the section that the key belongs to.

    Pydantic appends its own labels to a location (such as the member of a union); they are cut.
    """
    section: type[BaseModel] = RunConfig
    names: list[str] = []
    for name in map(str, loc):
        names.append(name)
        field = section.model_fields.get(name)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        section = annotation
    return ".".join(names), section


def _contains(flags: Mapping[str, Any], loc: tuple[int | str, ...]) -> bool:
    """Whether the setting at ``loc``, or the whole section, came from the command line."""
    level: Any = flags
    for name in loc:
        if not isinstance(level, Mapping):
            return True
        if name not in level:
            return False
        level = level[name]
    return True


def _shorten(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
