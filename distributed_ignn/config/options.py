"""The flags of a command that are no settings of a run, as pydantic models.

A command states its flags once, as the settings do: type, default, limits and meaning are those of
a field, rules between flags are validators. Fields of a base class with a ``title`` stand together
in the help, under that title.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from distributed_ignn.config.choices import Choice
from distributed_ignn.config.command import CommandParser
from distributed_ignn.config.outputs import check_output
from distributed_ignn.config.section import ByUrl, Section
from distributed_ignn.errors import UserError
from distributed_ignn.urls.url import lacking

_BARE = "bare:"  # before the name of an argument that is given without its flag


class Options(Section):
    """Flags of one command; ``title`` is the heading of a group of them."""

    title: ClassVar[str] = ""

    @model_validator(mode="after")
    def _check_read(self) -> Self:
        """Refuse a flag that has no effect, see ``ReadBy``."""
        known = type(self).model_fields
        subject = next((getattr(self, name) for name in known if _is_first(known[name])), None)
        for name, field in known.items():
            mark = _mark(field, ReadBy)
            if name in self.model_fields_set and mark and subject not in mark.names:
                *others, last = mark.names
                readers = (
                    f"{', '.join(others)} and {last} read it" if others else f"{last} reads it"
                )
                flag = name.replace("_", "-")
                way_out = f"use {mark.else_take}" if mark.else_take else "drop it"
                raise ValueError(f"--{flag} has no effect on {subject}; {way_out} ({readers})")
        return self


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, slots=True)
class Bare:
    """Marks a field that is written without a flag.

    Args:
        name: as the help shows it.
        example: a command line with it.
        flag: whether it may have a flag as well. torchrun takes ``--run`` for its own
            ``--run-path``, so that the run of a command under it stands bare.
    """

    name: str
    example: str
    flag: bool = False


@dataclass(frozen=True, slots=True)
class Rest:
    """Marks a field that takes everything that is left, flags too.

    Args:
        name: as the help shows it.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Shown:
    """How the help shows the value of a flag, such as ``FILE``."""

    name: str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """Marks the path of something that the command writes.

    Args:
        folder: whether that is a folder.
    """

    folder: bool = False


@dataclass(frozen=True, slots=True)
class ReadBy:
    """Marks a flag that has an effect for some values of a command's first argument alone.

    Args:
        names: those values.
        else_take: the flag that the command takes in its place for other values.
    """

    names: tuple[str, ...]
    else_take: str = ""


class Commas:
    """Marks a list that is one argument, its members between commas."""


def _split(value: Any) -> Any:
    """The members of a list: one argument each, or between commas."""
    if isinstance(value, str):
        return value.split(",")
    if isinstance(value, list):
        return [part for text in value for part in str(text).split(",")]
    return value


def whole_numbers(least: int) -> Callable[[Any], Any]:
    """What turns text such as ``0,1,2`` into distinct whole numbers from ``least`` on."""

    def parse(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        parts = text.split(",")
        if not all(part.isdecimal() and int(part) >= least for part in parts):
            raise ValueError(
                f"must be whole numbers from {least} on with commas between them, as in "
                f"{least},{least + 1}"
            )
        numbers = tuple(map(int, parts))
        if len(set(numbers)) < len(numbers):
            raise ValueError("names a number twice; leave one out")
        return numbers

    return parse


def distinct_names(value: Any) -> Any:
    """The members of a list of names with commas between them, none of them twice."""
    names = _split(value)
    if isinstance(names, list) and "" in names:
        raise ValueError("has a comma without a name beside it; drop it")
    if isinstance(names, list) and len(set(names)) < len(names):
        raise ValueError("names one twice; leave one out")
    return names


_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|min|h)")


def duration(text: Any) -> Any:
    """Seconds of text such as ``90s``, ``10min``, ``2h`` or ``1h30min``."""
    if not isinstance(text, str):
        return text
    parts = _DURATION.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise ValueError("must be a time with its unit, as in 90s, 10min or 2h")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0.0:
        raise ValueError("must be above 0, as in 90s, 10min or 2h")
    return seconds


def _of_picture(path: Path) -> Path:
    from distributed_ignn.plots import ENDINGS  # matplotlib, for who wants a picture alone

    if path.suffix not in ENDINGS:
        raise ValueError(f"says no kind of picture; end it in {', '.join(ENDINGS)}")
    return path


Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_split)]
"""Whole numbers from 1 on: ``--ranks 1 2 4`` or ``--ranks 1,2,4``."""

Duration = Annotated[float, BeforeValidator(duration), Shown("TIME")]
"""Seconds, given as ``90s``, ``10min`` or ``2h``."""

Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, ...], BeforeValidator(_split)]
NumberList = Annotated[tuple[int, ...], Commas(), Shown("N,N,...")]
Seeds = Annotated[NumberList, BeforeValidator(whole_numbers(0))]
OutputFile = Annotated[Path, Output(), Shown("FILE")]
PictureFile = Annotated[OutputFile, AfterValidator(_of_picture)]
"""A .png, .svg or .pdf, by the ending."""
OutputFolder = Annotated[Path, Output(folder=True), Shown("DIR")]
OutputFileOrUrl = Annotated[OutputFile, ByUrl()]
OutputFolderOrUrl = Annotated[OutputFolder, ByUrl()]


def fields(options: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by the names that the command line has for them, which may be aliases."""
    return {field.alias or name: field for name, field in options.model_fields.items()}


def label(options: type[BaseModel], name: str) -> str:
    """A field as it is written on the command line: ``--max-steps``, or ``RUN``."""
    field = fields(options).get(name)
    bare = _mark(field, Bare) or _mark(field, Rest) if field is not None else None
    return bare.name if bare is not None else f"--{name.replace('_', '-')}"


def example(field: FieldInfo) -> str | None:
    """A command line that has the argument, if the help knows one."""
    bare = _mark(field, Bare)
    return bare.example if bare is not None else None


def declare(options: type[Options], parser: CommandParser, placeholders: Mapping[str, str]) -> None:
    """Add the flags of a command to its parser.

    Args:
        options: what the command takes.
        parser: of the command.
        placeholders: words of the help for Python's type names.
    """
    groups = {
        base.title: parser.add_argument_group(base.title)
        for base in reversed(options.__mro__)
        if issubclass(base, Options) and base.__dict__.get("title")
    }
    known, titles = fields(options), _titles(options)

    def add(group: Any, *flags: str, **kwargs: Any) -> None:
        name = kwargs["dest"]
        if name not in first:
            _add(groups.get(titles[name], group), name, flags, known[name], placeholders)

    # arguments without a flag are taken in the order in which they are declared
    first = [name for name, field in known.items() if _is_first(field)]
    for name in first:
        _add(parser, name, (), known[name], placeholders)
    line = type("_Line", (options, BaseSettings), {"model_config": _CONFIG, "__module__": __name__})
    CliSettingsSource(line, root_parser=parser, add_argument_method=add)


_CONFIG = SettingsConfigDict(cli_avoid_json=True, cli_hide_none_type=True, cli_kebab_case=True)


def _add(
    group: Any,
    name: str,
    flags: Sequence[str],
    field: FieldInfo,
    placeholders: Mapping[str, str],
) -> None:
    """Declare one field to argparse."""
    bare, rest = _mark(field, Bare), _mark(field, Rest)
    own = {"help": _help(field), "default": argparse.SUPPRESS}
    if rest is not None:
        group.add_argument(f"{_BARE}{name}", nargs=argparse.REMAINDER, metavar=rest.name, **own)
        return
    if bare is not None:
        nargs = "?" if bare.flag else None
        group.add_argument(f"{_BARE}{name}", nargs=nargs, metavar=bare.name, **own)
        own["help"] = f"the same as {bare.name}"
    if bare is None or bare.flag:
        group.add_argument(*flags, dest=name, **own, **_form(field, placeholders))


def given(options: type[Options], found: argparse.Namespace) -> dict[str, Any]:
    """The values of a command line, by field, unchecked.

    Raises:
        UserError: one is given twice, with its flag and without.
    """
    values = vars(found)
    chosen = {name: values[name] for name in fields(options) if name in values}
    for name in fields(options):
        bare = values.get(f"{_BARE}{name}")
        if bare is not None and chosen.setdefault(name, bare) != bare:
            raise UserError(
                f"{bare} and --{name} {chosen[name]} name two of the same; give one of them"
            )
    return chosen


def check_outputs(values: Options) -> None:
    """Refuse paths that can never be written, before work is done that would be lost.

    Raises:
        UserError: see ``check_output``; or a URL needs a package that is not installed.
    """
    for name, field in type(values).model_fields.items():
        mark, flag = _mark(field, Output), label(type(values), field.alias or name)
        problem = lacking(getattr(values, name))
        if problem is not None:
            raise UserError(f"{flag} {getattr(values, name)} {problem}")
        if mark is not None:
            check_output(flag, getattr(values, name), folder=mark.folder)


def _form(field: FieldInfo, placeholders: Mapping[str, str]) -> dict[str, Any]:
    """How many values a flag takes, and the word for one."""
    if field.annotation is bool:
        return {"action": "store_true"}
    shown, members = _mark(field, Shown), _members(field.annotation)
    choice = _mark(field, Choice)
    word = shown.name if shown else choice.placeholder() if choice else None
    word = word or _word(field.annotation, placeholders)
    if members is None or _mark(field, Commas) is not None:
        return {"metavar": word}
    if members > 0:
        return {"metavar": word, "nargs": members}
    return {"metavar": word, "nargs": "+", "action": "extend"}


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    default = field.get_default()
    if field.is_required():
        text += " (required)"
    elif default not in (None, False, ()):
        plain = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        text += f" (default: {plain})"
    return text.lstrip().replace("%", "%%")


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _members(annotation: Any) -> int | None:
    """How many arguments a tuple takes, 0 for any number; None for what is none."""
    for part in _parts(annotation):
        if get_origin(part) is tuple:
            members = get_args(part)
            return 0 if members[-1] is Ellipsis else len(members)
    return None


def _word(annotation: Any, placeholders: Mapping[str, str]) -> str:
    """The choices of a field, or the word for its type."""
    for part in _parts(annotation):
        if get_origin(part) is Literal:
            return "{" + ",".join(map(str, get_args(part))) + "}"
        if isinstance(part, type) and part.__name__ in placeholders:
            return placeholders[part.__name__]
    raise TypeError(f"the help knows no word for {annotation}")


def _titles(options: type[Options]) -> dict[str, str]:
    """The group of every field: that of the class which declares it."""
    return {
        field.alias or name: next(
            str(base.__dict__.get("title", ""))
            for base in options.__mro__
            if name in get_annotations(base)
        )
        for name, field in options.model_fields.items()
    }


def _is_first(field: FieldInfo) -> bool:
    """Whether a field is always written without a flag, before all that has one."""
    bare = _mark(field, Bare)
    return bare is not None and not bare.flag


def _mark(field: FieldInfo, kind: type[Any]) -> Any:
    """The mark of a kind, also where the type that carries it is one of a union."""
    for mark in (*field.metadata, *_parts(field.annotation)):
        if isinstance(mark, kind):
            return mark
    return None
