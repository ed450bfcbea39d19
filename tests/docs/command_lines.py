"""Command lines of the pages: found, taken apart, and read by the parsers they are meant for."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from distributed_ignn.commands.table import COMMANDS
from distributed_ignn.config import resolve_run
from tests.docs.pages import ROOT, Block, blocks, spans

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_PLACEHOLDER = re.compile(r"\b[A-Z]+\b|[A-Z]$|[|\[\]]|\.\.\.")
_PHRASE = 4  # words; shorter ones only name a command or a setting
_SHELLS = ("bash", "sh", "console")
_SETTERS = ("export", "source", "unset", "cd")
_OTHERS = ("jq", "tensorboard", ".ci/run")
"""Programs whose arguments are not ours to check."""
_PARSERS = ("parse_run", "parse_options", "parse_options_and_settings")
_LAUNCHED = {f"launch/{module}.py": name for name, (module, _) in COMMANDS.items()}


@dataclass(frozen=True)
class Command:
    """A line that a reader may type."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """The program and its arguments, without variables before them."""
        words = shlex.split(self.text)
        while words and _ASSIGNMENT.match(words[0]):
            words = words[1:]
        return words


def commands_of(block: Block) -> Iterator[Command]:
    """The commands in a block; in one of shell's every line is one.

    Raises:
        ValueError: a line of a shell block begins with no program that is known here.
    """
    line = block.line
    for text in block.text.replace("\\\n", "\0").splitlines():
        words = _words(text.replace("\0", " "))
        command = Command(block.page, line + 1, shlex.join(words))
        line += 1 + text.count("\0")
        if command.words and command.words[0] in _CHECKS:
            yield command
        elif command.words and block.language in _SHELLS:
            raise ValueError(f"{block.page}:{command.line}: no command: {text}")


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # a quotation mark that is not closed: text, not a command
        return []


@cache
def all_commands() -> tuple[Command, ...]:
    """Every command of every page, each once."""
    found: dict[str, Command] = {}
    for block in blocks():
        if block.language in ("", *_SHELLS):  # others are output, or another language
            for command in commands_of(block):
                found.setdefault(command.text, command)
    return tuple(found.values())


@cache
def spoken_commands() -> tuple[Command, ...]:
    """Commands in sentences that stand there in full: several words, none of them a placeholder."""
    found = (next(commands_of(span), None) for span in spans())
    return tuple(
        command
        for command in dict.fromkeys(found)
        if command is not None
        and len(command.words) > _PHRASE
        and not any(_PLACEHOLDER.search(word) for word in command.words)
    )


def check(words: Sequence[str]) -> None:
    """Read a command line as its program would, and do nothing.

    Raises:
        AssertionError, SystemExit: the program would refuse it.
    """
    _CHECKS[words[0]](words[1:])


class _Parsed(BaseException):
    """What a command has understood; raised in the place of doing it."""

    def __init__(self, understood: Any) -> None:
        self.understood = understood


def parsed(name: str, arguments: Sequence[str]) -> Any:
    """What the parser of a command of ignn makes of its arguments.

    Raises:
        AssertionError: they are refused, with the line that a user would read.
    """
    assert name in COMMANDS, f"ignn has no command {name}"
    module = import_module(f"distributed_ignn.commands.{COMMANDS[name][0]}")
    # a search checks its grid once it knows the run
    stops = ("_conduct",) if name == "search" else _PARSERS
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        for stop in stops:
            if hasattr(module, stop):
                patch.setattr(module, stop, _stopping(getattr(module, stop), name == "search"))
        try:
            module.main(list(arguments))
        except _Parsed as done:
            return done.understood
    raise AssertionError(said.getvalue())


def _stopping(function: Callable[..., Any], instead: bool) -> Callable[..., Any]:
    def stop(*args: Any, **kwargs: Any) -> Any:
        raise _Parsed(args if instead else function(*args, **kwargs))

    return stop


def _ignn(arguments: Sequence[str]) -> None:
    if list(arguments) in (["--help"], ["--version"]):
        return
    name, rest = arguments[0], arguments[1:]
    if rest and rest[-1] in ("--help", "--help-all"):
        assert name in COMMANDS
        return
    found = parsed(name, rest)
    if name == "link":
        _program([found.command, *found.arguments])
    if name in ("reproduce", "partition"):
        _, flags, path = found
        resolve_run({"dataset": "citeseer"} | flags, path)


def _program(words: Sequence[str]) -> None:
    """A command of ignn or a script, as ``ignn link`` takes it."""
    if words[0] in COMMANDS:
        _ignn(words)
    else:
        _script(words)


def _script(words: Sequence[str]) -> None:
    path = words[0]
    assert (ROOT / path).is_file(), f"{path} is not there"
    if path in _LAUNCHED:
        _ignn([_LAUNCHED[path], *words[1:]])
    elif path.startswith("examples/") and words[1:]:
        _ignn(["train", *words[1:]])  # the one that takes arguments takes those of training


def _module(words: Sequence[str]) -> None:
    name, rest = words[0], words[1:]
    if name == "distributed_ignn":
        _ignn(rest)
    elif name == "torch.distributed.run":
        _torchrun(rest)
    elif name == "tests.pseudo_gpu" and rest:
        _script(rest[2:] if rest[0] == "--report" else rest)
    else:
        assert name.startswith("tests.")
        assert importlib.util.find_spec(name) is not None, f"there is no module {name}"


def _python(arguments: Sequence[str]) -> None:
    if arguments[0] == "-m":
        _module(arguments[1:])
    elif arguments[0] != "-c":
        _script(arguments)


def _torchrun(arguments: Sequence[str]) -> None:
    found = get_args_parser().parse_args(list(arguments))
    words = [found.training_script, *found.training_script_args]
    words = words[1:] if words[0] == "--" else words
    (_module if found.module else _script)(words)


def _make(arguments: Sequence[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in arguments:
        name, assigned, _ = word.partition("=")
        known = rf"^{name} \?=" if assigned else rf"^{name}:"
        assert re.search(known, text, re.MULTILINE), f"the Makefile has no {name}"


def _pip(arguments: Sequence[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert arguments[0] in ("install", "wheel")
    for word in arguments[1:]:
        for names in re.findall(r"^(?:\.|distributed-ignn)\[([^]]+)\]$", word):
            assert set(names.split(",")) <= set(project["optional-dependencies"]), (
                f"no such extra: {names}"
            )


def _ray(arguments: Sequence[str]) -> None:
    words = list(arguments)
    if "--" in words:
        cut = words.index("--")
        check(words[cut + 1 :])
    cli = pytest.importorskip("ray.scripts.scripts", reason="Ray is not installed").cli
    context = cli.make_context("ray", words)
    command = cli
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def _sbatch(arguments: Sequence[str]) -> None:
    (script,) = (word for word in arguments if word.endswith(".sbatch"))
    assert (ROOT / script).is_file()
    _ignn(["train", *arguments[list(arguments).index(script) + 1 :]])


def _unchecked(arguments: Sequence[str]) -> None:
    """Of the shell, or of a program that is not ours."""


_CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "ignn": _ignn,
    "python": _python,
    "torchrun": _torchrun,
    "make": _make,
    "pip": _pip,
    "ray": _ray,
    "sbatch": _sbatch,
    **dict.fromkeys((*_SETTERS, *_OTHERS), _unchecked),
}
