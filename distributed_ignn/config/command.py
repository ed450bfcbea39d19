"""The argument parser of every command: strict, suggesting, and silent about stack traces."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import UserError

_ELSEWHERE = {"--partition.dir": "shards"}  # what benchmark and Python call a setting
_SURE = 0.85  # likeness of a flag that is misspelt, rather than a setting without its section
_NAME, _LINE = 26, 52  # columns of a section's name and of what it is about
_ALSO = {
    "learning-rate": "lr",
    "num-epochs": "epochs",
    "max-epochs": "epochs",
    "wd": "weight-decay",
    "hidden-channels": "hidden",
    "hidden-dim": "hidden",
    "hidden-size": "hidden",
    "num-layers": "layers",
    "tol": "tolerance",
    "max-iter": "max-steps",
    "output-dir": "output",
    "data-dir": "data-root",
    "max-grad-norm": "clip-norm",
    "gradient-clip-val": "clip-norm",
    "gradient-clipping": "clip-norm",
    "num-workers": "workers",
    "num-gpus": "gpus",
}
"""Last words of flags as other tools have them, and ours."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Breaks lines at spaces alone, so that names can be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError and takes ``-`` and ``_`` in a flag as the same.

    What a command takes is declared by ``options.py`` and ``parse.py``.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self._folds = False

    def fold_sections(self) -> None:
        """Let ``--help`` name sections of settings alone, and ``--help-all`` show the settings."""
        self._folds = True
        self.add_argument("--help-all", action=_HelpAll, help="show all settings, too, and exit")

    def format_help(self) -> str:
        """As argparse; with sections folded, one line for each of them."""
        folded = [group for group in self._action_groups if self._folds and _is_section(group)]
        if not folded:
            return super().format_help()
        whole, shown = self._action_groups, [g for g in self._action_groups if g not in folded]
        title = "settings, by section; --help-all shows them all"
        about = "\n".join(_in_one_line(group) for group in folded)
        self._action_groups = [*shown, argparse._ArgumentGroup(self, title, about)]
        try:
            return super().format_help()
        finally:
            self._action_groups = whole

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print, in words for users."""
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            raise UserError(f"{missing} is missing; --help shows examples")
        raise UserError(f"{message.removeprefix('argument ')}; --help lists all flags")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse, but an unknown flag is answered with the closest known one."""
        spelled = [self._spell(argument) for argument in args]
        known, rest = self._parse_known(spelled, namespace)
        if rest:
            self.error(self._describe_unknown(rest[0]))
        return known

    def _parse_known(
        self, args: Sequence[str], namespace: argparse.Namespace | None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Finds an argument that may be left out behind flags too, where argparse misses it."""
        bare = [action for action in self._get_positional_actions() if action.nargs == "?"]
        parse = self.parse_known_intermixed_args if bare else self.parse_known_args
        return parse(args, namespace)

    def _spell(self, argument: str) -> str:
        """The argument with its flag written as it was declared."""
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--") or flag in self._option_string_actions:
            return argument
        folded = {known.replace("_", "-"): known for known in self._option_string_actions}
        spelled = flag.replace("_", "-")
        if spelled not in folded:
            section, dot, word = spelled.removeprefix("--").rpartition(".")
            spelled = f"--{section}{dot}{_ALSO.get(word, word)}"
        return folded.get(spelled, flag) + equals + value

    def _describe_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"unexpected argument {argument!r}: a setting looks like --train.epochs 10"
        flag = argument.partition("=")[0]
        word = flag.strip("-").replace("_", "-")
        known = list(self._option_string_actions)
        meant = suggest(flag, [option for option in known if "." not in option], likeness=_SURE)
        named = " or ".join(repr(option) for option in known if self._is_called(option, word))
        if not meant and named:
            meant = f" (did you mean {named}?)"
        return f"unknown flag {flag}{meant or suggest(flag, known)}"

    @staticmethod
    def _is_called(option: str, word: str) -> bool:
        """Whether a setting of a section is called so, or is what another command calls so."""
        short = option.rpartition(".")[2].replace("_", "-")
        return "." in option and word in (short, _ELSEWHERE.get(option))


class _HelpAll(argparse.Action):
    """Shows the help with all settings."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        if isinstance(parser, CommandParser):
            parser._folds = False
        parser.print_help()
        parser.exit()


def _settings(group: argparse._ArgumentGroup) -> list[argparse.Action]:
    """What of a group the help shows."""
    return [action for action in group._group_actions if action.help != argparse.SUPPRESS]


def _is_section(group: argparse._ArgumentGroup) -> bool:
    """Whether it holds settings, whose flags name a section."""
    flags = [flag for action in _settings(group) for flag in action.option_strings]
    return bool(flags) and all("." in flag for flag in flags)


def _in_one_line(group: argparse._ArgumentGroup) -> str:
    """A section, what it is about and how many settings it has, with what does not fit below."""
    name = f"--{(group.title or '').removesuffix(' options')}.KEY"
    about = " ".join((group.description or "").split()).rstrip(".")
    text = f"{about} ({len(_settings(group))})"
    lines = textwrap.wrap(text, _LINE, break_on_hyphens=False)
    return f"{name:<{_NAME}}" + f"\n{'':<{_NAME}}".join(lines)
