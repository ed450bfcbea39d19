"""What pydantic objects to in a run or a command, as one line: key, value, what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from distributed_ignn.config.options import Options, OptionsT, example, fields, label
from distributed_ignn.config.section import NoEffect
from distributed_ignn.config.sections import RunConfig
from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import NoEffectError, UserError
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
    beneath: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Check the raw settings of a run.

    Args:
        values: sections and keys; values may still be text, as the command line delivers them.
        path: file that they came from, to be named in the message.
        flags: those of them that the command line set; they are not blamed on the file.
        beneath: what the settings are where the command line leaves them out.

    Raises:
        NoEffectError: the first wrong setting has no effect.
        UserError: it is wrong otherwise; the line names it, and how many more there are.
    """
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        details = _mistakes(error)
        location = details[0]["loc"]
        of_command = _contains(flags or {}, location)
        message = _describe(details[0], _Spelling(), (beneath or {}) if of_command else {})
        if path is not None and location and not of_command:
            message += f" (in {path})"
        told = _told(message, len(details))
        idle = details[0].get("ctx", {}).get("error")
        if isinstance(idle, NoEffect):
            told = NoEffectError(str(told), ".".join((*map(str, location), idle.setting)))
        raise told from error


def validate_options(options: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Check the raw flags of a command.

    Args:
        options: what the command takes.
        values: by field; values may still be text.

    Raises:
        UserError: naming the first wrong flag, and how many more there are.
    """
    try:
        return options.model_validate(dict(values))
    except ValidationError as error:
        details = _mistakes(error)
        raise _told(_describe(details[0], _FlagSpelling(options)), len(details)) from error


def _mistakes(error: ValidationError) -> list[ErrorDetails]:
    """Without consequences: a default that depends on a wrong setting is not a second mistake.

    Nor is it one that a number which may be a word besides is not that word.
    """
    found: list[ErrorDetails] = []
    for detail in error.errors(include_url=False):
        if found and _is_other_member(detail, found[-1]):
            context = {**found[-1].get("ctx", {}), "also": detail["ctx"]["expected"]}
            found[-1] = ErrorDetails(**{**found[-1], "ctx": context})
        elif detail["type"] != "default_factory_not_called":
            found.append(detail)
    return found


def _is_other_member(detail: ErrorDetails, before: ErrorDetails) -> bool:
    """Whether a mistake is that of a union's next member, a word, about the same value."""
    same = detail["loc"][:-1] == before["loc"][:-1] and detail["input"] is before["input"]
    words = str(detail["loc"][-1]).startswith("literal[")
    return same and words and detail["type"] == "literal_error" != before["type"]


def _told(message: str, count: int) -> UserError:
    if count > 1:
        message += f" (and {count - 1} more)"
    return UserError(in_one_line(message, 1_000))  # long enough for any list of what is allowed


class _Spelling:
    """How the user writes what is wrong: here a key and its value, as YAML has them."""

    root: type[BaseModel] = RunConfig

    def name(self, location: str) -> str:
        """Of the key."""
        return location

    def with_value(self, location: str, value: Any, *, quoted: bool) -> str:
        """The key and what it was set to."""
        return f"{location} = {_cut(repr(value) if quoted else str(value))}"


class _FlagSpelling(_Spelling):
    """As on a command line, where some arguments have no dashes."""

    def __init__(self, options: type[Options]) -> None:
        self.root = options

    def name(self, location: str) -> str:
        return label(self.root, location)

    def with_value(self, location: str, value: Any, *, quoted: bool) -> str:
        return f"{self.name(location)} {_cut(_plain(value))}"


def _describe(
    detail: ErrorDetails, words: _Spelling, beneath: Mapping[str, Any] = MappingProxyType({})
) -> str:
    location, section = _locate(detail["loc"], words.root)
    if detail["type"] == "missing":
        return f"{words.name(location)} is missing; {_example(section, location)}"
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        known = section.model_fields
        return f"unknown key {location!r}{suggest(key, known)}; allowed here: {', '.join(known)}"
    if detail["type"] == "model_type":
        first = next(iter(section.model_fields))
        return (
            f"{location} is a section, not a value; set one of its keys, as in {location}.{first}"
        )
    if detail["type"] == "value_error":
        reason = str(detail["ctx"]["error"])
        if isinstance(detail["input"], Mapping | BaseModel):
            return f"{location}: {reason}".removeprefix(": ")
        return f"{words.with_value(location, detail['input'], quoted=False)} {reason}"
    reason = _reason(detail)
    found = words.with_value(location, detail["input"], quoted=True)
    way_out = _way_out(section, location, _at(beneath, location.split(".")))
    return f"{found} {reason}{way_out}"


def _reason(detail: ErrorDetails) -> str:
    """The rule that a value breaks; of a union, the rules of all members."""
    rule = _RULES.get(detail["type"], detail["msg"].replace("Input should be", "must be"))
    context = detail.get("ctx", {})
    reason = rule.format(**context)
    return f"{reason} or {context['also']}" if "also" in context else reason


def _example(section: type[BaseModel], location: str) -> str:
    """How to give a setting or an argument that is missing."""
    found = example(fields(section)[location.rpartition(".")[2]])
    if found is not None:
        return f"name one, as in {found}"
    return f"give it with --{location.replace('_', '-')}"


def _way_out(section: type[BaseModel], location: str, default: Any = None) -> str:
    """A value that is right: the default, which may be another one than the field's, or none."""
    field = fields(section)[location.rpartition(".")[2]]
    if field.is_required():
        return "; --help shows examples" if issubclass(section, Options) else ""
    default = field.get_default() if default is None else default
    if default in (None, (), PydanticUndefined):
        return "; leave it out for the default"
    text = str(default).lower() if isinstance(default, bool) else _plain(default)
    return f"; the default is {text}"


def _plain(value: Any) -> str:
    """As a user writes it: the members of a list with blanks between them."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _locate(loc: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """Dotted key of an error and the section that the key belongs to.

    Pydantic appends its own labels to a location (such as the member of a union); they are cut.
    """
    section = root
    names: list[str] = []
    for name in map(str, loc):
        names.append(name)
        field = fields(section).get(name)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        section = annotation
    return ".".join(names), section


def _at(values: Mapping[str, Any], loc: Sequence[str]) -> Any:
    """The value at ``loc``; None where there is none."""
    level: Any = values
    for name in loc:
        level = level.get(name) if isinstance(level, Mapping) else None
    return level


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


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
