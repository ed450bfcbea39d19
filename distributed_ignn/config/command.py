"""The argument parser of every command: strict, suggesting, and silent about stack traces."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from distributed_ignn.config.suggest import suggest
from distributed_ignn.errors import UserError

_ELSEWHERE = {"--partition.dir": "shards"}  # what benchmark and Python call a setting
_SURE = 0.85  # likeness of a flag that is misspelt, rather than a setting without its section


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError and takes ``-`` and ``_`` in a flag as the same.

    What a command takes is declared by ``options.py`` and ``parse.py``.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

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
        return folded.get(flag.replace("_", "-"), flag) + equals + value

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
